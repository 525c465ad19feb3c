package wasman

import (
	"context"

	"wasman.dev/guest/internal/abi"
)

// Signal is what is sent to a run from outside, by name. Make it once, at package level, by NewSignal. The host keeps
// what nobody receives yet, in the order in which it came.
type Signal[T any] struct{ name string }

// NewSignal names a signal and its values.
func NewSignal[T any](name string) *Signal[T] { return &Signal[T]{name} }

// Receive waits for the oldest value that nobody has received. Where ctx ends before, nothing is taken, and the error is
// that of ctx.
func (s *Signal[T]) Receive(ctx context.Context) (T, error) {
	var value T
	body, err := receive(ctx, s.name)
	if err == nil {
		err = fits("a value of signal", s.name, decode(body, &value))
	}
	return value, err
}

func receive(ctx context.Context, name string) ([]byte, error) {
	if ctx.Err() == nil {
		op := ask(abi.Receive, name, []byte(name), nil)
		select {
		case <-op.done:
			return op.body, nil
		case <-ctx.Done():
		}
		op.giveUp(true)
		select {
		case <-op.done: // it came at the same moment, and is not to be lost
			return op.body, nil
		default:
		}
	}
	return nil, &callError{"signal " + name, endOf(ctx)}
}

// Channel gives the values one by one, for select, until ctx ends; then it is closed. One value is received ahead.
// Values that do not fit are logged and passed over.
func (s *Signal[T]) Channel(ctx context.Context) <-chan T {
	values := make(chan T)
	go func() {
		defer close(values)
		for {
			value, err := s.Receive(ctx)
			switch {
			case ctx.Err() != nil && err != nil:
				return
			case err != nil:
				Log(Warning, err.Error())
				continue
			}
			select {
			case values <- value:
			case <-ctx.Done():
				return
			}
		}
	}()
	return values
}
