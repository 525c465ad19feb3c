package codec

import (
	"encoding/base64"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Unmarshaler is a type that reads its own JSON.
type Unmarshaler interface {
	UnmarshalJSON(data []byte) error
}

// Unmarshal reads JSON into v, a pointer. Names that v has no member for are passed over; a name is found exactly, or
// else whatever its case.
func Unmarshal(data []byte, v any) error {
	target := reflect.ValueOf(v)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		return errors.New("what is read into is no pointer")
	}
	d := &decoder{data: data}
	d.space()
	if err := d.value(target.Elem(), "", 0); err != nil {
		return err
	}
	d.space()
	if d.at < len(d.data) {
		return d.fail("", "more stands behind the value")
	}
	return nil
}

type decoder struct {
	data []byte
	at   int
}

func (d *decoder) fail(path, what string) error {
	return at(path, what+" (byte "+strconv.Itoa(d.at)+")")
}

func (d *decoder) space() {
	for d.at < len(d.data) {
		switch d.data[d.at] {
		case ' ', '\n', '\r', '\t':
			d.at++
		default:
			return
		}
	}
}

func (d *decoder) peek() byte {
	if d.at < len(d.data) {
		return d.data[d.at]
	}
	return 0
}

func (d *decoder) word(word string) bool {
	if strings.HasPrefix(string(d.data[d.at:min(len(d.data), d.at+len(word))]), word) {
		d.at += len(word)
		return true
	}
	return false
}

// skip passes over one value and gives its bytes.
func (d *decoder) skip(path string, depth int) ([]byte, error) {
	start := d.at
	if depth > maxDepth {
		return nil, d.tooDeep(path)
	}
	switch c := d.peek(); {
	case c == '"':
		if _, err := d.text(path); err != nil {
			return nil, err
		}
	case c == '{':
		err := d.members(path, func(string) error {
			_, err := d.skip(path, depth+1)
			return err
		})
		if err != nil {
			return nil, err
		}
	case c == '[':
		err := d.items(path, func(int) error {
			_, err := d.skip(path, depth+1)
			return err
		})
		if err != nil {
			return nil, err
		}
	case c == '-' || c >= '0' && c <= '9':
		if _, err := d.number(path); err != nil {
			return nil, err
		}
	case d.word("true"), d.word("false"), d.word("null"):
	default:
		return nil, d.fail(path, "this is no JSON")
	}
	return d.data[start:d.at], nil
}

func (d *decoder) members(path string, member func(name string) error) error {
	d.at++ // {
	d.space()
	if d.peek() == '}' {
		d.at++
		return nil
	}
	for {
		d.space()
		if d.peek() != '"' {
			return d.fail(path, "a name should stand here")
		}
		name, err := d.text(path)
		if err != nil {
			return err
		}
		d.space()
		if d.peek() != ':' {
			return d.fail(path, "a colon should stand here")
		}
		d.at++
		d.space()
		if err := member(name); err != nil {
			return err
		}
		d.space()
		switch d.peek() {
		case ',':
			d.at++
		case '}':
			d.at++
			return nil
		default:
			return d.fail(path, "a comma or } should stand here")
		}
	}
}

func (d *decoder) items(path string, item func(i int) error) error {
	d.at++ // [
	d.space()
	if d.peek() == ']' {
		d.at++
		return nil
	}
	for i := 0; ; i++ {
		d.space()
		if err := item(i); err != nil {
			return err
		}
		d.space()
		switch d.peek() {
		case ',':
			d.at++
		case ']':
			d.at++
			return nil
		default:
			return d.fail(path, "a comma or ] should stand here")
		}
	}
}

// number passes over a number and gives its text.
func (d *decoder) number(path string) (string, error) {
	start := d.at
	digits := func() bool {
		from := d.at
		for c := d.peek(); c >= '0' && c <= '9'; c = d.peek() {
			d.at++
		}
		return d.at > from
	}
	if d.peek() == '-' {
		d.at++
	}
	if d.peek() == '0' {
		d.at++
	} else if !digits() {
		return "", d.fail(path, "this is no number")
	}
	if d.peek() == '.' {
		d.at++
		if !digits() {
			return "", d.fail(path, "this is no number")
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		d.at++
		if c := d.peek(); c == '+' || c == '-' {
			d.at++
		}
		if !digits() {
			return "", d.fail(path, "this is no number")
		}
	}
	return string(d.data[start:d.at]), nil
}

// text reads a string.
func (d *decoder) text(path string) (string, error) {
	d.at++ // "
	start := d.at
	for d.at < len(d.data) {
		switch c := d.data[d.at]; {
		case c == '"':
			s := string(d.data[start:d.at])
			d.at++
			if !utf8.ValidString(s) {
				s = string([]rune(s)) // each byte that is none becomes U+FFFD
			}
			return s, nil
		case c == '\\':
			return d.escaped(start, path)
		case c < ' ':
			return "", d.fail(path, "a control character stands in a string")
		}
		d.at++
	}
	return "", d.fail(path, "a string does not end")
}

func (d *decoder) escaped(start int, path string) (string, error) {
	b := append([]byte(nil), d.data[start:d.at]...)
	for d.at < len(d.data) {
		c := d.data[d.at]
		d.at++
		switch {
		case c == '"':
			s := string(b)
			if !utf8.ValidString(s) {
				s = string([]rune(s)) // each byte that is none becomes U+FFFD
			}
			return s, nil
		case c < ' ':
			return "", d.fail(path, "a control character stands in a string")
		case c != '\\':
			b = append(b, c)
			continue
		}
		if d.at >= len(d.data) {
			break
		}
		c = d.data[d.at]
		d.at++
		switch c {
		case '"', '\\', '/':
			b = append(b, c)
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'u':
			r, ok := d.unit()
			if !ok {
				return "", d.fail(path, "\\u is followed by four hexadecimal digits")
			}
			if utf16.IsSurrogate(r) {
				after := d.at
				low := rune(utf8.RuneError)
				if d.word(`\u`) {
					if low, ok = d.unit(); !ok {
						return "", d.fail(path, "\\u is followed by four hexadecimal digits")
					}
				}
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					d.at = after // what follows is a character of its own
				}
			}
			b = utf8.AppendRune(b, r)
		default:
			return "", d.fail(path, "a string has an escape that JSON does not know")
		}
	}
	return "", d.fail(path, "a string does not end")
}

func (d *decoder) unit() (rune, bool) {
	if d.at+4 > len(d.data) {
		return 0, false
	}
	n, err := strconv.ParseUint(string(d.data[d.at:d.at+4]), 16, 32)
	d.at += 4
	return rune(n), err == nil
}

// value reads into v. What has no other value within it is read by leaf: in this function and the four that call it
// again, a guest's stack holds one frame for each level, and TinyGo's frames are as large as all that is inlined.
func (d *decoder) value(v reflect.Value, path string, depth int) error {
	if depth > maxDepth {
		return d.tooDeep(path)
	}
	if v.Kind() == reflect.Pointer {
		if !d.point(v) {
			return nil
		}
		return d.value(v.Elem(), path, depth+1)
	}
	if read, err := d.leaf(v, path, depth); read {
		return err
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.object(v, path, depth)
	case reflect.Map:
		return d.mapping(v, path, depth)
	case reflect.Slice:
		return d.slice(v, path, depth)
	}
	return d.array(v, path, depth)
}

//go:noinline
func (d *decoder) tooDeep(path string) error {
	return d.fail(path, "values lie within each other more than "+strconv.Itoa(maxDepth)+" deep")
}

// point makes a pointer point to a value; false where it is null.
//
//go:noinline
func (d *decoder) point(v reflect.Value) bool {
	if d.word("null") {
		v.SetZero()
		return false
	}
	if v.IsNil() {
		v.Set(reflect.New(v.Type().Elem()))
	}
	return true
}

// leaf reads what has no value of a known type within it; false where it is a list, a map or a struct.
//
//go:noinline
func (d *decoder) leaf(v reflect.Value, path string, depth int) (read bool, err error) {
	t := v.Type()
	switch t {
	case rawType:
		raw, err := d.skip(path, depth)
		v.SetBytes(append([]byte(nil), raw...))
		return true, err
	case timeType:
		return true, d.moment(v, path)
	}
	if v.CanAddr() && t.Kind() != reflect.Interface && reflect.PointerTo(t).NumMethod() > 0 {
		if own, ok := v.Addr().Interface().(Unmarshaler); ok {
			return true, d.own(own, path, depth)
		}
	}
	if d.peek() == 'n' && d.word("null") {
		switch t.Kind() {
		case reflect.Interface, reflect.Map, reflect.Slice:
			v.SetZero()
		}
		return true, nil // as encoding/json: what cannot be null stays as it is
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map, reflect.Slice, reflect.Array:
		return false, nil
	case reflect.Interface:
		return true, d.open(v, path, depth)
	case reflect.Bool:
		switch {
		case d.word("true"):
			v.SetBool(true)
		case d.word("false"):
			v.SetBool(false)
		default:
			return true, d.unfit(t, path, depth)
		}
		return true, nil
	case reflect.String:
		if d.peek() != '"' {
			return true, d.unfit(t, path, depth)
		}
		s, err := d.text(path)
		v.SetString(s)
		return true, err
	}
	return true, d.numeric(v, path, depth)
}

// open reads into what may hold anything.
//
//go:noinline
func (d *decoder) open(v reflect.Value, path string, depth int) error {
	if v.Type().NumMethod() > 0 {
		return d.fail(path, "nothing can be read into a "+v.Type().String())
	}
	found, err := d.any(path, depth)
	if err == nil && found != nil {
		v.Set(reflect.ValueOf(found))
	}
	return err
}

// own lets a type read its own JSON.
//
//go:noinline
func (d *decoder) own(into Unmarshaler, path string, depth int) error {
	raw, err := d.skip(path, depth)
	if err != nil {
		return err
	}
	if err := into.UnmarshalJSON(raw); err != nil {
		return d.fail(path, err.Error())
	}
	return nil
}

func (d *decoder) unfit(t reflect.Type, path string, depth int) error {
	start := d.at
	raw, err := d.skip(path, depth)
	if err != nil {
		return err
	}
	d.at = start
	if len(raw) > 40 {
		raw = append(append([]byte(nil), raw[:37]...), "..."...)
	}
	return d.fail(path, string(raw)+" does not fit into a "+t.String())
}

//go:noinline
func (d *decoder) numeric(v reflect.Value, path string, depth int) error {
	t := v.Type()
	if c := d.peek(); c != '-' && (c < '0' || c > '9') {
		return d.unfit(t, path, depth)
	}
	start := d.at
	text, err := d.number(path)
	if err != nil {
		return err
	}
	switch t.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		var n int64
		if n, err = strconv.ParseInt(text, 10, t.Bits()); err == nil {
			v.SetInt(n)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		var n uint64
		if n, err = strconv.ParseUint(text, 10, t.Bits()); err == nil {
			v.SetUint(n)
		}
	case reflect.Float32, reflect.Float64:
		var n float64
		if n, err = strconv.ParseFloat(text, t.Bits()); err == nil {
			v.SetFloat(n)
		}
	default:
		return d.fail(path, "nothing can be read into a "+t.String())
	}
	if err != nil {
		d.at = start
		return d.fail(path, text+" does not fit into a "+t.String())
	}
	return nil
}

//go:noinline
func (d *decoder) moment(v reflect.Value, path string) error {
	if d.word("null") {
		return nil
	}
	if d.peek() != '"' {
		return d.unfit(v.Type(), path, 0)
	}
	s, err := d.text(path)
	if err != nil {
		return err
	}
	moment, ok := readMoment(s)
	if !ok {
		return d.fail(path, "'"+s+"' is no time as RFC 3339 writes it")
	}
	v.Set(reflect.ValueOf(moment))
	return nil
}

//go:noinline
func (d *decoder) object(v reflect.Value, path string, depth int) error {
	if d.peek() != '{' {
		return d.unfit(v.Type(), path, depth)
	}
	members := fieldsOf(v.Type())
	return d.members(path, func(name string) error {
		inner := name
		if path != "" {
			inner = path + "." + name
		}
		f := members.find(name)
		if f == nil {
			_, err := d.skip(inner, depth+1)
			return err
		}
		if f.quoted && d.peek() == '"' {
			s, err := d.text(inner)
			if err != nil {
				return err
			}
			unquoted := &decoder{data: []byte(s)}
			return unquoted.value(member(v, f.index), inner, depth+1)
		}
		return d.value(member(v, f.index), inner, depth+1)
	})
}

// member is a struct's member, or that of one embedded in it, which is made where a pointer to it is nil.
//
//go:noinline
func member(v reflect.Value, index []int) reflect.Value {
	for i, x := range index {
		if i > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
		}
		v = v.Field(x)
	}
	return v
}

//go:noinline
func (d *decoder) mapping(v reflect.Value, path string, depth int) error {
	if d.peek() != '{' {
		return d.unfit(v.Type(), path, depth)
	}
	makeMap(v)
	return d.members(path, func(name string) error {
		inner := path + "[" + name + "]"
		key, err := d.key(v.Type().Key(), name, inner)
		if err != nil {
			return err
		}
		element := fresh(v.Type().Elem())
		if err := d.value(element, inner, depth+1); err != nil {
			return err
		}
		put(v, key, element)
		return nil
	})
}

//go:noinline
func makeMap(v reflect.Value) {
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
}

//go:noinline
func put(v, key, element reflect.Value) { v.SetMapIndex(key, element) }

// key makes a map's key of a name.
//
//go:noinline
func (d *decoder) key(t reflect.Type, name, path string) (reflect.Value, error) {
	key := fresh(t)
	switch k := key.Kind(); {
	case k == reflect.String:
		key.SetString(name)
	case k >= reflect.Int && k <= reflect.Int64:
		n, err := strconv.ParseInt(name, 10, t.Bits())
		if err != nil {
			return key, d.fail(path, "the name does not fit into a "+t.String())
		}
		key.SetInt(n)
	case k >= reflect.Uint && k <= reflect.Uintptr:
		n, err := strconv.ParseUint(name, 10, t.Bits())
		if err != nil {
			return key, d.fail(path, "the name does not fit into a "+t.String())
		}
		key.SetUint(n)
	default:
		return key, d.fail(path, "JSON's names are text, and a "+t.String()+" is none")
	}
	return key, nil
}

// fresh is a new value that can be read into.
//
//go:noinline
func fresh(t reflect.Type) reflect.Value { return reflect.New(t).Elem() }

//go:noinline
func (d *decoder) slice(v reflect.Value, path string, depth int) error {
	t := v.Type()
	if t.Elem().Kind() == reflect.Uint8 && d.peek() == '"' {
		s, err := d.text(path)
		if err != nil {
			return err
		}
		data, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return d.fail(path, "this is no base64")
		}
		v.SetBytes(data)
		return nil
	}
	if d.peek() != '[' {
		return d.unfit(t, path, depth)
	}
	out := reflect.MakeSlice(t, 0, 0)
	err := d.items(path, func(i int) error {
		element := fresh(t.Elem())
		if err := d.value(element, path+"["+strconv.Itoa(i)+"]", depth+1); err != nil {
			return err
		}
		out = reflect.Append(out, element)
		return nil
	})
	if err == nil {
		v.Set(out)
	}
	return err
}

//go:noinline
func (d *decoder) array(v reflect.Value, path string, depth int) error {
	if d.peek() != '[' {
		return d.unfit(v.Type(), path, depth)
	}
	filled := 0
	err := d.items(path, func(i int) error {
		inner := path + "[" + strconv.Itoa(i) + "]"
		if i >= v.Len() {
			_, err := d.skip(inner, depth+1)
			return err
		}
		filled = i + 1
		return d.value(v.Index(i), inner, depth+1)
	})
	for ; filled < v.Len(); filled++ {
		v.Index(filled).SetZero()
	}
	return err
}

// any reads what may be anything, as encoding/json does: maps, lists, text, float64, bool, nil.
//
//go:noinline
func (d *decoder) any(path string, depth int) (any, error) {
	if depth > maxDepth {
		return nil, d.tooDeep(path)
	}
	switch c := d.peek(); {
	case c == '"':
		return d.text(path)
	case c == '{':
		found := map[string]any{}
		err := d.members(path, func(name string) error {
			element, err := d.any(path+"["+name+"]", depth+1)
			found[name] = element
			return err
		})
		return found, err
	case c == '[':
		found := []any{}
		err := d.items(path, func(i int) error {
			element, err := d.any(path+"["+strconv.Itoa(i)+"]", depth+1)
			found = append(found, element)
			return err
		})
		return found, err
	case c == '-' || c >= '0' && c <= '9':
		text, err := d.number(path)
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, d.fail(path, text+" is too large")
		}
		return n, nil
	case d.word("true"):
		return true, nil
	case d.word("false"):
		return false, nil
	case d.word("null"):
		return nil, nil
	}
	return nil, d.fail(path, "this is no JSON")
}
