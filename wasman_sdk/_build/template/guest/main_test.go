package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"wasman.dev/guest/wasmantest"
)

// charging is a bank that has money for everything; it counts what it was asked for.
func charging(host *wasmantest.Host) *int {
	count := 0
	wasmantest.Handle(host, Charge, func(_ context.Context, o Order) (Receipt, error) {
		count++
		return Receipt{Item: o.Item, Number: "r-1"}, nil
	})
	return &count
}

func TestAnOrderIsChargedWhenItIsApproved(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, host *wasmantest.Host) {
		charged := charging(host)
		time.AfterFunc(48*time.Hour, func() {
			wasmantest.Send(host, Approve, Approval{OK: true, By: "Ada"})
		})
		receipt, err := wasmantest.Execute(host, order, Order{Item: "tea", Cents: 450})
		if err != nil || receipt.Item != "tea" || *charged != 1 {
			t.Fatal(receipt, err, *charged)
		}
	})
}

func TestAnOrderThatIsNotApprovedIsNotCharged(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, host *wasmantest.Host) {
		charged := charging(host)
		wasmantest.Send(host, Approve, Approval{OK: false, By: "Ada"})
		_, err := wasmantest.Execute(host, order, Order{Item: "tea", Cents: 450})
		if err == nil || err.Error() != "not approved by Ada" || *charged != 0 {
			t.Fatal(err, *charged)
		}
	})
}

func TestNobodyApprovesForThreeDays(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, host *wasmantest.Host) {
		charged, began := charging(host), time.Now()
		_, err := wasmantest.Execute(host, order, Order{Item: "tea", Cents: 450})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 72*time.Hour || *charged != 0 {
			t.Fatal(err, time.Since(began), *charged)
		}
	})
}
