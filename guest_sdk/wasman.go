// Package wasman is what a durable workflow in Go is written with. A workflow is ordinary Go: goroutines, channels,
// select, timers, loops without end. Between two things that happen to it, the run is only pages in a store; it comes
// back in another process, in the middle of whatever it was doing, and nothing is executed twice.
//
//	var (
//		greet = wasman.NewActivity[string, string]("greet")
//		_     = wasman.Workflow("hello", hello)
//	)
//
//	func hello(ctx context.Context, name string) (string, error) {
//		wasman.Sleep(ctx, 24*time.Hour)
//		return greet.Do(ctx, name)
//	}
//
//	func main() {}
//
// Workflows are registered at package level: main never runs. Activities are Python functions of the application. Every
// value crosses the border as JSON, and a []byte as it is. The clock is the host's: it stands still while the guest
// computes, and time.Sleep, time.After, tickers and context.WithTimeout are durable.
//
// Build it by `wasman build DIR`, with TinyGo or standard Go.
package wasman

import (
	"context"
	"strings"

	"wasman.dev/guest/internal/codec"
)

// None is no input, or no result.
type None struct{}

// JSON is JSON as it is, neither read nor written.
type JSON = codec.Raw

// Registration is what Workflow gives, so that it can stand at package level.
type Registration struct{ name string }

var workflows = map[string]func(ctx context.Context, input []byte) ([]byte, error){}

// Workflow registers a workflow under its name, at package level:
//
//	var _ = wasman.Workflow("order", order)
//
// Its input and its result are of any type that JSON has a place for, or []byte, or None.
func Workflow[In, Out any](name string, run func(ctx context.Context, input In) (Out, error)) Registration {
	if name == "" {
		panic("wasman: a workflow has a name")
	}
	if _, taken := workflows[name]; taken {
		panic("wasman: two workflows are registered as '" + name + "'")
	}
	workflows[name] = func(ctx context.Context, given []byte) ([]byte, error) {
		var input In
		if err := decode(given, &input); err != nil {
			return nil, &Failure{Type: "BadInput", Message: "the input of workflow '" + name + "' does not fit: " + err.Error()}
		}
		out, err := run(ctx, input)
		if err != nil {
			return nil, err
		}
		result, err := encode(out)
		if err != nil {
			return nil, &Failure{Type: "BadResult", Message: "the result of workflow '" + name + "' cannot be written: " + err.Error()}
		}
		return result, nil
	}
	return Registration{name}
}

// chosen is the workflow that a run is of: the entry that its application names, else the one of its own name, else the
// only one there is.
func chosen(entry, workflow string) (func(ctx context.Context, input []byte) ([]byte, error), error) {
	if entry != "" {
		if run := workflows[entry]; run != nil {
			return run, nil
		}
		return nil, unknownWorkflow(entry)
	}
	if run := workflows[workflow]; run != nil {
		return run, nil
	}
	if len(workflows) == 1 {
		for _, run := range workflows {
			return run, nil
		}
	}
	return nil, unknownWorkflow(workflow)
}

func unknownWorkflow(name string) error {
	var names []string
	for known := range workflows { // sorted as they come: package slices would be a hundredth of a small guest
		names = append(names, "'"+known+"'")
		for i := len(names) - 1; i > 0 && names[i] < names[i-1]; i-- {
			names[i], names[i-1] = names[i-1], names[i]
		}
	}
	there := "it registers none"
	if len(names) > 0 {
		there = "it registers " + strings.Join(names, ", ")
	}
	return &Failure{Type: "UnknownWorkflow", Message: "the module has no workflow '" + name + "': " + there}
}

// encode writes a payload: bytes as they are, no bytes for None, JSON else.
func encode[T any](value T) ([]byte, error) {
	switch v := any(value).(type) {
	case []byte:
		return v, nil
	case None:
		return nil, nil
	}
	return codec.Marshal(value)
}

// decode reads a payload; one of no bytes leaves the value as it is.
func decode[T any](data []byte, into *T) error {
	switch v := any(into).(type) {
	case *[]byte:
		*v = data
		return nil
	case *None:
		return nil
	}
	if len(data) == 0 {
		return nil
	}
	return codec.Unmarshal(data, into)
}
