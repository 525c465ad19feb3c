package codec

import (
	"encoding/base64"
	"errors"
	"reflect"
	"strconv"
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
	if !d.value(target.Elem(), 0) || !d.end() {
		return d.err()
	}
	return nil
}

type decoder struct {
	fault
	data []byte
	at   int
}

// fail notes what is wrong with the value at hand, and where it stands; false, to be returned.
func (d *decoder) fail(what string) bool {
	return d.is(what + " (byte " + strconv.Itoa(d.at) + ")")
}

func (d *decoder) failed() bool { return d.what != "" }

func (d *decoder) end() bool {
	d.space()
	if d.at < len(d.data) {
		return d.fail("more stands behind the value")
	}
	return true
}

// whole is whether all of it is one value.
func (d *decoder) whole() bool {
	d.space()
	return d.skip(0) && d.end()
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
	if len(d.data)-d.at < len(word) {
		return false
	}
	for i := range len(word) {
		if d.data[d.at+i] != word[i] {
			return false
		}
	}
	d.at += len(word)
	return true
}

// next goes on to a list's next item, or an object's next name; false behind the last one, and where it fails.
func (d *decoder) next(first bool, end byte) bool {
	d.space()
	switch c := d.peek(); {
	case c == end:
		d.at++
		return false
	case first:
		return true
	case c == ',':
		d.at++
		d.space()
		return true
	}
	return d.fail("a comma or " + string(rune(end)) + " should stand here")
}

// name reads an object's next name, and goes on to its value.
func (d *decoder) name() (string, bool) {
	if d.peek() != '"' {
		return "", d.fail("a name should stand here")
	}
	name, ok := d.text()
	if !ok {
		return "", false
	}
	d.space()
	if d.peek() != ':' {
		return "", d.fail("a colon should stand here")
	}
	d.at++
	d.space()
	return name, true
}

// skip passes over one value.
func (d *decoder) skip(depth int) bool {
	if depth > maxDepth || !stackLeft() {
		return d.fail(tooDeep())
	}
	switch c := d.peek(); {
	case c == '"':
		_, ok := d.text()
		return ok
	case c == '{':
		d.at++
		for first := true; d.next(first, '}'); first = false {
			if _, ok := d.name(); !ok || !d.skip(depth+1) {
				return false
			}
		}
		return !d.failed()
	case c == '[':
		d.at++
		for first := true; d.next(first, ']'); first = false {
			if !d.skip(depth + 1) {
				return false
			}
		}
		return !d.failed()
	case c == '-' || c >= '0' && c <= '9':
		return d.number()
	case d.word("true"), d.word("false"), d.word("null"):
		return true
	}
	return d.fail("this is no JSON")
}

// number passes over a number.
func (d *decoder) number() bool {
	if d.peek() == '-' {
		d.at++
	}
	good := true
	if d.peek() == '0' {
		d.at++
	} else {
		good = d.digits()
	}
	if good && d.peek() == '.' {
		d.at++
		good = d.digits()
	}
	if c := d.peek(); good && (c == 'e' || c == 'E') {
		d.at++
		if c := d.peek(); c == '+' || c == '-' {
			d.at++
		}
		good = d.digits()
	}
	return good || d.fail("this is no number")
}

func (d *decoder) digits() bool {
	from := d.at
	for c := d.peek(); c >= '0' && c <= '9'; c = d.peek() {
		d.at++
	}
	return d.at > from
}

// text reads a string.
func (d *decoder) text() (string, bool) {
	d.at++ // "
	start := d.at
	var b []byte // what stood before start, with an escape in it
	for d.at < len(d.data) {
		switch c := d.data[d.at]; {
		case c == '"':
			part := d.data[start:d.at]
			d.at++
			if b != nil {
				part = append(b, part...)
			}
			return validText(part), true
		case c == '\\':
			b = append(b, d.data[start:d.at]...)
			d.at++
			var ok bool
			if b, ok = d.escape(b); !ok {
				return "", false
			}
			start = d.at
		case c < ' ':
			return "", d.fail("a control character stands in a string")
		default:
			d.at++
		}
	}
	return "", d.fail("a string does not end")
}

func validText(b []byte) string {
	s := string(b)
	if utf8.ValidString(s) {
		return s
	}
	b = make([]byte, 0, len(s)+utf8.UTFMax)
	for _, r := range s { // each byte that is none becomes U+FFFD
		b = utf8.AppendRune(b, r)
	}
	return string(b)
}

// escape reads what stands behind a backslash.
func (d *decoder) escape(b []byte) ([]byte, bool) {
	c := d.peek()
	d.at++
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		r, ok := d.unit()
		if ok && utf16.IsSurrogate(r) {
			after := d.at
			low := rune(utf8.RuneError)
			if d.word(`\u`) {
				low, ok = d.unit()
			}
			if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
				d.at = after // what follows is a character of its own
			}
		}
		if !ok {
			return nil, d.fail(`\u is followed by four hexadecimal digits`)
		}
		return utf8.AppendRune(b, r), true
	default:
		return nil, d.fail("a string has an escape that JSON does not know")
	}
	return append(b, c), true
}

func (d *decoder) unit() (rune, bool) {
	r := rune(0)
	for range 4 {
		c := d.peek()
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
		d.at++
	}
	return r, true
}

// value and what it calls for a value within are most of the stack that one within another takes, so what is done only at
// the leaves is in functions of its own.
func (d *decoder) value(v reflect.Value, depth int) bool {
	if depth > maxDepth || !stackLeft() {
		return d.fail(tooDeep())
	}
	kind := v.Kind()
	if known, good := d.known(v, kind, depth); known {
		return good
	}
	switch kind {
	case reflect.Pointer:
		if v.IsNil() && !d.made(v) {
			return false
		}
		return d.value(v.Elem(), depth+1)
	case reflect.Struct:
		return d.object(v, depth)
	case reflect.Map:
		return d.mapping(v, depth)
	case reflect.Slice:
		return d.slice(v, depth)
	case reflect.Array:
		return d.array(v, depth)
	}
	return d.plain(v, kind, depth)
}

// known reads what is not read by its kind; whether it is such, and whether all is well.
//
//go:noinline
func (d *decoder) known(v reflect.Value, kind reflect.Kind, depth int) (known, good bool) {
	t := v.Type()
	switch {
	case t == rawType:
		return true, d.raw(v, depth)
	case t == timeType:
		return true, d.moment(v)
	}
	if kind != reflect.Interface && kind != reflect.Pointer && v.CanAddr() && v.CanInterface() && reflect.PointerTo(t).NumMethod() > 0 {
		if own, ok := v.Addr().Interface().(Unmarshaler); ok {
			return true, d.own(own, depth)
		}
	}
	if d.word("null") {
		switch kind {
		case reflect.Interface, reflect.Map, reflect.Slice, reflect.Pointer:
			if v.CanSet() {
				v.SetZero()
			}
		}
		return true, true // as encoding/json: what cannot be null stays as it is
	}
	if kind == reflect.Slice && d.peek() == '"' && t.Elem().Kind() == reflect.Uint8 {
		return true, d.bytes(v)
	}
	return false, true
}

// made makes what v is to point to.
//
//go:noinline
func (d *decoder) made(v reflect.Value) bool {
	t := v.Type().Elem()
	if !v.CanSet() {
		return d.fail("what is embedded by a pointer cannot be made: " + t.String() + " is not exported; embed it as it is")
	}
	v.Set(reflect.New(t))
	return true
}

//go:noinline
func (d *decoder) raw(v reflect.Value, depth int) bool {
	start := d.at
	if !d.skip(depth) {
		return false
	}
	v.SetBytes(append([]byte(nil), d.data[start:d.at]...))
	return true
}

//go:noinline
func (d *decoder) bytes(v reflect.Value) bool {
	s, ok := d.text()
	if !ok {
		return false
	}
	data, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return d.fail("this is no base64")
	}
	v.SetBytes(data)
	return true
}

//go:noinline
func (d *decoder) own(v Unmarshaler, depth int) bool {
	start := d.at
	if !d.skip(depth) {
		return false
	}
	if err := v.UnmarshalJSON(d.data[start:d.at]); err != nil {
		return d.fail(err.Error())
	}
	return true
}

//go:noinline
func (d *decoder) plain(v reflect.Value, kind reflect.Kind, depth int) bool {
	switch kind {
	case reflect.Interface:
		if v.NumMethod() > 0 {
			return d.fail("nothing can be read into a " + v.Type().String())
		}
		found, ok := d.any(depth)
		if ok {
			v.Set(reflect.ValueOf(found))
		}
		return ok
	case reflect.Bool:
		truth := d.word("true")
		if !truth && !d.word("false") {
			return d.unfit(v, depth)
		}
		v.SetBool(truth)
		return true
	case reflect.String:
		if d.peek() != '"' {
			return d.unfit(v, depth)
		}
		s, ok := d.text()
		v.SetString(s)
		return ok
	}
	return d.numeric(v, kind, depth)
}

// unfit says that the value which stands here is not for v.
func (d *decoder) unfit(v reflect.Value, depth int) bool {
	start := d.at
	if !d.skip(depth) {
		return false
	}
	found := string(d.data[start:d.at])
	if len(found) > 40 {
		found = found[:37] + "..."
	}
	d.at = start
	return d.fail(found + " does not fit into a " + v.Type().String())
}

func (d *decoder) numeric(v reflect.Value, kind reflect.Kind, depth int) bool {
	if c := d.peek(); c != '-' && (c < '0' || c > '9') {
		return d.unfit(v, depth)
	}
	start := d.at
	if !d.number() {
		return false
	}
	text := string(d.data[start:d.at])
	fits := false
	switch {
	case isSigned(kind):
		n, err := strconv.ParseInt(text, 10, 64)
		if fits = err == nil && !v.OverflowInt(n); fits {
			v.SetInt(n)
		}
	case isUnsigned(kind):
		n, err := strconv.ParseUint(text, 10, 64)
		if fits = err == nil && !v.OverflowUint(n); fits {
			v.SetUint(n)
		}
	case kind == reflect.Float32, kind == reflect.Float64:
		bits := 64
		if kind == reflect.Float32 {
			bits = 32
		}
		n, err := strconv.ParseFloat(text, bits)
		if fits = err == nil; fits {
			v.SetFloat(n)
		}
	default:
		return d.fail("nothing can be read into a " + v.Type().String())
	}
	if !fits {
		d.at = start
		return d.unfit(v, depth)
	}
	return true
}

//go:noinline
func (d *decoder) moment(v reflect.Value) bool {
	if d.word("null") {
		return true
	}
	if d.peek() != '"' {
		return d.unfit(v, 0)
	}
	s, ok := d.text()
	if !ok {
		return false
	}
	moment, ok := readMoment(s)
	if !ok {
		return d.fail("'" + s + "' is no time as RFC 3339 writes it")
	}
	v.Set(reflect.ValueOf(moment))
	return true
}

//go:noinline
func (d *decoder) object(v reflect.Value, depth int) bool {
	members := d.members(v, depth)
	if members == nil {
		return false
	}
	d.at++
	for i := 0; d.next(i == 0, '}'); i++ {
		name, ok := d.name()
		if !ok {
			return false
		}
		m, at := members.find(name, i), v
		if m != nil {
			at, ok = d.reach(v, m)
		}
		switch {
		case !ok:
		case m == nil:
			ok = d.skip(depth + 1)
		case m.quoted && d.peek() == '"':
			ok = d.quoted(at, depth+1)
		default:
			ok = d.value(at, depth+1)
		}
		if !ok {
			return d.inMember(name)
		}
	}
	return !d.failed()
}

// members tells the members of a struct; nil where there is no object for it.
//
//go:noinline
func (d *decoder) members(v reflect.Value, depth int) *members {
	if d.peek() != '{' {
		d.unfit(v, depth)
		return nil
	}
	found := membersOf(v.Type())
	if found.hidden {
		d.fail(hidden(v.Type()))
		return nil
	}
	return found
}

// reach finds a member of v, for which the embedded structs are made that it is in.
//
//go:noinline
func (d *decoder) reach(v reflect.Value, m *field) (reflect.Value, bool) {
	for i, x := range m.index {
		if i > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() && !d.made(v) {
				return v, false
			}
			v = v.Elem()
		}
		v = v.Field(x)
	}
	return v, true
}

// quoted reads a value that stands in a string.
//
//go:noinline
func (d *decoder) quoted(v reflect.Value, depth int) bool {
	s, ok := d.text()
	if !ok {
		return false
	}
	unquoted := &decoder{data: []byte(s)}
	if !unquoted.value(v, depth) || !unquoted.end() {
		d.fault = unquoted.fault
		return false
	}
	return true
}

//go:noinline
func (d *decoder) mapping(v reflect.Value, depth int) bool {
	if d.peek() != '{' {
		return d.unfit(v, depth)
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	d.at++
	for first := true; d.next(first, '}'); first = false {
		name, ok := d.name()
		if !ok {
			return false
		}
		element := reflect.New(v.Type().Elem()).Elem()
		if !d.value(element, depth+1) || !d.put(v, name, element) {
			return d.inElement(name)
		}
	}
	return !d.failed()
}

//go:noinline
func (d *decoder) put(v reflect.Value, name string, element reflect.Value) bool {
	key := reflect.New(v.Type().Key()).Elem()
	if !d.key(key, name) {
		return false
	}
	v.SetMapIndex(key, element)
	return true
}

func (d *decoder) key(key reflect.Value, name string) bool {
	fits := false
	switch k := key.Kind(); {
	case k == reflect.String:
		key.SetString(name)
		return true
	case isSigned(k):
		n, err := strconv.ParseInt(name, 10, 64)
		if fits = err == nil && !key.OverflowInt(n); fits {
			key.SetInt(n)
		}
	case isUnsigned(k):
		n, err := strconv.ParseUint(name, 10, 64)
		if fits = err == nil && !key.OverflowUint(n); fits {
			key.SetUint(n)
		}
	default:
		return d.fail("JSON's names are text, and a " + key.Type().String() + " is none")
	}
	return fits || d.fail("the name does not fit into a "+key.Type().String())
}

//go:noinline
func (d *decoder) slice(v reflect.Value, depth int) bool {
	if d.peek() != '[' {
		return d.unfit(v, depth)
	}
	d.at++
	t := v.Type()
	out := reflect.MakeSlice(t, 0, 0)
	for i := 0; d.next(i == 0, ']'); i++ {
		element := reflect.New(t.Elem()).Elem()
		if !d.value(element, depth+1) {
			return d.inItem(i)
		}
		out = reflect.Append(out, element)
	}
	if d.failed() {
		return false
	}
	v.Set(out)
	return true
}

//go:noinline
func (d *decoder) array(v reflect.Value, depth int) bool {
	if d.peek() != '[' {
		return d.unfit(v, depth)
	}
	d.at++
	i := 0
	for ; d.next(i == 0, ']'); i++ {
		ok := false
		if i < v.Len() {
			ok = d.value(v.Index(i), depth+1)
		} else {
			ok = d.skip(depth + 1)
		}
		if !ok {
			return d.inItem(i)
		}
	}
	for ; i < v.Len(); i++ {
		v.Index(i).SetZero()
	}
	return !d.failed()
}

// any reads what may be anything, as encoding/json does: maps, lists, text, float64, bool, nil.
func (d *decoder) any(depth int) (any, bool) {
	if depth > maxDepth || !stackLeft() {
		return nil, d.fail(tooDeep())
	}
	switch c := d.peek(); {
	case c == '"':
		return d.text()
	case c == '{':
		d.at++
		found := map[string]any{}
		for first := true; d.next(first, '}'); first = false {
			name, ok := d.name()
			if !ok {
				return nil, false
			}
			element, ok := d.any(depth + 1)
			if !ok {
				return nil, d.inElement(name)
			}
			found[name] = element
		}
		return found, !d.failed()
	case c == '[':
		d.at++
		found := []any{}
		for i := 0; d.next(i == 0, ']'); i++ {
			element, ok := d.any(depth + 1)
			if !ok {
				return nil, d.inItem(i)
			}
			found = append(found, element)
		}
		return found, !d.failed()
	case c == '-' || c >= '0' && c <= '9':
		start := d.at
		if !d.number() {
			return nil, false
		}
		text := string(d.data[start:d.at])
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, d.fail(text + " is too large")
		}
		return n, true
	case d.word("true"):
		return true, true
	case d.word("false"):
		return false, true
	case d.word("null"):
		return nil, true
	}
	return nil, d.fail("this is no JSON")
}
