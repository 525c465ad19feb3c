package wasman

import (
	"context"
	"errors"
	"strconv"

	"wasman.dev/guest/internal/codec"
)

// Failure is an error with a type and details of its own. Returned from a workflow, it fails the run as such.
type Failure struct {
	Type    string
	Message string
	Details any // anything that JSON has a place for
}

// Error is the message.
func (f *Failure) Error() string { return f.Message }

// Fail is a failure of the run that a program can tell by its type.
func Fail(type_ string) error { return &Failure{Type: type_, Message: type_} }

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

type failure struct {
	Type    string `json:"type"`
	Message string `json:"message"`
	Details any    `json:"details,omitempty"`
}

// failureOf is what the host is told when a workflow returns err: type and details of the first error that has them, the
// message of the whole.
func failureOf(err error) []byte {
	said := failure{Type: "Error", Message: err.Error()}
	if own, ok := ErrorOf[*Failure](err); ok {
		said.Type, said.Details = own.Type, own.Details
	} else if run.told && errors.Is(err, context.Canceled) {
		said.Type = TypeCancelled
	} else if activity, ok := ErrorOf[*ActivityError](err); ok {
		said.Type, said.Details = "ActivityError", activity
	} else if errors.Is(err, context.DeadlineExceeded) {
		said.Type = "DeadlineExceeded"
	}
	data, wrong := codec.Marshal(said)
	if wrong != nil {
		said.Details = "(the details cannot be written: " + wrong.Error() + ")"
		data, _ = codec.Marshal(said)
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
// although others fail. What fails joins *err.
func (s *Saga) Close(err *error) {
	if *err == nil {
		return
	}
	ctx := context.WithoutCancel(s.ctx)
	failed := []error{*err}
	for i := len(s.undo) - 1; i >= 0; i-- {
		if wrong := s.undo[i](ctx); wrong != nil {
			failed = append(failed, errors.New("compensation "+strconv.Itoa(i+1)+" failed: "+wrong.Error()))
		}
	}
	s.undo = nil
	if len(failed) > 1 {
		*err = errors.Join(failed...)
	}
}
