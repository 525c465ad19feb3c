package codec

import (
	"reflect"
	"strings"
	"sync"
)

// field is a member of a struct as JSON shows it.
type field struct {
	name      string
	index     []int
	omitEmpty bool
	quoted    bool
	tagged    bool
}

type fields struct {
	list   []field
	byName map[string]int
}

var (
	known     = map[reflect.Type]*fields{}
	knownLock sync.Mutex // tests run goroutines at the same time; guests do not
)

// fieldsOf tells the members of a struct, embedded ones' as their own, by Go's rules of who hides whom.
func fieldsOf(t reflect.Type) *fields {
	knownLock.Lock()
	defer knownLock.Unlock()
	if found := known[t]; found != nil {
		return found
	}
	all := collect(t, nil, nil)
	found := &fields{byName: make(map[string]int, len(all))}
	for _, f := range all {
		if winner, ok := dominant(all, f.name); ok && sameWay(winner.index, f.index) {
			found.byName[f.name] = len(found.list)
			found.list = append(found.list, f)
		}
	}
	known[t] = found
	return found
}

// find gives the member that a name in JSON means, exactly or else whatever its case; nil where there is none.
//
//go:noinline
func (f *fields) find(name string) *field {
	if i, ok := f.byName[name]; ok {
		return &f.list[i]
	}
	for i := range f.list {
		if strings.EqualFold(f.list[i].name, name) {
			return &f.list[i]
		}
	}
	return nil
}

// dominant is the one of all fields called name that is nearest, and among those the one that is tagged so.
func dominant(all []field, name string) (field, bool) {
	var best field
	count := 0
	for _, f := range all {
		if f.name != name {
			continue
		}
		switch {
		case count == 0 || len(f.index) < len(best.index) || len(f.index) == len(best.index) && f.tagged && !best.tagged:
			best, count = f, 1
		case len(f.index) == len(best.index) && f.tagged == best.tagged:
			count++
		}
	}
	return best, count == 1
}

func sameWay(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func collect(t reflect.Type, way []int, within []reflect.Type) []field {
	for _, outer := range within {
		if outer == t {
			return nil // it embeds itself
		}
	}
	within = append(within, t)
	var all []field
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		if tag == "-" {
			continue
		}
		name, options, _ := strings.Cut(tag, ",")
		index := append(append(make([]int, 0, len(way)+1), way...), i)
		inner := f.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if f.Anonymous && name == "" && inner.Kind() == reflect.Struct && inner != timeType {
			if f.PkgPath == "" || f.Type.Kind() == reflect.Struct {
				all = append(all, collect(inner, index, within)...)
			}
			continue
		}
		if f.PkgPath != "" {
			continue // not exported
		}
		one := field{name: name, index: index, tagged: name != ""}
		if name == "" {
			one.name = f.Name
		}
		for options != "" {
			var option string
			option, options, _ = strings.Cut(options, ",")
			switch option {
			case "omitempty":
				one.omitEmpty = true
			case "string":
				one.quoted = isPlain(inner.Kind())
			}
		}
		all = append(all, one)
	}
	return all
}

func isPlain(k reflect.Kind) bool {
	return k == reflect.Bool || k == reflect.String || k >= reflect.Int && k <= reflect.Float64
}
