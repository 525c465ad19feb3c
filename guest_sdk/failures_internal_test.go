package wasman

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

func declined() *ActivityError {
	return &ActivityError{
		Type: "CardDeclined", Message: "no funds", Activity: "charge", Attempt: 3, Details: JSON(`{"limit":5}`), NonRetryable: true,
		Cause: &ActivityError{Type: "KeyError", Message: "'card'"},
	}
}

const saysDeclined = `{"type":"CardDeclined","message":"no funds","activity":"charge","attempt":3,"details":{"limit":5},` +
	`"non_retryable":true,"cause":{"type":"KeyError","message":"'card'"}}`

// saga fails by err, and each of what it undoes by one of wrong.
func saga(err error, wrong ...error) error {
	undo := NewSaga(context.Background())
	for _, one := range wrong {
		undo.Add(func(context.Context) error { return one })
	}
	undo.Close(&err)
	return err
}

func TestACompensationThatFailsIsFound(t *testing.T) {
	first, second := declined(), &ActivityError{Type: "BankDown", Message: "closed", Activity: "refund", Attempt: 1}
	boom := errors.New("boom")
	err := saga(boom, first, nil, fmt.Errorf("again: %w", second))
	text := "boom\n" +
		"compensation 3 failed: again: refund failed at attempt 1: BankDown: closed\n" +
		"compensation 1 failed: charge failed at attempt 3: CardDeclined: no funds"
	if err.Error() != text {
		t.Errorf("%q", err)
	}
	for _, one := range []error{boom, first, second, first.Cause} {
		if !errors.Is(err, one) {
			t.Errorf("%v is not found", one)
		}
	}
	if found, ok := ErrorOf[*ActivityError](err); !ok || found != second {
		t.Error(found)
	}
}

func TestAFailureSaysItsCause(t *testing.T) {
	cause := declined()
	for want, err := range map[string]error{
		"rejected":         Fail("rejected"),
		"the order failed": &Failure{Type: "OrderFailed", Message: "the order failed", Cause: cause},
		"OrderFailed: charge failed at attempt 3: CardDeclined: no funds": &Failure{Type: "OrderFailed", Cause: cause},
	} {
		if err.Error() != want {
			t.Errorf("%q, not %q", err, want)
		}
		if found, ok := ErrorOf[*ActivityError](err); want != "rejected" && (!ok || found != cause || !errors.Is(err, cause)) {
			t.Errorf("%q has lost its cause", err)
		}
	}
}

func TestWhatTheHostIsToldOfAnError(t *testing.T) {
	failed := "charge failed at attempt 3: CardDeclined: no funds"
	ended, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	defer cancel()
	stopped, stop := context.WithCancelCause(context.Background())
	stop(&cancelRequest{"sold out"})
	for _, test := range []struct {
		err  error
		told bool
		want string
	}{
		{errors.New("boom"), false, `{"type":"Error","message":"boom"}`},
		{Fail("rejected"), false, `{"type":"rejected","message":"rejected"}`},
		{
			fmt.Errorf("late: %w", &Failure{Type: "Late", Message: "too late", Details: map[string]int{"by": 3}, NonRetryable: true}),
			false, `{"type":"Late","message":"late: too late","details":{"by":3},"non_retryable":true}`,
		},
		{declined(), false, `{"type":"ActivityError","message":"` + failed + `","details":` + saysDeclined + `}`},
		{
			&Failure{Type: "OrderFailed", Message: "no", Cause: fmt.Errorf("paying: %w", declined())},
			false, `{"type":"OrderFailed","message":"no","cause":{"type":"CardDeclined","message":"no funds","details":{"limit":5},` +
				`"non_retryable":true,"activity":"charge","attempt":3,"cause":{"type":"KeyError","message":"'card'"}}}`,
		},
		{
			saga(Fail("rejected"), declined()),
			false, `{"type":"rejected","message":"rejected\ncompensation 1 failed: ` + failed + `","cause":{"type":"CardDeclined","message":"no funds",` +
				`"details":{"limit":5},"non_retryable":true,"activity":"charge","attempt":3,"cause":{"type":"KeyError","message":"'card'"}}}`,
		},
		{
			saga(declined(), Fail("Stuck")),
			false, `{"type":"ActivityError","message":"` + failed + `\ncompensation 1 failed: Stuck","details":` + saysDeclined +
				`,"cause":{"type":"Stuck","message":"Stuck"}}`,
		},
		{
			saga(&callError{"signal approve", endOf(stopped)}, Fail("Stuck")),
			true, `{"type":"Cancelled","message":"signal approve: the run is to be cancelled: sold out\ncompensation 1 failed: Stuck",` +
				`"cause":{"type":"Stuck","message":"Stuck"}}`,
		},
		{&ActivityError{Type: TypeCancelled, Message: "sold out", Activity: "charge"}, true, `{"type":"Cancelled","message":"charge failed: Cancelled: sold out"}`},
		{context.Canceled, true, `{"type":"Cancelled","message":"context canceled"}`},
		{context.Canceled, false, `{"type":"Error","message":"context canceled"}`}, // by the guest's own cancel
		{&callError{"signal approve", ended.Err()}, false, `{"type":"DeadlineExceeded","message":"signal approve: context deadline exceeded"}`},
		{
			&Failure{Type: "Odd", Message: "odd", Details: math.NaN()},
			false, `{"type":"Odd","message":"odd","details":"(the details cannot be written: JSON has no place for NaN)"}`,
		},
		{
			&Failure{Type: "Odd", Message: "odd", Cause: &ActivityError{Type: "A", Details: JSON("{")}},
			false, `{"type":"Odd","message":"odd","details":"cause.details: a wasman.JSON is no JSON: a name should stand here (byte 1)"}`,
		},
	} {
		run.told = test.told
		if got := string(failureOf(test.err)); got != test.want {
			t.Errorf("\n%s\n%s", got, test.want)
		}
	}
	run.told = false
}

func TestTheHostIsToldOfAFewCauses(t *testing.T) {
	var err error
	for range 100 {
		err = &Failure{Type: "Deep", Message: "deep", Cause: err}
	}
	if got := strings.Count(string(failureOf(err)), `"Deep"`); got != mostCauses {
		t.Error(got)
	}
}
