// A fan-out: an activity for each of many items, only so many at once, and what failed is told and not fatal.
package main

import (
	"context"
	"sync"

	"wasman.dev/guest"
)

type (
	Batch struct {
		Items    []int `json:"items"`
		AtOnce   int   `json:"at_once"`
		Tolerant int   `json:"tolerates"` // failures until the batch is given up
	}
	Report struct {
		Sum    int      `json:"sum"`
		Failed []string `json:"failed"`
	}
)

var (
	work = wasman.NewActivity[int, int]("work", wasman.Retries(2))
	_    = wasman.Workflow("batch", batch)
)

func batch(ctx context.Context, b Batch) (Report, error) {
	var (
		report  Report
		all     sync.WaitGroup
		slots   = make(chan struct{}, max(1, b.AtOnce))
		results = make([]int, len(b.Items))
		errs    = make([]error, len(b.Items))
	)
	ctx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	failures := 0
	for i, item := range b.Items {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		all.Add(1)
		go func() {
			defer all.Done()
			results[i], errs[i] = work.Do(ctx, item)
			if errs[i] != nil {
				if failures++; failures > b.Tolerant {
					giveUp()
				}
			}
			<-slots
		}()
	}
	all.Wait()
	for i := range b.Items {
		report.Sum += results[i]
		if errs[i] != nil {
			report.Failed = append(report.Failed, errs[i].Error())
		}
	}
	if failures > b.Tolerant {
		return report, &wasman.Failure{Type: "TooManyFailures", Message: "the batch was given up", Details: report}
	}
	return report, nil
}

func main() {}
