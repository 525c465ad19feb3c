// Command plain is process_csv without steps: an ordinary loop over the rows, whose variables are local. Where the run
// stands is the goroutine's stack, which the host keeps with the rest of memory while the activity runs.
package main

import (
	"context"

	"wasman.dev/guest"
	"wasman.dev/samples/process_csv/table"
)

var _ = wasman.Workflow("process-csv", processCSV)

func processCSV(ctx context.Context, options table.Options) (report table.Report, err error) {
	if err := options.Check(); err != nil {
		return report, failure(err)
	}
	record := wasman.NewActivity[table.Batch, wasman.None](options.Activity)
	rows := table.NewReader(wasman.Source(""))
	lines := table.NewWriter(wasman.Sink(""))
	header, err := rows.Header()
	if err != nil {
		return report, failure(err)
	}
	columns, err := options.Locate(header)
	if err != nil {
		return report, failure(err)
	}
	for more := true; more; {
		batch := table.Batch{Batch: report.Batches + 1, FirstRow: report.Rows + 1}
		for batch.Rows < options.BatchRows {
			if more, err = rows.Next(); err != nil {
				return report, failure(err)
			}
			if !more {
				break
			}
			valid, err := lines.WriteRow(batch.FirstRow+batch.Rows, rows, columns)
			if err != nil {
				return report, err
			}
			batch.Rows++
			if !valid {
				batch.Invalid++
			}
		}
		if batch.Rows == 0 {
			break
		}
		batch.Sums = columns.CloseBatch()
		if _, err := record.Do(ctx, batch); err != nil {
			return report, err
		}
		report.Add(batch)
	}
	report.Sums = columns.Totals()
	return report, lines.Close()
}

// failure gives the run the type of a problem.
func failure(err error) error {
	if problem, ok := err.(*table.Problem); ok {
		return &wasman.Failure{Type: problem.Type, Message: problem.Message}
	}
	return err
}

func main() {}
