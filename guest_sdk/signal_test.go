package wasman_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"wasman.dev/guest"
	"wasman.dev/guest/wasmantest"
)

var (
	mail  = wasman.NewSignal[string]("mail")
	other = wasman.NewSignal[int]("other")
)

func TestSignalsAreKeptInTheirOrderUntilTheyAreReceived(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		for _, word := range []string{"a", "b", "c"} {
			wasmantest.Send(h, mail, word)
			wasmantest.Send(h, other, len(word))
		}
		var got []string
		err := play(h, func(ctx context.Context) error {
			for range 3 {
				word, err := mail.Receive(ctx)
				if err != nil {
					return err
				}
				got = append(got, word)
			}
			return nil
		})
		if !slices.Equal(got, []string{"a", "b", "c"}) || err != nil {
			t.Fatal(got, err)
		}
	})
}

func TestAReceiveThatIsWithdrawnTakesNothing(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		time.AfterFunc(90*time.Second, func() { wasmantest.Send(h, mail, "late") })
		err := play(h, func(ctx context.Context) error {
			short, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if _, err := mail.Receive(short); !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "signal mail: ") {
				t.Error(err)
			}
			if _, err := mail.Receive(short); !errors.Is(err, context.DeadlineExceeded) { // it has ended before
				t.Error(err)
			}
			word, err := mail.Receive(ctx)
			if word != "late" {
				t.Error(word)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestAContextThatHasEndedReceivesNothing(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		wasmantest.Send(h, mail, "kept")
		err := play(h, func(ctx context.Context) error {
			ended, cancel := context.WithCancel(ctx)
			cancel()
			for range 20 {
				if word, err := mail.Receive(ended); !errors.Is(err, context.Canceled) {
					t.Error(word, err)
				}
				if err := wasman.Sleep(ctx, time.Second); err != nil {
					return err
				}
			}
			word, err := mail.Receive(ctx)
			if word != "kept" {
				t.Error(word)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestReceiversShareWhatComes(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		got := make(chan string, 3)
		err := play(h, func(ctx context.Context) error {
			for range 3 {
				go func() {
					word, err := mail.Receive(ctx)
					if err != nil {
						t.Error(err)
					}
					got <- word
				}()
			}
			for _, word := range []string{"a", "b", "c"} {
				wasmantest.Send(h, mail, word)
				if err := wasman.Sleep(ctx, time.Second); err != nil {
					return err
				}
			}
			return nil
		})
		words := []string{<-got, <-got, <-got}
		slices.Sort(words)
		if !slices.Equal(words, []string{"a", "b", "c"}) || err != nil {
			t.Fatal(words, err)
		}
	})
}

func TestAChannelOfASignalEndsWithItsContext(t *testing.T) {
	misfit := wasman.NewSignal[int]("mail")
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		var got []string
		err := play(h, func(ctx context.Context) error {
			until, cancel := context.WithCancel(ctx)
			words := mail.Channel(until)
			for _, word := range []string{"a", "b"} {
				wasmantest.Send(h, misfit, 7) // is passed over
				wasmantest.Send(h, mail, word)
				select {
				case word := <-words:
					got = append(got, word)
				case <-time.After(time.Hour):
					t.Error("nothing came")
				}
			}
			cancel()
			if word, more := <-words; more {
				t.Error(word)
			}
			return nil
		})
		if !slices.Equal(got, []string{"a", "b"}) || err != nil {
			t.Fatal(got, err)
		}
	})
}

func TestAValueThatAChannelHasAheadIsNotLostWithItsContext(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		for _, word := range []string{"a", "b", "c", "d"} {
			wasmantest.Send(h, mail, word)
		}
		var got []string
		err := play(h, func(ctx context.Context) error {
			for range 2 {
				until, cancel := context.WithCancel(ctx)
				got = append(got, <-mail.Channel(until))
				time.Sleep(time.Second) // the next one is there, and nobody takes it
				cancel()
				time.Sleep(time.Second)
			}
			for range 2 {
				word, err := mail.Receive(ctx)
				if err != nil {
					return err
				}
				got = append(got, word)
			}
			return nil
		})
		if !slices.Equal(got, []string{"a", "b", "c", "d"}) || err != nil {
			t.Fatal(got, err)
		}
	})
}

func TestAValueThatAChannelHasAheadGoesToWhoeverWaitsAlready(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		wasmantest.Send(h, mail, "a")
		wasmantest.Send(h, mail, "b")
		time.AfterFunc(time.Hour, func() { wasmantest.Send(h, mail, "c") })
		var got []string
		err := play(h, func(ctx context.Context) error {
			until, cancel := context.WithCancel(ctx)
			got = append(got, <-mail.Channel(until))
			time.AfterFunc(time.Second, cancel)
			for range 2 {
				word, err := mail.Receive(ctx)
				if err != nil {
					return err
				}
				got = append(got, word)
			}
			return nil
		})
		if !slices.Equal(got, []string{"a", "b", "c"}) || err != nil {
			t.Fatal(got, err)
		}
	})
}

func TestAValueThatDoesNotFitSaysWhoseItIs(t *testing.T) {
	misfit := wasman.NewSignal[int]("mail")
	wasmantest.Run(t, func(t *testing.T, h *wasmantest.Host) {
		wasmantest.Send(h, misfit, 7)
		err := play(h, func(ctx context.Context) error {
			_, err := mail.Receive(ctx)
			return err
		})
		if err == nil || !strings.HasPrefix(err.Error(), "wasman: a value of signal 'mail' does not fit: 7 ") {
			t.Fatal(err)
		}
	})
}
