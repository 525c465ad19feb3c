package wasman_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"wasman.dev/guest"
	"wasman.dev/guest/wasmantest"
)

type parcel struct {
	To    string  `json:"to"`
	Grams float64 `json:"grams"`
}

var (
	send  = wasman.NewActivity[parcel, string]("send")
	raw   = wasman.NewActivity[[]byte, []byte]("raw")
	ping  = wasman.NewActivity[wasman.None, wasman.None]("ping")
	count = wasman.NewActivity[int, int]("count")
)

// play executes a workflow that has neither input nor result.
func play(h *wasmantest.Host, workflow func(ctx context.Context) error) error {
	_, err := wasmantest.Execute(h, func(ctx context.Context, _ wasman.None) (wasman.None, error) {
		return wasman.None{}, workflow(ctx)
	}, wasman.None{})
	return err
}

// waits is an activity that takes its time, unless it is cut short.
func waits(d time.Duration) func(ctx context.Context, n int) (int, error) {
	return func(ctx context.Context, n int) (int, error) {
		select {
		case <-time.After(d):
			return n, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func TestValuesCrossTheBorderAndBytesAsTheyAre(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		pings := 0
		wasmantest.Handle(h, send, func(_ context.Context, p parcel) (string, error) { return p.To + "!", nil })
		wasmantest.Handle(h, raw, func(_ context.Context, b []byte) ([]byte, error) { return append(b, 0xff), nil })
		wasmantest.Handle(h, ping, func(context.Context, wasman.None) (wasman.None, error) {
			pings++
			return wasman.None{}, nil
		})
		err := play(h, func(ctx context.Context) error {
			if sent, err := send.Do(ctx, parcel{To: "Ada", Grams: 1.5}); sent != "Ada!" || err != nil {
				t.Error(sent, err)
			}
			if got, err := raw.Do(ctx, []byte{0, 0xfe}); !slices.Equal(got, []byte{0, 0xfe, 0xff}) || err != nil {
				t.Error(got, err)
			}
			_, err := ping.Do(ctx, wasman.None{})
			return err
		})
		if err != nil || pings != 1 {
			t.Fatal(err, pings)
		}
	})
}

func TestCallsThatAreStartedGoOnBesideEachOther(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		wasmantest.Handle(h, count, func(ctx context.Context, n int) (int, error) {
			return waits(time.Duration(n)*time.Minute)(ctx, n)
		})
		var came []int
		err := play(h, func(ctx context.Context) error {
			began := wasman.Now()
			three, one, two := count.Start(ctx, 3), count.Start(ctx, 1), count.Start(ctx, 2)
			left := map[*wasman.Future[int]]bool{three: true, one: true, two: true}
			for len(left) > 0 {
				var first *wasman.Future[int]
				select {
				case <-three.Done():
					first = three
				case <-one.Done():
					first = one
				case <-two.Done():
					first = two
				}
				if !left[first] { // a future that is done stays so
					wasman.Sleep(ctx, time.Second)
					continue
				}
				delete(left, first)
				for range 2 { // its result can be had again
					n, err := first.Get(ctx)
					if err != nil {
						return err
					}
					came = append(came, n)
				}
			}
			if took := wasman.Now().Sub(began); took < 3*time.Minute || took > 4*time.Minute {
				t.Error(took)
			}
			return nil
		})
		if !slices.Equal(came, []int{1, 1, 2, 2, 3, 3}) || err != nil {
			t.Fatal(came, err)
		}
	})
}

// No activity is handled: a call that reaches the host fails the test.
func TestWhatCannotBeAskedIsNotAsked(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		err := play(h, func(ctx context.Context) error {
			_, err := send.Do(ctx, parcel{Grams: math.NaN()})
			if err == nil || !strings.Contains(err.Error(), "send: the request cannot be written: ") || !strings.Contains(err.Error(), "grams") {
				t.Error(err)
			}
			ended, cancel := context.WithCancelCause(ctx)
			enough := errors.New("enough")
			cancel(enough)
			future := send.Start(ended, parcel{})
			<-future.Done()
			future.Cancel()
			if _, err := future.Get(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, enough) || err.Error() != "send: enough" {
				t.Error(err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestAResultThatDoesNotFitSaysWhoseItIs(t *testing.T) {
	text := wasman.NewActivity[int, string]("count") // the application's has another result
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		wasmantest.Handle(h, count, func(_ context.Context, n int) (int, error) { return n, nil })
		err := play(h, func(ctx context.Context) error {
			_, err := text.Do(ctx, 7)
			return err
		})
		if err == nil || !strings.HasPrefix(err.Error(), "wasman: the result of activity 'count' does not fit: 7 ") {
			t.Fatal(err)
		}
	})
}

func TestACallIsCutShort(t *testing.T) {
	for name, how := range map[string]struct {
		get  func(ctx context.Context) (int, error)
		want func(err error) bool
	}{
		"by its own word": {func(ctx context.Context) (int, error) {
			future := count.Start(ctx, 1)
			future.Cancel()
			return future.Get(ctx)
		}, func(err error) bool {
			failed, ok := wasman.ErrorOf[*wasman.ActivityError](err)
			return ok && failed.Type == wasman.TypeCancelled && errors.Is(err, context.Canceled)
		}},
		"by the context that it was started with": {func(ctx context.Context) (int, error) {
			short, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			return count.Start(short, 1).Get(ctx)
		}, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
		"by the context of who waits": {func(ctx context.Context) (int, error) {
			short, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			return count.Start(ctx, 1).Get(short)
		}, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
	} {
		t.Run(name, func(t *testing.T) {
			wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
				wasmantest.Handle(h, count, waits(time.Hour))
				var took time.Duration
				err := play(h, func(ctx context.Context) error {
					began := wasman.Now()
					_, err := how.get(ctx)
					took = wasman.Now().Sub(began)
					return err
				})
				if !how.want(err) || took > time.Minute {
					t.Fatal(err, took)
				}
			})
		})
	}
}

func TestWhatACallGivesAlthoughItIsCancelledIsItsResult(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		wasmantest.Handle(h, count, func(ctx context.Context, n int) (int, error) {
			<-ctx.Done()
			time.Sleep(time.Second)
			return n, nil
		})
		err := play(h, func(ctx context.Context) error {
			short, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			n, err := count.Do(short, 7)
			if n != 7 || wasman.Sleep(ctx, 0) != nil {
				t.Error(n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
