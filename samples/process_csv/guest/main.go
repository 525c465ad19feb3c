// Command process_csv turns a CSV file into NDJSON: one line a row, values checked and typed, bad ones reported in the
// line itself. After each batch of rows it calls an activity with what the batch came to, and takes a checkpoint.
//
// The three steps below are the whole course of it. Everything that outlives a step is in the variables after them, so
// that a host which restores memory from a checkpoint and enters the guest anew goes on with the next batch: the rows
// already read but not yet used, and the lines not yet written, are memory like the rest.
package main

import (
	wasman "wasman.dev/guest/v0"
	"wasman.dev/guest/v0/steps"
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
	settings options
	columns  []column
	source   *csvReader
	target   *lineWriter
	report   = Report{Sums: map[string]string{}}
)

// Batch is the request of the activity.
type Batch struct {
	Batch    int               `json:"batch"`     // counted from 1
	FirstRow int               `json:"first_row"` // counted from 1
	Rows     int               `json:"rows"`
	Invalid  int               `json:"invalid"` // rows with an error
	Sums     map[string]string `json:"sums"`    // exact decimals by output name
}

// Report is the run's result.
type Report struct {
	Rows    int               `json:"rows"`
	Invalid int               `json:"invalid"`
	Batches int               `json:"batches"`
	Sums    map[string]string `json:"sums"`
}

// open reads the options and the header, and finds the columns in it.
func open() error {
	if err := wasman.Input(&settings); err != nil {
		return err
	}
	if err := settings.check(); err != nil {
		return err
	}
	source = newCSVReader(wasman.Download())
	target = newLineWriter(wasman.Upload())
	header, err := source.header()
	if err != nil {
		return err
	}
	columns, err = settings.locate(header)
	return err
}

// nextBatch turns up to a batch of rows into lines and reports them to the activity.
func nextBatch() (more bool, err error) {
	batch := Batch{Batch: report.Batches + 1, FirstRow: report.Rows + 1, Sums: map[string]string{}}
	for batch.Rows < settings.BatchRows {
		more, err = source.next()
		if err != nil {
			return false, err
		}
		if !more {
			break
		}
		row := report.Rows + batch.Rows + 1
		batch.Rows++
		if valid := target.appendRow(row, source, columns); !valid {
			batch.Invalid++
		}
		if err := target.writeFullChunks(); err != nil {
			return false, err
		}
	}
	if batch.Rows == 0 {
		return false, nil
	}
	for i := range columns {
		columns[i].closeBatch(batch.Sums)
	}
	if err := wasman.Call(settings.Activity, batch, nil); err != nil {
		return false, err
	}
	report.Rows += batch.Rows
	report.Invalid += batch.Invalid
	report.Batches++
	return more, nil
}

// finish writes what is left, closes the upload and gives the result.
func finish() error {
	if err := target.close(); err != nil {
		return err
	}
	for i := range columns {
		columns[i].report(report.Sums)
	}
	return wasman.Result(report)
}
