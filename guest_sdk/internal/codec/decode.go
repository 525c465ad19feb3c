package codec

import (
	"encoding/base64"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"time"
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
		return nil, d.fail(path, "values lie within each other more than "+strconv.Itoa(maxDepth)+" deep")
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
				s = strings.ToValidUTF8(s, "\ufffd")
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
				s = strings.ToValidUTF8(s, "\ufffd")
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

func (d *decoder) value(v reflect.Value, path string, depth int) error {
	if depth > maxDepth {
		return d.fail(path, "values lie within each other more than "+strconv.Itoa(maxDepth)+" deep")
	}
	t := v.Type()
	if t == rawType {
		raw, err := d.skip(path, depth)
		v.SetBytes(append([]byte(nil), raw...))
		return err
	}
	if t.Kind() == reflect.Pointer {
		if d.word("null") {
			v.SetZero()
			return nil
		}
		if v.IsNil() {
			v.Set(reflect.New(t.Elem()))
		}
		return d.value(v.Elem(), path, depth+1)
	}
	if t == timeType {
		return d.moment(v, path)
	}
	if v.CanAddr() && t.Kind() != reflect.Interface && reflect.PointerTo(t).NumMethod() > 0 {
		if own, ok := v.Addr().Interface().(Unmarshaler); ok {
			raw, err := d.skip(path, depth)
			if err == nil {
				if err = own.UnmarshalJSON(raw); err != nil {
					err = d.fail(path, err.Error())
				}
			}
			return err
		}
	}
	if d.peek() == 'n' && d.word("null") {
		switch t.Kind() {
		case reflect.Interface, reflect.Map, reflect.Slice:
			v.SetZero()
		}
		return nil // as encoding/json: what cannot be null stays as it is
	}
	switch t.Kind() {
	case reflect.Interface:
		if t.NumMethod() > 0 {
			return d.fail(path, "nothing can be read into a "+t.String())
		}
		found, err := d.any(path, depth)
		if err == nil && found != nil {
			v.Set(reflect.ValueOf(found))
		}
		return err
	case reflect.Bool:
		switch {
		case d.word("true"):
			v.SetBool(true)
		case d.word("false"):
			v.SetBool(false)
		default:
			return d.unfit(t, path, depth)
		}
		return nil
	case reflect.String:
		if d.peek() != '"' {
			return d.unfit(t, path, depth)
		}
		s, err := d.text(path)
		v.SetString(s)
		return err
	case reflect.Struct:
		return d.object(v, path, depth)
	case reflect.Map:
		return d.mapping(v, path, depth)
	case reflect.Slice:
		return d.slice(v, path, depth)
	case reflect.Array:
		return d.array(v, path, depth)
	}
	return d.numeric(v, path, depth)
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
	moment, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return d.fail(path, "'"+s+"' is no time as RFC 3339 writes it")
	}
	v.Set(reflect.ValueOf(moment))
	return nil
}

func (d *decoder) object(v reflect.Value, path string, depth int) error {
	if d.peek() != '{' {
		return d.unfit(v.Type(), path, depth)
	}
	members := fieldsOf(v.Type())
	return d.members(path, func(name string) error {
		i, ok := members.byName[name]
		if !ok {
			for j := range members.list {
				if strings.EqualFold(members.list[j].name, name) {
					i, ok = j, true
					break
				}
			}
		}
		inner := name
		if path != "" {
			inner = path + "." + name
		}
		if !ok {
			_, err := d.skip(inner, depth+1)
			return err
		}
		f := members.list[i]
		target := v
		for k, x := range f.index {
			if k > 0 && target.Kind() == reflect.Pointer {
				if target.IsNil() {
					target.Set(reflect.New(target.Type().Elem()))
				}
				target = target.Elem()
			}
			target = target.Field(x)
		}
		if f.quoted && d.peek() == '"' {
			s, err := d.text(inner)
			if err != nil {
				return err
			}
			unquoted := &decoder{data: []byte(s)}
			return unquoted.value(target, inner, depth+1)
		}
		return d.value(target, inner, depth+1)
	})
}

func (d *decoder) mapping(v reflect.Value, path string, depth int) error {
	t := v.Type()
	if d.peek() != '{' {
		return d.unfit(t, path, depth)
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(t))
	}
	return d.members(path, func(name string) error {
		inner := path + "[" + name + "]"
		key := reflect.New(t.Key()).Elem()
		switch k := key.Kind(); {
		case k == reflect.String:
			key.SetString(name)
		case k >= reflect.Int && k <= reflect.Int64:
			n, err := strconv.ParseInt(name, 10, t.Key().Bits())
			if err != nil {
				return d.fail(inner, "the name does not fit into a "+t.Key().String())
			}
			key.SetInt(n)
		case k >= reflect.Uint && k <= reflect.Uintptr:
			n, err := strconv.ParseUint(name, 10, t.Key().Bits())
			if err != nil {
				return d.fail(inner, "the name does not fit into a "+t.Key().String())
			}
			key.SetUint(n)
		default:
			return d.fail(inner, "JSON's names are text, and a "+t.Key().String()+" is none")
		}
		element := reflect.New(t.Elem()).Elem()
		if err := d.value(element, inner, depth+1); err != nil {
			return err
		}
		v.SetMapIndex(key, element)
		return nil
	})
}

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
		element := reflect.New(t.Elem()).Elem()
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
func (d *decoder) any(path string, depth int) (any, error) {
	if depth > maxDepth {
		return nil, d.fail(path, "values lie within each other more than "+strconv.Itoa(maxDepth)+" deep")
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
