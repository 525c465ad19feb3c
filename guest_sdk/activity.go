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
	if err := ctx.Err(); err != nil {
		return failedFuture[Out](a.name, endOf(ctx))
	}
	request, err := encode(input)
	if err != nil {
		return failedFuture[Out](a.name, errors.New("the request cannot be written: "+err.Error()))
	}
	op := ask(abi.Call, a.name, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(a.name)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(a.options)))
		b = append(append(b, a.name...), a.options...)
		return append(b, request...)
	})
	return &Future[Out]{op: op, ctx: ctx}
}

// Future is a call that was started.
type Future[T any] struct {
	op  *operation
	ctx context.Context
	err error
}

func failedFuture[T any](name string, err error) *Future[T] {
	op := &operation{name: name, done: make(chan struct{})}
	close(op.done)
	return &Future[T]{op: op, err: &callError{name, err}}
}

// Done is closed when there is a result, or a failure: for select.
func (f *Future[T]) Done() <-chan struct{} { return f.op.done }

// Get waits for the result. Where ctx ends before, or the context that the call was started with, the activity is
// cancelled; what it gives all the same is the result.
func (f *Future[T]) Get(ctx context.Context) (T, error) {
	var result T
	if f.err != nil {
		return result, f.err
	}
	ended := ctx
	select {
	case <-f.op.done:
	default:
		select {
		case <-f.op.done:
		case <-ctx.Done():
			f.op.giveUp(false)
			<-f.op.done
		case <-f.ctx.Done():
			ended = f.ctx
			f.op.giveUp(false)
			<-f.op.done
		}
	}
	if f.op.failed {
		failure := activityError(f.op.name, f.op.body)
		if failure.Type == TypeCancelled && ended.Err() != nil {
			return result, &callError{f.op.name, endOf(ended)}
		}
		return result, failure
	}
	if err := decode(f.op.body, &result); err != nil {
		return result, errors.New("wasman: the result of activity '" + f.op.name + "' does not fit: " + err.Error())
	}
	return result, nil
}

// Cancel asks that the activity be cut short; Get tells what became of it.
func (f *Future[T]) Cancel() {
	if f.err == nil {
		f.op.giveUp(false)
	}
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
	Type         string         `json:"type"`     // the exception's type
	Message      string         `json:"message"`  // its text
	Activity     string         `json:"activity"` // the activity's name
	Attempt      int            `json:"attempt"`  // the last attempt, from 1
	Details      JSON           `json:"details"`  // JSON, or nothing
	NonRetryable bool           `json:"non_retryable"`
	Cause        *ActivityError `json:"cause,omitempty"` // what brought it about, or nil
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
