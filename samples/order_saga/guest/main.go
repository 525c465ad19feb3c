// An order: charged, approved by a person within a day, shipped; where that fails, the money goes back.
package main

import (
	"context"
	"time"

	"wasman.dev/guest"
)

type (
	Order struct {
		ID    string `json:"id"`
		Cents int    `json:"cents"`
	}
	Receipt struct {
		Order string `json:"order"`
		Card  string `json:"card"`
	}
	Approval struct {
		OK bool `json:"ok"`
	}
	Shipped struct {
		Tracking string `json:"tracking"`
	}
)

var (
	charge  = wasman.NewActivity[Order, Receipt]("charge", wasman.Retries(5), wasman.Timeout(30*time.Second))
	refund  = wasman.NewActivity[Receipt, wasman.None]("refund")
	ship    = wasman.NewActivity[Order, Shipped]("ship")
	approve = wasman.NewSignal[Approval]("approve")
	_       = wasman.Workflow("order", order)
)

func order(ctx context.Context, o Order) (out Shipped, err error) {
	undo := wasman.NewSaga(ctx)
	defer undo.Close(&err)
	receipt, err := charge.Do(ctx, o)
	if err != nil {
		return out, err
	}
	undo.Add(func(ctx context.Context) error { _, err := refund.Do(ctx, receipt); return err })
	wait, cancel := context.WithTimeout(ctx, 24*time.Hour)
	defer cancel()
	answer, err := approve.Receive(wait)
	if err != nil {
		return out, err
	}
	if !answer.OK {
		return out, wasman.Fail("rejected")
	}
	return ship.Do(ctx, o)
}

func main() {}
