// Package steps writes a guest as a list of steps that the host can resume in the middle.
//
//	func init() {
//		steps.Run(
//			steps.Once("open", open),
//			steps.Repeat("rows", nextBatch),
//			steps.Once("finish", finish),
//		)
//	}
//
// Progress is a package-level variable, as the guest's own data must be: linear memory is what the host keeps at a
// checkpoint, and there is one after each step. To resume, the host restores memory as it was at the last one and
// enters the guest from the top, which goes on with the first step that is not done. Nothing on the stack survives: what
// one step leaves for the next is in package-level variables.
//
// The step that a crash interrupts is begun again, in memory that knows nothing of the first try, and its calls are
// answered from the host's log as far as that goes. So between its calls a step computes the same again.
//
// A guest that imports this package declares by the export wasman_reentrant that it may be resumed so.
package steps

import (
	wasman "wasman.dev/guest/v0"
	"wasman.dev/guest/v0/internal/abi"
)

// Step is one step, made by Once or Repeat.
type Step struct {
	name string
	do   func() (more bool, err error)
}

// Once is a step that is done when do returns.
func Once(name string, do func() error) Step {
	return Step{name, func() (bool, error) { return false, do() }}
}

// Repeat is a run of steps, with a checkpoint after each: do is called until it reports that there is no more.
func Repeat(name string, do func() (more bool, err error)) Step {
	return Step{name, do}
}

// All of it is set up by init, before the first entry: an entry allocates nothing here, so a resumed guest's heap is as
// it would have been.
var (
	list    []Step
	current int // the first step that is not done
)

// Run registers the steps as the guest's body. It is called once, from an init function. A step that returns an error
// fails the run, with the step's name before the message.
func Run(steps ...Step) {
	list = append(list, steps...)
	wasman.Main(run)
}

// run is entered at the start and after every restore. The last step needs no checkpoint: nothing is left to skip.
func run() error {
	for current < len(list) {
		more, err := list[current].do()
		if err != nil {
			return &stepError{list[current].name, err}
		}
		if !more {
			current++
		}
		if current < len(list) {
			abi.Checkpoint()
		}
	}
	return nil
}

// stepError says in which step an error arose.
type stepError struct {
	step  string
	cause error
}

func (e *stepError) Error() string { return e.step + ": " + e.cause.Error() }
func (e *stepError) Unwrap() error { return e.cause }
