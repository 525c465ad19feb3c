package wasman

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"time"

	"wasman.dev/guest/internal/abi"
	"wasman.dev/guest/internal/codec"
)

// Activity is a function of the application, called by its name. Make it once, at package level, by NewActivity.
type Activity[In, Out any] struct {
	name    string
	options []byte
}

// Option is in what the calls of an activity differ from how the application has registered it.
type Option func(o *options)

type options struct {
	Attempts        *int64   `json:"maximum_attempts,omitempty"`
	Initial         *int64   `json:"initial_interval,omitempty"`
	Maximum         *int64   `json:"maximum_interval,omitempty"`
	Factor          *float64 `json:"backoff,omitempty"`
	StartToClose    *int64   `json:"start_to_close,omitempty"`
	ScheduleToClose *int64   `json:"schedule_to_close,omitempty"`
	ScheduleToStart *int64   `json:"schedule_to_start,omitempty"`
	Heartbeat       *int64   `json:"heartbeat,omitempty"`
}

func duration(to **int64, d time.Duration) {
	n := int64(d)
	*to = &n
}

// Retries is how many attempts there are at most; 0 is as many as it takes.
func Retries(attempts int) Option {
	n := int64(attempts)
	return func(o *options) { o.Attempts = &n }
}

// Backoff is how long to wait between attempts: at first, at most, and the factor from one wait to the next.
func Backoff(initial, maximum time.Duration, factor float64) Option {
	return func(o *options) {
		duration(&o.Initial, initial)
		duration(&o.Maximum, maximum)
		o.Factor = &factor
	}
}

// Timeout is how long one attempt may take.
func Timeout(d time.Duration) Option {
	return func(o *options) { duration(&o.StartToClose, d) }
}

// ScheduleToClose is how long the call may take, with all attempts and the waits between them.
func ScheduleToClose(d time.Duration) Option {
	return func(o *options) { duration(&o.ScheduleToClose, d) }
}

// ScheduleToStart is how long an attempt may wait until it begins.
func ScheduleToStart(d time.Duration) Option {
	return func(o *options) { duration(&o.ScheduleToStart, d) }
}

// Heartbeat is how long an attempt may give no heartbeat.
func Heartbeat(d time.Duration) Option {
	return func(o *options) { duration(&o.Heartbeat, d) }
}

// NewActivity names an activity, its input and its result. None stands for either that there is none.
func NewActivity[In, Out any](name string, with ...Option) *Activity[In, Out] {
	a := &Activity[In, Out]{name: name}
	if len(with) > 0 {
		var o options
		for _, option := range with {
			option(&o)
		}
		encoded, err := codec.Marshal(o)
		if err != nil {
			panic("wasman: an option of activity '" + name + "' makes no sense: " + err.Error())
		}
		a.options = encoded
	}
	return a
}

// Do calls the activity and waits for its result. An activity that has failed for good is an *ActivityError. Where ctx
// ends before, the activity is cancelled, and when it has stopped the error is that of ctx.
func (a *Activity[In, Out]) Do(ctx context.Context, input In) (Out, error) {
	return a.Start(ctx, input).Get(ctx)
}

// Start calls the activity without waiting for it.
func (a *Activity[In, Out]) Start(ctx context.Context, input In) *Future[Out] {
	request, err := encode(input)
	return &Future[Out]{startCall(ctx, a.name, a.options, request, err)}
}

// Future is a call that was started.
type Future[T any] struct{ call }

// Done is closed when there is a result, or a failure: for select.
func (f *Future[T]) Done() <-chan struct{} { return f.op.done }

// Get waits for the result. Where ctx ends before, or the context that the call was started with, the activity is
// cancelled; what it gives all the same is the result.
func (f *Future[T]) Get(ctx context.Context) (T, error) {
	var result T
	body, err := f.wait(ctx)
	if err == nil {
		err = fits("the result of activity", f.op.name, decode(body, &result))
	}
	return result, err
}

// Cancel asks that the activity be cut short; Get tells what became of it.
func (f *Future[T]) Cancel() {
	if f.err == nil {
		f.op.giveUp(false)
	}
}

// call is all of a Future that does not depend on the result's type: guests have one of it, and not one for each activity.
type call struct {
	op  *operation
	ctx context.Context
	err error // why it was not made
}

func startCall(ctx context.Context, name string, options, request []byte, wrong error) call {
	if ctx.Err() != nil {
		wrong = endOf(ctx)
	} else if wrong != nil {
		wrong = errors.New("the request cannot be written: " + wrong.Error())
	}
	if wrong != nil {
		op := &operation{name: name, done: make(chan struct{})}
		close(op.done)
		return call{op: op, err: &callError{name, wrong}}
	}
	head := make([]byte, 8, 8+len(name)+len(options))
	binary.LittleEndian.PutUint32(head, uint32(len(name)))
	binary.LittleEndian.PutUint32(head[4:], uint32(len(options)))
	head = append(append(head, name...), options...)
	return call{op: ask(abi.Call, name, head, request), ctx: ctx}
}

// wait gives what the host has answered.
func (c *call) wait(ctx context.Context) ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	ended := ctx
	select {
	case <-c.op.done:
	default:
		select {
		case <-c.op.done:
		case <-ctx.Done():
			c.op.giveUp(false)
			<-c.op.done
		case <-c.ctx.Done():
			ended = c.ctx
			c.op.giveUp(false)
			<-c.op.done
		}
	}
	if !c.op.failed {
		return c.op.body, nil
	}
	failure := activityError(c.op.name, c.op.body)
	if failure.Type == TypeCancelled && ended.Err() != nil {
		return nil, &callError{c.op.name, endOf(ended)}
	}
	return nil, failure
}

// fits says whose value it is that did not fit.
func fits(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return errors.New("wasman: " + what + " '" + name + "' does not fit: " + err.Error())
}

// callError is a call that was not made, or not finished.
type callError struct {
	name string
	err  error
}

func (e *callError) Error() string { return e.name + ": " + e.err.Error() }
func (e *callError) Unwrap() error { return e.err }

// ActivityError is the failure of an activity after its last attempt.
type ActivityError struct {
	Type         string         `json:"type"`                    // the exception's type
	Message      string         `json:"message"`                 // its text
	Activity     string         `json:"activity,omitempty"`      // the activity's name; a cause has none
	Attempt      int            `json:"attempt,omitempty"`       // the last attempt, from 1
	Details      JSON           `json:"details,omitempty"`       // JSON, or nothing
	NonRetryable bool           `json:"non_retryable,omitempty"` // no other attempt followed, because it could not help
	Cause        *ActivityError `json:"cause,omitempty"`         // what brought it about, or nil
}

// TypeCancelled is the type of an activity's failure that was cut short.
const TypeCancelled = "Cancelled"

// Error says which activity failed, when and why.
func (e *ActivityError) Error() string {
	text := e.Type + ": " + e.Message
	if e.Activity == "" {
		return text
	}
	where := e.Activity + " failed"
	if e.Attempt > 0 {
		where += " at attempt " + strconv.Itoa(e.Attempt)
	}
	return where + ": " + text
}

// Unwrap is its cause.
func (e *ActivityError) Unwrap() error {
	if e.Cause == nil {
		return nil
	}
	return e.Cause
}

// Is says that an activity that was cut short was cancelled.
func (e *ActivityError) Is(target error) bool {
	return target == context.Canceled && e.Type == TypeCancelled
}

func activityError(name string, data []byte) *ActivityError {
	failed := &ActivityError{}
	if err := codec.Unmarshal(data, failed); err != nil {
		failed = &ActivityError{Type: "Unknown", Message: string(data)}
	}
	if failed.Activity == "" {
		failed.Activity = name
	}
	return failed
}
