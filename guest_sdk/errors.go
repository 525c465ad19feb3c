package wasman

import (
	"context"
	"errors"
	"strconv"

	"wasman.dev/guest/internal/codec"
)

// Failure is an error with a type and details of its own. Returned from a workflow, it fails the run as such.
type Failure struct {
	Type         string
	Message      string // "" for the type, and what the cause says
	Details      any    // anything that JSON has a place for
	NonRetryable bool   // another attempt cannot help: for who started the run
	Cause        error  // what brought it about, or nil; what started the run is told as well, with type and details
}

// Error is the message.
func (f *Failure) Error() string {
	switch {
	case f.Message != "":
		return f.Message
	case f.Cause != nil:
		return f.Type + ": " + f.Cause.Error()
	}
	return f.Type
}

// Unwrap is its cause.
func (f *Failure) Unwrap() error { return f.Cause }

// Fail is a failure of the run that a program can tell by its type.
func Fail(type_ string) error { return &Failure{Type: type_} }

// endOf is why ctx has ended: its cause, which is what ctx.Err() says as well, whatever it is.
func endOf(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause == nil || cause == err {
		return err
	}
	return &endError{cause, err}
}

type endError struct{ cause, err error }

func (e *endError) Error() string   { return e.cause.Error() }
func (e *endError) Unwrap() []error { return []error{e.cause, e.err} }

// cancelRequest is why a run's context ends when somebody has asked that the run be cancelled.
type cancelRequest struct{ reason string }

func (e *cancelRequest) Error() string {
	if e.reason == "" {
		return "the run is to be cancelled"
	}
	return "the run is to be cancelled: " + e.reason
}

func (e *cancelRequest) Is(target error) bool { return target == context.Canceled }

// ErrorOf finds the first T in err and what it wraps, joined errors included. It does what errors.As does, which a guest
// that uses encoding/json must not have under TinyGo 0.39.
func ErrorOf[T error](err error) (found T, ok bool) {
	if err == nil {
		return found, false
	}
	if found, ok = err.(T); ok {
		return found, true
	}
	switch wrapper := err.(type) {
	case interface{ Unwrap() error }:
		return ErrorOf[T](wrapper.Unwrap())
	case interface{ Unwrap() []error }:
		for _, one := range wrapper.Unwrap() {
			if found, ok = ErrorOf[T](one); ok {
				return found, true
			}
		}
	}
	return found, false
}

// failure is what the host is told of an error, as docs/abi.md has it.
type failure struct {
	Type         string   `json:"type"`
	Message      string   `json:"message"`
	Details      JSON     `json:"details,omitempty"`
	NonRetryable bool     `json:"non_retryable,omitempty"`
	Activity     string   `json:"activity,omitempty"`
	Attempt      int      `json:"attempt,omitempty"`
	Cause        *failure `json:"cause,omitempty"`

	from error
}

// mostCauses is how many failures of one error the host is told of; the message has them all.
const mostCauses = 8

// failuresIn adds what in err has a type: what wraps before what it wraps, and what is joined in its order.
func failuresIn(err error, found []*failure) []*failure {
	if err == nil || len(found) == mostCauses {
		return found
	}
	one := &failure{Message: err.Error(), from: err}
	switch is := err.(type) {
	case *Failure:
		one.Type, one.NonRetryable = is.Type, is.NonRetryable
		if is.Details != nil {
			one.Details = detailsOf(is.Details)
		}
	case *ActivityError:
		one.Type, one.Message, one.Details, one.NonRetryable = is.Type, is.Message, is.Details, is.NonRetryable
		one.Activity, one.Attempt = is.Activity, is.Attempt
	default:
		if err == context.DeadlineExceeded {
			one.Type = "DeadlineExceeded"
		} else if _, ended := err.(*endError); (ended || err == context.Canceled) && run.told && errors.Is(err, context.Canceled) {
			one.Type = TypeCancelled
			return append(found, one)
		}
	}
	if one.Type != "" {
		found = append(found, one)
	}
	switch wrapper := err.(type) {
	case interface{ Unwrap() error }:
		return failuresIn(wrapper.Unwrap(), found)
	case interface{ Unwrap() []error }:
		for _, one := range wrapper.Unwrap() {
			found = failuresIn(one, found)
		}
	}
	return found
}

func detailsOf(value any) JSON {
	data, err := codec.Marshal(value)
	if err != nil {
		return codec.AppendString(nil, "(the details cannot be written: "+err.Error()+")")
	}
	return data
}

// failureOf is what the host is told when a workflow returns err: type and details of the first failure in it, the
// message of the whole, and as the cause the failures behind the first.
func failureOf(err error) []byte {
	said := &failure{Type: "Error"}
	found := failuresIn(err, nil)
	if len(found) > 0 {
		said, found = found[0], found[1:]
		if activity, ok := said.from.(*ActivityError); ok && run.told && activity.Type == TypeCancelled {
			said = &failure{Type: TypeCancelled}
		} else if ok {
			said = &failure{Type: "ActivityError", Details: detailsOf(activity)}
			for cause := activity.Cause; cause != nil && len(found) > 0; cause = cause.Cause {
				found = found[1:] // which the details have
			}
		}
	}
	said.Message = err.Error()
	for last := said; len(found) > 0; found = found[1:] {
		last.Cause = found[0]
		last = last.Cause
	}
	data, wrong := codec.Marshal(said)
	if wrong != nil { // JSON that somebody else has made is none
		data, _ = codec.Marshal(&failure{Type: said.Type, Message: said.Message, Details: detailsOf(wrong.Error())})
	}
	return data
}

// Saga undoes what was done where the rest of it fails.
type Saga struct {
	ctx  context.Context
	undo []func(ctx context.Context) error
}

// NewSaga begins one. Close it by defer.
func NewSaga(ctx context.Context) *Saga { return &Saga{ctx: ctx} }

// Add says how to undo what has just been done.
func (s *Saga) Add(undo func(ctx context.Context) error) { s.undo = append(s.undo, undo) }

// Close undoes everything, the last thing first, where *err is an error: under a context that no cancel ends, each
// although others fail. What fails joins *err, behind it: errors.Is and ErrorOf find both.
func (s *Saga) Close(err *error) {
	if *err == nil {
		return
	}
	ctx := context.WithoutCancel(s.ctx)
	failed := []error{*err}
	for i := len(s.undo) - 1; i >= 0; i-- {
		if wrong := s.undo[i](ctx); wrong != nil {
			failed = append(failed, &compensationError{i + 1, wrong})
		}
	}
	s.undo = nil
	if len(failed) > 1 {
		*err = errors.Join(failed...)
	}
}

type compensationError struct {
	number int
	err    error
}

func (e *compensationError) Error() string {
	return "compensation " + strconv.Itoa(e.number) + " failed: " + e.err.Error()
}

func (e *compensationError) Unwrap() error { return e.err }
