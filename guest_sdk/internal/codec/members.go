package codec

import (
	"reflect"
	"strings"
)

// field is a member of a struct as JSON shows it.
type field struct {
	name      string
	index     []int
	omitEmpty bool
	omitZero  bool
	quoted    bool
	tagged    bool
}

type members struct {
	list   []field
	hidden bool // it holds something, and shows nothing of it
}

// find is the member of a name, or nil; likely is where it stands where JSON has the order of the struct.
func (m *members) find(name string, likely int) *field {
	if likely < len(m.list) && m.list[likely].name == name {
		return &m.list[likely]
	}
	for i := range m.list {
		if m.list[i].name == name {
			return &m.list[i]
		}
	}
	for i := range m.list {
		if strings.EqualFold(m.list[i].name, name) {
			return &m.list[i]
		}
	}
	return nil
}

func hidden(t reflect.Type) string {
	return "JSON would hold nothing of a " + t.String() + ": its fields are not exported; export them, or give it MarshalJSON and UnmarshalJSON"
}

var (
	known     = map[reflect.Type]*members{}
	knownLock lock
)

// membersOf tells the members of a struct, embedded ones' as their own, by Go's rules of who hides whom.
func membersOf(t reflect.Type) *members {
	knownLock.Lock()
	found := known[t]
	if found == nil {
		found = findMembers(t)
		known[t] = found
	}
	knownLock.Unlock()
	return found
}

func findMembers(t reflect.Type) *members {
	all, left := collect(t, nil, nil)
	found := &members{}
	for _, f := range all {
		if winner, ok := dominant(all, f.name); ok && sameWay(winner.index, f.index) {
			found.list = append(found.list, f)
		}
	}
	found.hidden = len(found.list) == 0 && !left && t.Size() > 0
	return found
}

// dominant is the one of all members called name that is nearest, and among those the one that is tagged so.
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

// collect lists what a struct and those it embeds have; left is whether a field is left out on purpose, by its tag.
func collect(t reflect.Type, way []int, within []reflect.Type) (all []field, left bool) {
	for _, outer := range within {
		if outer == t {
			return nil, false // it embeds itself
		}
	}
	within = append(within, t)
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		if tag == "-" {
			left = true
			continue
		}
		name, options, _ := strings.Cut(tag, ",")
		index := append(append(make([]int, 0, len(way)+1), way...), i)
		inner := f.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		embeds := f.Anonymous && inner.Kind() == reflect.Struct
		if embeds && name == "" && inner != timeType {
			more, also := collect(inner, index, within)
			all, left = append(all, more...), left || also
			continue
		}
		if f.PkgPath != "" && !embeds {
			continue // not exported, and what is embedded may have fields that are
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
			case "omitzero":
				one.omitZero = true
			case "string":
				one.quoted = isPlain(inner.Kind())
			}
		}
		all = append(all, one)
	}
	return all, left
}

func isPlain(k reflect.Kind) bool {
	return k == reflect.Bool || k == reflect.String || k >= reflect.Int && k <= reflect.Float64
}
