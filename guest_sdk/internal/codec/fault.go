package codec

import (
	"errors"
	"strconv"
)

// fault is what is wrong with a value, and where in it. The place is put together on the way out, so that it costs
// nothing where nothing is wrong.
type fault struct {
	what string // "" where nothing is wrong
	path string
}

// is notes what is wrong with the value at hand; false, to be returned.
func (f *fault) is(what string) bool {
	f.what, f.path = what, ""
	return false
}

// inMember says that it is in a member; false, to be returned.
func (f *fault) inMember(name string) bool {
	if f.path != "" && f.path[0] != '[' {
		name += "."
	}
	f.path = name + f.path
	return false
}

// inElement says that it is in an element of a map or a list; false, to be returned.
func (f *fault) inElement(key string) bool {
	return f.inMember("[" + key + "]")
}

// inItem says that it is in an element of a list; false, to be returned.
func (f *fault) inItem(i int) bool { return f.inElement(strconv.Itoa(i)) }

func (f *fault) err() error {
	if f.path == "" {
		return errors.New(f.what)
	}
	return errors.New(f.path + ": " + f.what)
}

// maxDepth is how many values may lie within each other: a ring of pointers must end somewhere.
const maxDepth = 200

func tooDeep() string {
	if stackLeft() {
		return "values lie within each other more than " + strconv.Itoa(maxDepth) + " deep"
	}
	return "values lie within each other too deep for the goroutine's stack; `wasman build --stack-size 64KB` makes it larger"
}
