package wasman_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"wasman.dev/guest"
	"wasman.dev/guest/wasmantest"
)

func TestAFailedActivityTellsWhatHasHappened(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		wasmantest.Handle(h, count, func(context.Context, int) (int, error) {
			return 0, &wasman.Failure{Type: "Declined", Message: "no money", Details: map[string]int{"cents": 3}}
		})
		err := play(h, func(ctx context.Context) error {
			_, err := count.Do(ctx, 1)
			return fmt.Errorf("charging: %w", err)
		})
		var failed *wasman.ActivityError
		if !errors.As(err, &failed) || failed.Type != "Declined" || string(failed.Details) != `{"cents":3}` {
			t.Fatal(err)
		}
		if err.Error() != "charging: count failed at attempt 1: Declined: no money" {
			t.Fatal(err)
		}
		if errors.Is(err, context.Canceled) {
			t.Fatal("nobody has cancelled it")
		}
	})
}

func TestAnActivityErrorWrapsItsCause(t *testing.T) {
	cause := &wasman.ActivityError{Type: "Closed", Message: "at night", Cause: &wasman.ActivityError{Type: wasman.TypeCancelled}}
	err := error(&wasman.ActivityError{Type: "Declined", Message: "no", Activity: "charge", Cause: cause})
	if err.Error() != "charge failed: Declined: no" || cause.Error() != "Closed: at night" {
		t.Fatal(err, cause)
	}
	if errors.Unwrap(err) != error(cause) || errors.Unwrap(errors.Unwrap(errors.Unwrap(err))) != nil {
		t.Fatal("its causes are", errors.Unwrap(err))
	}
	if !errors.Is(err, cause) || !errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("the last of its causes is a cancel")
	}
}

func TestErrorOfLooksIntoWhatIsWrappedAndJoined(t *testing.T) {
	own := wasman.Fail("rejected")
	later := &wasman.Failure{Type: "later"}
	for _, err := range []error{
		own,
		fmt.Errorf("a: %w", fmt.Errorf("b: %w", own)),
		errors.Join(errors.New("a"), fmt.Errorf("b: %w", own), later),
		fmt.Errorf("%w and %w", errors.Join(), own),
	} {
		found, ok := wasman.ErrorOf[*wasman.Failure](err)
		if !ok || error(found) != own {
			t.Error(err, found)
		}
		if _, ok := wasman.ErrorOf[*wasman.ActivityError](err); ok {
			t.Error(err)
		}
	}
	if _, ok := wasman.ErrorOf[*wasman.Failure](nil); ok {
		t.Error("nothing is no failure")
	}
}

func TestASagaUndoesTheLastThingFirst(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		var undone []int
		wasmantest.Handle(h, count, func(_ context.Context, n int) (int, error) {
			undone = append(undone, n)
			if n == 2 {
				return 0, errors.New("stuck")
			}
			return n, nil
		})
		steps := func(upto int, result error) error {
			return play(h, func(ctx context.Context) (err error) {
				undo := wasman.NewSaga(ctx)
				defer undo.Close(&err)
				for n := range upto {
					undo.Add(func(ctx context.Context) error { _, err := count.Do(ctx, n+1); return err })
				}
				return result
			})
		}
		if err := steps(3, nil); err != nil || undone != nil {
			t.Fatal(err, undone)
		}
		rejected := wasman.Fail("rejected")
		if err := steps(1, rejected); err != rejected || fmt.Sprint(undone) != "[1]" {
			t.Fatal(err, undone)
		}
		undone = nil
		err := steps(3, rejected)
		if fmt.Sprint(undone) != "[3 2 1]" { // although one of them fails
			t.Fatal(undone)
		}
		if !errors.Is(err, rejected) || err.Error() != "rejected\ncompensation 2 failed: count failed at attempt 1: Error: stuck" {
			t.Fatal(err)
		}
	})
}

func TestASagaUndoesUnderACancelAndOnlyOnce(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		undone := 0
		wasmantest.Handle(h, count, func(ctx context.Context, n int) (int, error) {
			undone++
			return n, ctx.Err()
		})
		err := play(h, func(ctx context.Context) (err error) {
			undo := wasman.NewSaga(ctx)
			defer undo.Close(&err)
			defer undo.Close(&err)
			undo.Add(func(ctx context.Context) error {
				if ctx.Err() != nil {
					t.Error("the compensation's context has ended")
				}
				_, err := count.Do(ctx, 1)
				return err
			})
			h.Cancel("sold out")
			<-ctx.Done()
			return context.Cause(ctx)
		})
		if !errors.Is(err, context.Canceled) || err.Error() != "the run is to be cancelled: sold out" || undone != 1 {
			t.Fatal(err, undone)
		}
	})
}
