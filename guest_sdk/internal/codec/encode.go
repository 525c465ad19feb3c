// Package codec reads and writes JSON as encoding/json does, for the types that cross the border. Guests have their own
// because TinyGo 0.39 panics in every json.Marshal of a program that has errors.As as well, and because it is smaller.
//
// Nothing in here is called by a pointer to a function, closures included: TinyGo lets whatever does so be unwound,
// which makes code larger by half and slower.
package codec

import (
	"encoding/base64"
	"math"
	"reflect"
	"strconv"
	"time"
	"unicode/utf8"
)

// Marshaler is a type that writes its own JSON.
type Marshaler interface {
	MarshalJSON() ([]byte, error)
}

// Raw is JSON as it is: it is neither read nor written, only looked at whether it is any.
type Raw []byte

var (
	timeType = reflect.TypeOf(time.Time{})
	rawType  = reflect.TypeOf(Raw(nil))
)

// Marshal writes v as JSON. A type whose MarshalJSON has a pointer receiver writes itself also where only the value is
// given, as in encoding/json/v2.
func Marshal(v any) ([]byte, error) {
	e := &encoder{b: make([]byte, 0, 64)}
	if !e.value(reflect.ValueOf(v), 0, false) {
		return nil, e.err()
	}
	return e.b, nil
}

type encoder struct {
	fault
	b []byte
}

// value and what it calls for a value within are most of the stack that one within another takes, so what is done only at
// the leaves is in functions of its own.
func (e *encoder) value(v reflect.Value, depth int, quoted bool) bool {
	if !v.IsValid() {
		return e.null()
	}
	if depth > maxDepth || !stackLeft() {
		return e.is(tooDeep())
	}
	kind := v.Kind()
	if kind == reflect.Interface {
		return e.value(v.Elem(), depth, quoted)
	}
	if known, good := e.known(v, kind); known {
		return good
	}
	switch kind {
	case reflect.Pointer:
		return e.value(v.Elem(), depth+1, quoted)
	case reflect.Struct:
		return e.object(v, depth)
	case reflect.Map:
		return e.mapping(v, depth)
	case reflect.Slice, reflect.Array:
		return e.list(v, depth)
	}
	return e.plain(v, kind, quoted)
}

// known writes what is not written by its kind; whether it is such, and whether all is well.
//
//go:noinline
func (e *encoder) known(v reflect.Value, kind reflect.Kind) (known, good bool) {
	t := v.Type()
	switch {
	case t == timeType:
		return true, e.moment(v.Interface().(time.Time))
	case t == rawType:
		return true, e.raw(v.Bytes(), "a wasman.JSON")
	}
	if v.CanInterface() {
		if own := marshaler(v, t, kind); own != nil {
			return true, e.own(own)
		}
	}
	if kind == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
		e.b = append(e.b, '"')
		e.b = base64.StdEncoding.AppendEncode(e.b, v.Bytes())
		e.b = append(e.b, '"')
		return true, true
	}
	return false, true
}

// marshaler is v as one that writes itself, by a method of it or of a pointer to it; or nil.
func marshaler(v reflect.Value, t reflect.Type, kind reflect.Kind) Marshaler {
	if kind == reflect.Pointer && v.IsNil() {
		return nil
	}
	if t.NumMethod() > 0 {
		if own, ok := v.Interface().(Marshaler); ok {
			return own
		}
	}
	if kind == reflect.Pointer || reflect.PointerTo(t).NumMethod() == 0 {
		return nil
	}
	own, _ := addressed(v, t).(Marshaler)
	return own
}

// addressed is a pointer to v, or to what equals it.
func addressed(v reflect.Value, t reflect.Type) any {
	if !v.CanAddr() {
		held := reflect.New(t).Elem()
		held.Set(v)
		v = held
	}
	return v.Addr().Interface()
}

//go:noinline
func (e *encoder) own(v Marshaler) bool {
	data, err := v.MarshalJSON()
	if err != nil {
		return e.is(err.Error())
	}
	return e.raw(data, "what MarshalJSON gives")
}

func (e *encoder) null() bool {
	e.b = append(e.b, "null"...)
	return true
}

// raw writes JSON that somebody else has made.
//
//go:noinline
func (e *encoder) raw(data []byte, whose string) bool {
	if len(data) == 0 {
		return e.null()
	}
	d := &decoder{data: data}
	if !d.whole() {
		return e.is(whose + " is no JSON: " + d.what)
	}
	e.b = append(e.b, data...)
	return true
}

//go:noinline
func (e *encoder) moment(t time.Time) bool {
	if y := t.Year(); y < 0 || y > 9999 {
		return e.is("the year " + strconv.Itoa(y) + " has no place in RFC 3339")
	}
	e.b = append(e.b, '"')
	e.b = appendMoment(e.b, t)
	e.b = append(e.b, '"')
	return true
}

//go:noinline
func (e *encoder) plain(v reflect.Value, kind reflect.Kind, quoted bool) bool {
	if kind == reflect.String {
		if quoted {
			e.b = AppendString(e.b, string(AppendString(nil, v.String())))
		} else {
			e.b = AppendString(e.b, v.String())
		}
		return true
	}
	if quoted {
		e.b = append(e.b, '"')
	}
	switch {
	case kind == reflect.Bool:
		e.b = strconv.AppendBool(e.b, v.Bool())
	case isSigned(kind):
		e.b = strconv.AppendInt(e.b, v.Int(), 10)
	case isUnsigned(kind):
		e.b = strconv.AppendUint(e.b, v.Uint(), 10)
	case kind == reflect.Float32:
		if !e.float(v.Float(), 32) {
			return false
		}
	case kind == reflect.Float64:
		if !e.float(v.Float(), 64) {
			return false
		}
	default:
		return e.is("JSON has no place for a " + v.Type().String())
	}
	if quoted {
		e.b = append(e.b, '"')
	}
	return true
}

func isSigned(k reflect.Kind) bool   { return k >= reflect.Int && k <= reflect.Int64 }
func isUnsigned(k reflect.Kind) bool { return k >= reflect.Uint && k <= reflect.Uintptr }

func (e *encoder) float(f float64, bits int) bool {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return e.is("JSON has no place for " + strconv.FormatFloat(f, 'g', -1, bits))
	}
	// As ECMAScript writes numbers, so that what reads it finds the same.
	format := byte('f')
	if size := math.Abs(f); size != 0 {
		if bits == 64 && (size < 1e-6 || size >= 1e21) || bits == 32 && (float32(size) < 1e-6 || float32(size) >= 1e21) {
			format = 'e'
		}
	}
	b := strconv.AppendFloat(e.b, f, format, -1, bits)
	if n := len(b); format == 'e' && n >= 4 && b[n-4] == 'e' && (b[n-3] == '-' || b[n-3] == '+') && b[n-2] == '0' {
		b[n-2] = b[n-1]
		b = b[:n-1]
	}
	e.b = b
	return true
}

// list writes a slice or an array; nil is the empty list, as in encoding/json/v2, because null is none to pydantic.
//
//go:noinline
func (e *encoder) list(v reflect.Value, depth int) bool {
	e.b = append(e.b, '[')
	for i := range v.Len() {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		if !e.value(v.Index(i), depth+1, false) {
			return e.inItem(i)
		}
	}
	e.b = append(e.b, ']')
	return true
}

// mapping writes a map by the order of its names.
//
//go:noinline
func (e *encoder) mapping(v reflect.Value, depth int) bool {
	names, values, ok := e.pairs(v)
	if !ok {
		return false
	}
	e.b = append(e.b, '{')
	for i, name := range names {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.b = append(AppendString(e.b, name), ':')
		if !e.value(values[i], depth+1, false) {
			return e.inElement(name)
		}
	}
	e.b = append(e.b, '}')
	return true
}

//go:noinline
func (e *encoder) pairs(v reflect.Value) ([]string, []reflect.Value, bool) {
	names, values := make([]string, 0, v.Len()), make([]reflect.Value, 0, v.Len())
	for iter := v.MapRange(); iter.Next(); {
		name, ok := e.name(iter.Key())
		if !ok {
			return nil, nil, false
		}
		names, values = append(names, name), append(values, iter.Value())
	}
	sortTogether(names, values)
	return names, values, true
}

func (e *encoder) name(key reflect.Value) (string, bool) {
	switch k := key.Kind(); {
	case k == reflect.String:
		return key.String(), true
	case isSigned(k):
		return strconv.FormatInt(key.Int(), 10), true
	case isUnsigned(k):
		return strconv.FormatUint(key.Uint(), 10), true
	}
	return "", e.is("JSON's names are text, and a " + key.Type().String() + " is none")
}

// sortTogether is a heap sort of both by the names: package slices would be handed a function.
func sortTogether(names []string, values []reflect.Value) {
	for i := len(names)/2 - 1; i >= 0; i-- {
		siftDown(names, values, i)
	}
	for n := len(names) - 1; n > 0; n-- {
		names[0], names[n] = names[n], names[0]
		values[0], values[n] = values[n], values[0]
		siftDown(names[:n], values[:n], 0)
	}
}

func siftDown(names []string, values []reflect.Value, root int) {
	for {
		child := 2*root + 1
		if child >= len(names) {
			return
		}
		if child+1 < len(names) && names[child] < names[child+1] {
			child++
		}
		if names[root] >= names[child] {
			return
		}
		names[root], names[child] = names[child], names[root]
		values[root], values[child] = values[child], values[root]
		root = child
	}
}

//go:noinline
func (e *encoder) object(v reflect.Value, depth int) bool {
	members := e.members(v)
	if members == nil {
		return false
	}
	e.b = append(e.b, '{')
	first := true
	for i := range members.list {
		m := &members.list[i]
		value, ok := e.begin(v, m, first)
		if !ok {
			continue
		}
		first = false
		if !e.value(value, depth+1, m.quoted) {
			return e.inMember(m.name)
		}
	}
	e.b = append(e.b, '}')
	return true
}

//go:noinline
func (e *encoder) members(v reflect.Value) *members {
	found := membersOf(v.Type())
	if found.hidden {
		e.is(hidden(v.Type()))
		return nil
	}
	return found
}

// begin finds a member of v by the way of embedded fields, and writes its name; false where it is left out.
//
//go:noinline
func (e *encoder) begin(v reflect.Value, m *field, first bool) (reflect.Value, bool) {
	for i, x := range m.index {
		if i > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				return reflect.Value{}, false
			}
			v = v.Elem()
		}
		v = v.Field(x)
	}
	if m.omitEmpty && isEmpty(v) || m.omitZero && isZero(v) {
		return reflect.Value{}, false
	}
	if !first {
		e.b = append(e.b, ',')
	}
	e.b = append(AppendString(e.b, m.name), ':')
	return v, true
}

func isEmpty(v reflect.Value) bool {
	switch k := v.Kind(); k {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Interface, reflect.Pointer:
		return v.IsNil()
	case reflect.Bool:
		return !v.Bool()
	case reflect.Float32, reflect.Float64:
		return v.Float() == 0
	default:
		return isSigned(k) && v.Int() == 0 || isUnsigned(k) && v.Uint() == 0
	}
}

// isZero is whether v is zero: as it says itself, by a method of it or of a pointer to it, or else as Go has zero.
func isZero(v reflect.Value) bool {
	kind, t := v.Kind(), v.Type()
	switch {
	case kind == reflect.Interface:
		return v.IsNil()
	case kind == reflect.Pointer && v.IsNil():
		return true
	case v.CanInterface():
		if t.NumMethod() > 0 {
			if own, ok := v.Interface().(interface{ IsZero() bool }); ok {
				return own.IsZero()
			}
		}
		if kind != reflect.Pointer && reflect.PointerTo(t).NumMethod() > 0 {
			if own, ok := addressed(v, t).(interface{ IsZero() bool }); ok {
				return own.IsZero()
			}
		}
	}
	return v.IsZero()
}

const hexDigits = "0123456789abcdef"

// AppendString appends s as a JSON string.
func AppendString(b []byte, s string) []byte {
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
			b = appendEscape(b, c)
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

func appendEscape(b []byte, c byte) []byte {
	switch c {
	case '\b':
		c = 'b'
	case '\f':
		c = 'f'
	case '\n':
		c = 'n'
	case '\r':
		c = 'r'
	case '\t':
		c = 't'
	case '"', '\\':
	default:
		return append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
	}
	return append(b, '\\', c)
}
