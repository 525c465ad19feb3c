package wasmantest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wasman.dev/guest"
)

type order struct {
	Item  string `json:"item"`
	Cents int    `json:"cents"`
	note  string
}

type approval struct {
	OK bool `json:"ok"`
}

var (
	charge  = wasman.NewActivity[order, string]("charge")
	refund  = wasman.NewActivity[string, wasman.None]("refund")
	approve = wasman.NewSignal[approval]("approve")
)

func buy(ctx context.Context, o order) (receipt string, err error) {
	undo := wasman.NewSaga(ctx)
	defer undo.Close(&err)
	if o.note != "" {
		return "", errors.New("a field that JSON does not have has come along")
	}
	if receipt, err = charge.Do(ctx, o); err != nil {
		return "", err
	}
	undo.Add(func(ctx context.Context) error { _, err := refund.Do(ctx, receipt); return err })
	wait, cancel := context.WithTimeout(ctx, 72*time.Hour)
	defer cancel()
	answer, err := approve.Receive(wait)
	if err != nil {
		return "", err
	}
	if !answer.OK {
		return "", wasman.Fail("rejected")
	}
	return receipt, nil
}

func charged(h *Host) (refunds *[]string) {
	refunds = new([]string)
	Handle(h, charge, func(_ context.Context, o order) (string, error) { return "receipt for " + o.Item, nil })
	Handle(h, refund, func(_ context.Context, receipt string) (wasman.None, error) {
		*refunds = append(*refunds, receipt)
		return wasman.None{}, nil
	})
	return refunds
}

func TestAWorkflowLivesDaysInNoTime(t *testing.T) {
	before := time.Now()
	Run(t, func(t *testing.T, h *Host) {
		refunds, began := charged(h), wasman.Now()
		time.AfterFunc(48*time.Hour, func() { Send(h, approve, approval{OK: true}) })
		receipt, err := Execute(h, buy, order{Item: "tea", note: "lost"})
		if receipt != "receipt for tea" || err != nil || len(*refunds) != 0 {
			t.Fatal(receipt, err, *refunds)
		}
		if waited := wasman.Now().Sub(began); waited != 48*time.Hour {
			t.Fatal(waited)
		}
	})
	if took := time.Since(before); took > 10*time.Second {
		t.Fatal(took)
	}
}

func TestNobodyApproves(t *testing.T) {
	Run(t, func(t *testing.T, h *Host) {
		refunds := charged(h)
		_, err := Execute(h, buy, order{Item: "tea"})
		if !errors.Is(err, context.DeadlineExceeded) || len(*refunds) != 1 {
			t.Fatal(err, *refunds)
		}
		Send(h, approve, approval{}) // before anybody waits: it is kept
		if _, err = Execute(h, buy, order{Item: "tea"}); err == nil || err.Error() != "rejected" || len(*refunds) != 2 {
			t.Fatal(err, *refunds)
		}
	})
}

func TestACancelEndsTheWaiting(t *testing.T) {
	Run(t, func(t *testing.T, h *Host) {
		refunds := charged(h)
		time.AfterFunc(time.Hour, func() { h.Cancel("sold out") })
		_, err := Execute(h, buy, order{})
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "sold out") || len(*refunds) != 1 {
			t.Fatal(err, *refunds)
		}
	})
}

func TestActivitiesFailWithTypeAndDetails(t *testing.T) {
	Run(t, func(t *testing.T, h *Host) {
		Handle(h, charge, func(context.Context, order) (string, error) {
			return "", &wasman.Failure{
				Type: "CardDeclined", Message: "no money", Details: map[string]int{"cents": 3}, NonRetryable: true,
				Cause: &wasman.Failure{Type: "Empty", Message: "nothing there", Cause: io.EOF},
			}
		})
		_, err := Execute(h, buy, order{})
		var failed *wasman.ActivityError
		if !errors.As(err, &failed) || failed.Type != "CardDeclined" || failed.Activity != "charge" || string(failed.Details) != `{"cents":3}` {
			t.Fatal(err)
		}
		if cause := failed.Cause; !failed.NonRetryable || cause == nil || cause.Type != "Empty" || cause.Cause == nil || cause.Cause.Message != "EOF" {
			t.Fatalf("%+v", failed)
		}
	})
}

func TestACallIsCutShortByItsContext(t *testing.T) {
	Run(t, func(t *testing.T, h *Host) {
		stopped := false
		Handle(h, charge, func(ctx context.Context, _ order) (string, error) {
			<-ctx.Done()
			stopped = true
			return "", ctx.Err()
		})
		_, err := Execute(h, func(ctx context.Context, o order) (string, error) {
			short, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			return charge.Do(short, o)
		}, order{})
		if !errors.Is(err, context.DeadlineExceeded) || !stopped {
			t.Fatal(err, stopped)
		}
	})
}

func TestSignalsAreReceivedInTheirOrder(t *testing.T) {
	count := wasman.NewSignal[int]("count")
	Run(t, func(t *testing.T, h *Host) {
		for i := range 20 {
			time.AfterFunc(time.Duration(i)*time.Second, func() { Send(h, count, i) })
		}
		got, err := Execute(h, func(ctx context.Context, n int) (got []int, err error) {
			values := count.Channel(ctx)
			for range n {
				got = append(got, <-values)
			}
			return got, nil
		}, 20)
		for i, one := range got {
			if one != i {
				t.Fatal(got)
			}
		}
		if len(got) != 20 || err != nil {
			t.Fatal(got, err)
		}
	})
}

func TestStreamsAndSession(t *testing.T) {
	type session struct {
		Name string `json:"name"`
	}
	Run(t, func(t *testing.T, h *Host) {
		var out bytes.Buffer
		h.Session(session{"Ada"})
		h.Source("in", strings.NewReader("some text"))
		h.Sink("out", &out)
		name, err := Execute(h, func(context.Context, wasman.None) (string, error) {
			s, err := wasman.Session[session]()
			if err != nil {
				return "", err
			}
			to := wasman.Sink("out")
			if _, err := io.Copy(to, wasman.Source("in")); err != nil {
				return "", err
			}
			return s.Name, to.Close()
		}, wasman.None{})
		if name != "Ada" || err != nil || out.String() != "some text" {
			t.Fatal(name, err, out.String())
		}
	})
}

// The test itself runs in another process, where it fails.
func TestAWorkflowThatWaitsForNothingFailsTheTest(t *testing.T) {
	if os.Getenv("WASMANTEST_DEADLOCK") == "" {
		again := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		again.Env = append(os.Environ(), "WASMANTEST_DEADLOCK=1")
		told, err := again.CombinedOutput()
		const want = "deadlock: the workflow waits for what never comes: activity charge, signal approve\n"
		if err == nil || !strings.Contains(string(told), want) || strings.Contains(string(told), "panic") {
			t.Fatalf("%v\n%s", err, told)
		}
		return
	}
	Run(t, func(t *testing.T, h *Host) {
		Handle(h, charge, func(ctx context.Context, _ order) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		})
		_, err := Execute(h, func(ctx context.Context, o order) (string, error) {
			call := charge.Start(ctx, o)
			if _, err := approve.Receive(ctx); err != nil {
				_, _ = call.Get(ctx)
				return "", err
			}
			return call.Get(ctx)
		}, order{})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestRandomIsTheSameInEveryTest(t *testing.T) {
	var drawn []string
	for range 2 {
		Run(t, func(*testing.T, *Host) { drawn = append(drawn, wasman.UUID()) })
	}
	if drawn[0] != drawn[1] || len(drawn[0]) != 36 {
		t.Fatal(drawn)
	}
}
