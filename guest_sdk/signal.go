package wasman

import (
	"context"
	"slices"

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
	op, err := receive(ctx, s.name)
	if err == nil {
		err = s.read(op, &value)
	}
	return value, err
}

func (s *Signal[T]) read(op *operation, value *T) error {
	return fits("a value of signal", s.name, decode(op.body, value))
}

func receive(ctx context.Context, name string) (*operation, error) {
	if ctx.Err() == nil {
		op := takeBack(name)
		if op != nil {
			return op, nil
		}
		op = ask(abi.Receive, name, []byte(name), nil)
		select {
		case <-op.done:
			return op, nil
		case <-ctx.Done():
		}
		op.giveUp(true)
		select {
		case <-op.done: // it came at the same moment, and is not to be lost
			return op, nil
		default:
		}
	}
	return nil, &callError{"signal " + name, endOf(ctx)}
}

// Channel gives the values one by one, for select, until ctx ends; then it is closed. One value is received ahead; where
// nobody has taken it when ctx ends, the next Receive gets it. Values that do not fit are logged and passed over.
func (s *Signal[T]) Channel(ctx context.Context) <-chan T {
	values := make(chan T)
	go func() {
		defer close(values)
		for {
			op, err := receive(ctx, s.name)
			if err != nil {
				return
			}
			var value T
			if err := s.read(op, &value); err != nil {
				Log(Warning, err.Error())
				continue
			}
			select {
			case values <- value:
			case <-ctx.Done():
				op.giveBack()
				return
			}
		}
	}()
	return values
}

// giveBack has the value that a receive was answered with received by another one: the oldest that waits, or the next.
func (op *operation) giveBack() {
	run.lock.Lock()
	defer run.lock.Unlock()
	var oldest *operation
	for _, other := range run.open {
		if other.receives && other.name == op.name && (oldest == nil || other.number < oldest.number) {
			oldest = other
		}
	}
	if oldest == nil {
		at := len(run.back)
		for at > 0 && run.back[at-1].number > op.number { // as they were asked for, so they were sent
			at--
		}
		run.back = slices.Insert(run.back, at, op)
		return
	}
	delete(run.open, oldest.number)
	appendFrame(abi.Cancel, oldest.number, nil, nil)
	oldest.body = op.body
	close(oldest.done)
}

// takeBack is the oldest value of a signal that was given back, or nil.
func takeBack(name string) *operation {
	run.lock.Lock()
	defer run.lock.Unlock()
	for i, op := range run.back {
		if op.name == name {
			run.back = slices.Delete(run.back, i, i+1)
			return op
		}
	}
	return nil
}
