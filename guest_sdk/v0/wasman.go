// Package wasman is what a guest written in Go and compiled by TinyGo speaks to its host with: activities, input and
// result, streams, time.
//
// A guest registers its body from an init function, because main never runs in a reactor:
//
//	func init() { wasman.Main(run) }
//
//	func run() error {
//		var name, greeting string
//		if err := wasman.Input(&name); err != nil {
//			return err
//		}
//		if err := wasman.Call("greet", name, &greeting); err != nil {
//			return err
//		}
//		return wasman.Result(greeting)
//	}
//
//	func main() {}
//
// After a crash the host runs such a guest again from the start and answers its calls from the log, so between calls it
// must compute the same again: time from Now, order never from the outside. A guest that is to continue from its last
// checkpoint instead is written with package steps.
//
// Values cross the border as JSON. Nothing in this package uses errors.As: TinyGo 0.39 panics in every json.Marshal of
// a program that has both, so a guest uses ErrorOf instead.
package wasman

import (
	"time"

	"wasman.dev/guest/v0/internal/abi"
)

// Now is the time of the host's last delivery: durable, the same when the host runs the guest again, and constant
// between two calls.
func Now() time.Time { return time.Unix(0, abi.Time()) }

// Checkpoint lets the host keep the guest's memory as it is now. Only a guest that declares itself re-entrant is ever
// restored from it, and then its body is entered from the top: see package steps. In any other guest it is a hint.
func Checkpoint() { abi.Checkpoint() }

// body is what Main registered.
var body func() error

// Main registers the guest's body. It is called once, from an init function.
func Main(run func() error) {
	if body != nil {
		panic("wasman: Main was called twice: a guest has one body")
	}
	body = run
}

// runBody is the export run. A body that returns an error fails the run; Fail does not return then.
func runBody() {
	if body == nil {
		Fail("NoBody", "the guest registered no body: call wasman.Main or steps.Run from an init function", nil)
	}
	if err := body(); err != nil {
		failure := failureOf(err)
		Fail(failure.Type, failure.Message, failure.Details)
	}
}
