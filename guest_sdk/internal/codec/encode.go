// Package codec reads and writes JSON as encoding/json does, for the types that cross the border. Guests have their own
// because TinyGo 0.39 panics in every json.Marshal of a program that has errors.As as well, and because it is smaller.
package codec

import (
	"encoding/base64"
	"errors"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Marshaler is a type that writes its own JSON.
type Marshaler interface {
	MarshalJSON() ([]byte, error)
}

// Raw is JSON as it is: it is neither read nor written.
type Raw []byte

var (
	timeType = reflect.TypeOf(time.Time{})
	rawType  = reflect.TypeOf(Raw(nil))
)

// Marshal writes v as JSON.
func Marshal(v any) ([]byte, error) {
	if v == nil {
		return []byte("null"), nil
	}
	return appendValue(make([]byte, 0, 64), reflect.ValueOf(v), "", 0, false)
}

func at(path, what string) error {
	if path == "" {
		return errors.New(what)
	}
	return errors.New(path + ": " + what)
}

// appendValue appends v. What has no other value within it is written by appendLeaf: in this function and the three that
// call it again, a guest's stack holds one frame for each level, and TinyGo's frames are as large as all that is inlined.
func appendValue(b []byte, v reflect.Value, path string, depth int, quoted bool) ([]byte, error) {
	if depth > maxDepth {
		return nil, tooDeep(path)
	}
	if written, b, err := appendLeaf(b, v, path, quoted); written {
		return b, err
	}
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer:
		return appendValue(b, v.Elem(), path, depth+1, quoted)
	case reflect.Map:
		return appendMap(b, v, path, depth)
	case reflect.Struct:
		return appendStruct(b, v, path, depth)
	}
	return appendList(b, v, path, depth)
}

//go:noinline
func tooDeep(path string) error {
	return at(path, "values lie within each other more than "+strconv.Itoa(maxDepth)+" deep")
}

// appendLeaf appends what has no other value within it; false where v is a list, a map, a struct or a pointer.
//
//go:noinline
func appendLeaf(b []byte, v reflect.Value, path string, quoted bool) (written bool, _ []byte, _ error) {
	if !v.IsValid() {
		return true, append(b, "null"...), nil
	}
	t := v.Type()
	switch t {
	case timeType:
		moment := v.Interface().(time.Time)
		if y := moment.Year(); y < 0 || y > 9999 {
			return true, nil, at(path, "the year "+strconv.Itoa(y)+" has no place in RFC 3339")
		}
		b = append(b, '"')
		b = appendMoment(b, moment)
		return true, append(b, '"'), nil
	case rawType:
		if raw := v.Bytes(); len(raw) > 0 {
			return true, append(b, raw...), nil
		}
		return true, append(b, "null"...), nil
	}
	if t.NumMethod() > 0 && t.Kind() != reflect.Interface && v.CanInterface() {
		if own, ok := v.Interface().(Marshaler); ok && !(t.Kind() == reflect.Pointer && v.IsNil()) {
			data, err := own.MarshalJSON()
			if err != nil {
				return true, nil, at(path, err.Error())
			}
			return true, append(b, data...), nil
		}
	}
	switch t.Kind() {
	case reflect.Bool:
		return true, quote(b, quoted, func(b []byte) []byte { return strconv.AppendBool(b, v.Bool()) }), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return true, quote(b, quoted, func(b []byte) []byte { return strconv.AppendInt(b, v.Int(), 10) }), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return true, quote(b, quoted, func(b []byte) []byte { return strconv.AppendUint(b, v.Uint(), 10) }), nil
	case reflect.Float32, reflect.Float64:
		b, err := appendFloat(b, v.Float(), t.Bits(), path, quoted)
		return true, b, err
	case reflect.String:
		if quoted {
			return true, appendString(b, string(appendString(nil, v.String()))), nil
		}
		return true, appendString(b, v.String()), nil
	case reflect.Interface, reflect.Pointer:
		if v.IsNil() {
			return true, append(b, "null"...), nil
		}
		return false, b, nil
	case reflect.Slice: // nil is the empty list, as in encoding/json/v2: null is none to pydantic
		if t.Elem().Kind() == reflect.Uint8 {
			b = append(b, '"')
			b = base64.StdEncoding.AppendEncode(b, v.Bytes())
			return true, append(b, '"'), nil
		}
		return false, b, nil
	case reflect.Array, reflect.Map, reflect.Struct:
		return false, b, nil
	}
	return true, nil, at(path, "JSON has no place for a "+t.String())
}

func quote(b []byte, quoted bool, write func([]byte) []byte) []byte {
	if !quoted {
		return write(b)
	}
	return append(write(append(b, '"')), '"')
}

func appendFloat(b []byte, f float64, bits int, path string, quoted bool) ([]byte, error) {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return nil, at(path, "JSON has no place for "+strconv.FormatFloat(f, 'g', -1, bits))
	}
	// As ECMAScript writes numbers, so that what reads it finds the same.
	format := byte('f')
	if size := math.Abs(f); size != 0 {
		if bits == 64 && (size < 1e-6 || size >= 1e21) || bits == 32 && (float32(size) < 1e-6 || float32(size) >= 1e21) {
			format = 'e'
		}
	}
	return quote(b, quoted, func(b []byte) []byte {
		b = strconv.AppendFloat(b, f, format, -1, bits)
		if n := len(b); format == 'e' && n >= 4 && b[n-4] == 'e' && (b[n-3] == '-' || b[n-3] == '+') && b[n-2] == '0' {
			b[n-2] = b[n-1]
			b = b[:n-1]
		}
		return b
	}), nil
}

//go:noinline
func appendList(b []byte, v reflect.Value, path string, depth int) ([]byte, error) {
	b = append(b, '[')
	var err error
	for i := range v.Len() {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendValue(b, v.Index(i), path+"["+strconv.Itoa(i)+"]", depth+1, false); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

//go:noinline
func appendMap(b []byte, v reflect.Value, path string, depth int) ([]byte, error) {
	pairs, err := pairsOf(v, path)
	if err != nil {
		return nil, err
	}
	b = append(b, '{')
	for i, p := range pairs {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, p.name), ':')
		if b, err = appendValue(b, p.value, path+"["+p.name+"]", depth+1, false); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

type pair struct {
	name  string
	value reflect.Value
}

// pairsOf is what a map has, by the order of the names.
//
//go:noinline
func pairsOf(v reflect.Value, path string) ([]pair, error) {
	pairs := make([]pair, 0, v.Len())
	for iter := v.MapRange(); iter.Next(); {
		name, err := keyName(iter.Key(), path)
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, pair{name, iter.Value()})
	}
	slices.SortFunc(pairs, func(a, b pair) int { return strings.Compare(a.name, b.name) })
	return pairs, nil
}

func keyName(key reflect.Value, path string) (string, error) {
	switch key.Kind() {
	case reflect.String:
		return key.String(), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.FormatInt(key.Int(), 10), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return strconv.FormatUint(key.Uint(), 10), nil
	}
	return "", at(path, "JSON's names are text, and a "+key.Type().String()+" is none")
}

//go:noinline
func appendStruct(b []byte, v reflect.Value, path string, depth int) ([]byte, error) {
	b = append(b, '{')
	first := true
	for _, f := range fieldsOf(v.Type()).list {
		value, ok := reach(v, f.index)
		if !ok || f.omitEmpty && isEmpty(value) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(appendString(b, f.name), ':')
		inner := f.name
		if path != "" {
			inner = path + "." + f.name
		}
		var err error
		if b, err = appendValue(b, value, inner, depth+1, f.quoted); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

// reach follows an embedded field's way; false where a nil pointer lies on it.
func reach(v reflect.Value, index []int) (reflect.Value, bool) {
	for i, x := range index {
		if i > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				return reflect.Value{}, false
			}
			v = v.Elem()
		}
		v = v.Field(x)
	}
	return v, true
}

func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Bool:
		return !v.Bool()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int() == 0
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return v.Uint() == 0
	case reflect.Float32, reflect.Float64:
		return v.Float() == 0
	case reflect.Interface, reflect.Pointer:
		return v.IsNil()
	}
	return false
}

const hexDigits = "0123456789abcdef"

// AppendString appends s as a JSON string.
func AppendString(b []byte, s string) []byte { return appendString(b, s) }

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\b':
				b = append(b, '\\', 'b')
			case '\f':
				b = append(b, '\\', 'f')
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			b = append(append(b, s[start:i]...), "\ufffd"...)
			i++
			start = i
			continue
		}
		if r == '\u2028' || r == '\u2029' { // JSON within JavaScript must not have them
			b = append(append(b, s[start:i]...), `\u202`...)
			b = append(b, hexDigits[r&15])
			start = i + size
		}
		i += size
	}
	return append(append(b, s[start:]...), '"')
}
