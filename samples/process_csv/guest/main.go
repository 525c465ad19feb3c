// Command process_csv turns a CSV file into NDJSON: one line a row, values checked and typed, bad ones reported in the
// line itself. After each batch of rows it calls an activity with what the batch came to, and takes a checkpoint.
//
// The three steps below are the whole course of it. Everything that outlives a step is in the variables after them, so
// that a host which restores memory from a checkpoint and enters the guest anew goes on with the next batch: the rows
// already read but not yet used, and the lines not yet written, are memory like the rest.
//
// The folder plain has the same workflow without steps.
package main

import (
	wasman "wasman.dev/guest/v0"
	"wasman.dev/guest/v0/steps"
	"wasman.dev/samples/process_csv/table"
)

func init() {
	steps.Run(
		steps.Once("open", open),
		steps.Repeat("rows", nextBatch),
		steps.Once("finish", finish),
	)
}

func main() {}

var (
	options table.Options
	columns table.Columns
	rows    *table.Reader
	lines   *table.Writer
	report  table.Report
)

// open reads the options and the header, and finds the columns in it.
func open() error {
	if err := wasman.Input(&options); err != nil {
		return err
	}
	if err := options.Check(); err != nil {
		return failure(err)
	}
	rows = table.NewReader(wasman.Download())
	lines = table.NewWriter(wasman.Upload())
	header, err := rows.Header()
	if err != nil {
		return failure(err)
	}
	columns, err = options.Locate(header)
	return failure(err)
}

// nextBatch turns up to a batch of rows into lines and reports them to the activity.
func nextBatch() (more bool, err error) {
	batch := table.Batch{Batch: report.Batches + 1, FirstRow: report.Rows + 1}
	for batch.Rows < options.BatchRows {
		more, err = rows.Next()
		if err != nil {
			return false, failure(err)
		}
		if !more {
			break
		}
		valid, err := lines.WriteRow(batch.FirstRow+batch.Rows, rows, columns)
		if err != nil {
			return false, err
		}
		batch.Rows++
		if !valid {
			batch.Invalid++
		}
	}
	if batch.Rows == 0 {
		return false, nil
	}
	batch.Sums = columns.CloseBatch()
	if err := wasman.Call(options.Activity, batch, nil); err != nil {
		return false, err
	}
	report.Add(batch)
	return more, nil
}

// finish writes what is left, closes the upload and gives the result.
func finish() error {
	if err := lines.Close(); err != nil {
		return err
	}
	report.Sums = columns.Totals()
	return wasman.Result(report)
}

// failure gives the run the type of a problem.
func failure(err error) error {
	if problem, ok := err.(*table.Problem); ok {
		return &wasman.Failure{Type: problem.Type, Message: problem.Message}
	}
	return err
}
