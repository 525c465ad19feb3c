package wasman_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"wasman.dev/guest"
	"wasman.dev/guest/internal/abi"
	"wasman.dev/guest/wasmantest"
)

// listener is a host that keeps the lines of the log, and is asked for nothing else.
type listener struct {
	abi.Fake
	lines []string
}

func (l *listener) Log(_ int32, message string, attributes []byte) {
	l.lines = append(l.lines, message+" "+string(attributes))
}

func TestALineOfTheLogLosesNothingThatItIsGiven(t *testing.T) {
	heard := &listener{}
	abi.Host = heard
	t.Cleanup(func() { abi.Host = nil })
	for want, given := range map[string][]any{
		``:                                    nil,
		`{"cents":5,"why":"no money"}`:        {"cents", 5, "why", errors.New("no money")},
		`{"took":1000000000,"error":null}`:    {"took", time.Second, "error", error(nil)},
		`{"none":null}`:                       {"none", (*wasman.ActivityError)(nil)},
		`{"!BADKEY":"alone"}`:                 {"alone"},
		`{"!BADKEY":7,"a":1}`:                 {7, "a", 1},
		`{"a":1,"!BADKEY":"no money"}`:        {"a", 1, errors.New("no money")},
		`{"f":"(JSON has no place for NaN)"}`: {"f", math.NaN()},
	} {
		heard.lines = nil
		wasman.Log(wasman.Notice, "paid", given...)
		if heard.lines[0] != "paid "+want {
			t.Errorf("%s, not %s", heard.lines[0], want)
		}
	}
}

func TestTimeGoesByInSleepsOnly(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		err := play(h, func(ctx context.Context) error {
			began := wasman.Now()
			if !began.Equal(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) {
				t.Error(began)
			}
			for range 12 {
				if err := wasman.Sleep(ctx, 30*24*time.Hour); err != nil {
					return err
				}
			}
			if err := wasman.Sleep(context.Background(), time.Hour); err != nil {
				return err
			}
			if took := wasman.Now().Sub(began); took != 360*24*time.Hour+time.Hour {
				t.Error(took)
			}
			short, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("closing time"))
			defer cancel()
			err := wasman.Sleep(short, time.Hour)
			if !errors.Is(err, context.DeadlineExceeded) || err.Error() != "closing time" {
				t.Error(err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestRandomNumbersAndUUIDs(t *testing.T) {
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		seen := map[string]bool{}
		for range 1000 {
			id := wasman.UUID()
			if !form.MatchString(id) || seen[id] {
				t.Fatal(id)
			}
			seen[id] = true
		}
		var source *rand.Rand = wasman.Rand()
		places := [10]int{}
		for range 10_000 {
			places[source.Intn(10)]++
		}
		for _, n := range places {
			if n < 800 || n > 1200 {
				t.Fatal(places)
			}
		}
	})
}

func TestASourceIsAReader(t *testing.T) {
	text := strings.Repeat("some text ", 100)
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		h.Source("in", strings.NewReader(text))
		h.Source("again", strings.NewReader(text))
		err := play(h, func(ctx context.Context) error {
			if err := iotest.TestReader(wasman.Source("in"), []byte(text)); err != nil {
				t.Error(err)
			}
			whole := make([]byte, 600) // a read fills the buffer, unless the source ends
			from := wasman.Source("again")
			for _, want := range []int{600, 400} {
				if n, err := from.Read(whole); n != want || err != nil {
					t.Error(n, err)
				}
			}
			if n, err := from.Read(whole); n != 0 || err != io.EOF {
				t.Error(n, err)
			}
			_, err := wasman.Source("nowhere").Read(whole)
			return err
		})
		if err == nil || err.Error() != "wasman: the session has no source 'nowhere' (code -2)" {
			t.Fatal(err)
		}
	})
}

func TestASinkIsAWriter(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		var out bytes.Buffer
		h.Sink("out", &out)
		err := play(h, func(ctx context.Context) error {
			to := wasman.Sink("out")
			for _, part := range []string{"a", "", "bc"} {
				if n, err := to.Write([]byte(part)); n != len(part) || err != nil {
					t.Error(n, err)
				}
			}
			if err := to.Close(); err != nil {
				t.Error(err)
			}
			if _, err := wasman.Sink("nowhere").Write([]byte("x")); err == nil || !strings.Contains(err.Error(), "no sink 'nowhere'") {
				t.Error(err)
			}
			return wasman.Sink("nowhere").Close()
		})
		if out.String() != "abc" || err == nil || !strings.Contains(err.Error(), "no sink 'nowhere'") {
			t.Fatal(out.String(), err)
		}
	})
}

func TestTheSessionIsDecoded(t *testing.T) {
	type shop struct {
		City string `json:"city"`
	}
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		h.Session(shop{"Bern"})
		if s, err := wasman.Session[shop](); s.City != "Bern" || err != nil {
			t.Fatal(s, err)
		}
		_, err := wasman.Session[[]int]()
		if err == nil || !strings.HasPrefix(err.Error(), "wasman: the session does not fit: ") {
			t.Fatal(err)
		}
	})
}
