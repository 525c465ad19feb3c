// The workflow: an order is charged when somebody has approved it.
package main

import (
	"context"
	"time"

	"wasman.dev/guest"
)

var _ = wasman.Workflow("order", order)

// order waits for an approval, for three days at most, and charges. Meanwhile no process needs to be there.
func order(ctx context.Context, o Order) (receipt Receipt, err error) {
	wait, cancel := context.WithTimeout(ctx, 72*time.Hour)
	defer cancel()
	answer, err := Approve.Receive(wait)
	if err != nil {
		return receipt, err
	}
	if !answer.OK {
		return receipt, wasman.Fail("not approved by " + answer.By)
	}
	return Charge.Do(ctx, o)
}

func main() {} // never runs
