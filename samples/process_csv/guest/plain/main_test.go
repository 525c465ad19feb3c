package main

import (
	"context"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"wasman.dev/guest"
	"wasman.dev/guest/wasmantest"
	"wasman.dev/samples/process_csv/table"
)

var record = wasman.NewActivity[table.Batch, wasman.None]("record")

const orders = "email,amount\na@b.c,12.50\nnot one,3\nc@b.c,abc\nd@b.c,-0.25\n"

func optionsOf(rows int) table.Options {
	return table.Options{Activity: "record", BatchRows: rows, Columns: []table.ColumnOption{
		{Name: "email", Type: "email"}, {Name: "amount", Type: "decimal", Sum: true},
	}}
}

// recording gives the host streams and an activity, and tells what comes to both.
func recording(host *wasmantest.Host, from io.Reader) (*strings.Builder, *[]table.Batch) {
	lines, batches := &strings.Builder{}, &[]table.Batch{}
	host.Source("", from)
	host.Sink("", lines)
	wasmantest.Handle(host, record, func(_ context.Context, batch table.Batch) (wasman.None, error) {
		*batches = append(*batches, batch)
		return wasman.None{}, nil
	})
	return lines, batches
}

func TestEveryBatchIsReported(t *testing.T) {
	sums := func(amount string) map[string]string { return map[string]string{"amount": amount} }
	for rows, want := range map[int][]table.Batch{
		1: {
			{Batch: 1, FirstRow: 1, Rows: 1, Sums: sums("12.5")}, {Batch: 2, FirstRow: 2, Rows: 1, Invalid: 1, Sums: sums("3")},
			{Batch: 3, FirstRow: 3, Rows: 1, Invalid: 1, Sums: sums("0")}, {Batch: 4, FirstRow: 4, Rows: 1, Sums: sums("-0.25")},
		},
		2: {
			{Batch: 1, FirstRow: 1, Rows: 2, Invalid: 1, Sums: sums("15.5")},
			{Batch: 2, FirstRow: 3, Rows: 2, Invalid: 1, Sums: sums("-0.25")},
		},
		3: {
			{Batch: 1, FirstRow: 1, Rows: 3, Invalid: 2, Sums: sums("15.5")},
			{Batch: 2, FirstRow: 4, Rows: 1, Sums: sums("-0.25")},
		},
		4: {{Batch: 1, FirstRow: 1, Rows: 4, Invalid: 2, Sums: sums("15.25")}},
		9: {{Batch: 1, FirstRow: 1, Rows: 4, Invalid: 2, Sums: sums("15.25")}},
	} {
		wasmantest.Run(t, func(t *testing.T, host *wasmantest.Host) {
			lines, batches := recording(host, iotest.OneByteReader(strings.NewReader(orders)))
			report, err := wasmantest.Execute(host, processCSV, optionsOf(rows))
			if err != nil {
				t.Fatal(err)
			}
			total := table.Report{Rows: 4, Invalid: 2, Batches: len(want), Sums: sums("15.25")}
			if !reflect.DeepEqual(report, total) || !reflect.DeepEqual(*batches, want) {
				t.Errorf("batches of %d rows: %v, %v", rows, report, *batches)
			}
			if got := strings.Count(lines.String(), "\n"); got != 4 || !strings.HasSuffix(lines.String(), "\"amount\":-0.25}\n") {
				t.Errorf("batches of %d rows: %s", rows, lines)
			}
		})
	}
}

func TestAFileWithoutRowsIsReportedAsSuch(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, host *wasmantest.Host) {
		lines, batches := recording(host, strings.NewReader("email,amount\n"))
		report, err := wasmantest.Execute(host, processCSV, optionsOf(2))
		if err != nil || report.Rows != 0 || report.Sums["amount"] != "0" || len(*batches) != 0 || lines.Len() != 0 {
			t.Error(report, err, *batches, lines)
		}
	})
}

func TestWhatItsStarterCanMendHasATypeOfItsOwn(t *testing.T) {
	twice := optionsOf(2)
	twice.Columns = append(twice.Columns, twice.Columns[0])
	for text, options := range map[string]table.Options{
		"InvalidCSV: the header has no column 'amount'":          optionsOf(2),
		"InvalidOptions: the output would have 'email' twice":    twice,
		"InvalidOptions: batch_rows is -1, not a number of rows": optionsOf(-1),
		"InvalidOptions: the input names no activity":            {Columns: twice.Columns},
		"InvalidOptions: the input names no columns":             {Activity: "record"},
		"InvalidCSV: row 1 has over 1048576 bytes: perhaps a quote is not closed": {
			Activity: "record", Columns: []table.ColumnOption{{Name: "email", Type: "string"}},
		},
	} {
		wasmantest.Run(t, func(t *testing.T, host *wasmantest.Host) {
			recording(host, strings.NewReader("email\n\""+strings.Repeat("x", 2<<20)))
			_, err := wasmantest.Execute(host, processCSV, options)
			failure, ok := wasman.ErrorOf[*wasman.Failure](err)
			if !ok || failure.Type+": "+failure.Message != text {
				t.Errorf("%v, not %s", err, text)
			}
		})
	}
}

func TestARunEndsWithItsActivity(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, host *wasmantest.Host) {
		recording(host, strings.NewReader(orders))
		wasmantest.Handle(host, record, func(context.Context, table.Batch) (wasman.None, error) {
			return wasman.None{}, errors.New("the ledger is full")
		})
		_, err := wasmantest.Execute(host, processCSV, optionsOf(2))
		if failed, ok := wasman.ErrorOf[*wasman.ActivityError](err); !ok || failed.Message != "the ledger is full" {
			t.Error(err)
		}
	})
}

func TestARunIsCancelledWhileItsActivityRuns(t *testing.T) {
	wasmantest.Run(t, func(t *testing.T, host *wasmantest.Host) {
		recording(host, strings.NewReader(orders))
		wasmantest.Handle(host, record, func(ctx context.Context, _ table.Batch) (wasman.None, error) {
			<-ctx.Done()
			return wasman.None{}, ctx.Err()
		})
		time.AfterFunc(time.Hour, func() { host.Cancel("enough") })
		if _, err := wasmantest.Execute(host, processCSV, optionsOf(2)); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
