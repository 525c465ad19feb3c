// A subscription: a bill a month, until somebody ends it. Years may pass; the run costs nothing in between.
package main

import (
	"context"
	"errors"
	"time"

	"wasman.dev/guest"
)

type (
	Subscription struct {
		Customer string    `json:"customer"`
		Cents    int       `json:"cents"`
		From     time.Time `json:"from"` // the first bill
	}
	Bill struct {
		Customer string    `json:"customer"`
		Number   int       `json:"number"`
		Cents    int       `json:"cents"`
		Due      time.Time `json:"due"`
	}
	Plan struct {
		Cents int `json:"cents"`
	}
	Summary struct {
		Bills int `json:"bills"`
		Cents int `json:"cents"`
		Owed  int `json:"owed"` // bills that could not be charged
	}
)

var (
	charge = wasman.NewActivity[Bill, wasman.None]("charge")
	plan   = wasman.NewSignal[Plan]("plan")
	end    = wasman.NewSignal[wasman.None]("end")
	_      = wasman.Workflow("subscription", subscription)
)

func subscription(ctx context.Context, s Subscription) (Summary, error) {
	var total Summary
	plans, ended := plan.Channel(ctx), end.Channel(ctx)
	for month := 0; ; month++ {
		due := s.From.AddDate(0, month, 0)
		for timer := time.NewTimer(time.Until(due)); ; {
			select {
			case next := <-plans:
				s.Cents = next.Cents // from the next bill on
				continue
			case <-ended:
				timer.Stop()
				return total, nil
			case <-ctx.Done():
				return total, context.Cause(ctx)
			case <-timer.C:
			}
			break
		}
		bill := Bill{s.Customer, month + 1, s.Cents, due}
		_, err := charge.Do(ctx, bill)
		if _, failed := wasman.ErrorOf[*wasman.ActivityError](err); failed && !errors.Is(err, context.Canceled) {
			wasman.Log(wasman.Warning, "a bill was not paid", "number", bill.Number, "error", err.Error())
			total.Owed++
			continue
		}
		if err != nil {
			return total, err
		}
		total.Bills++
		total.Cents += bill.Cents
	}
}

func main() {}
