package main

import (
	"strconv"

	wasman "wasman.dev/guest/v0"
)

// options is the run's input.
type options struct {
	Activity  string         `json:"activity"`   // called once a batch
	BatchRows int            `json:"batch_rows"` // rows between two calls, 5,000 when absent
	Columns   []columnOption `json:"columns"`    // in the order of the output; columns not named are dropped
}

type columnOption struct {
	Name string  `json:"name"` // in the CSV's header
	As   string  `json:"as"`   // in the output, the same when absent
	Type string  `json:"type"` // string, integer, decimal or email
	Null *string `json:"null"` // the text that means null; absent: none does
	Sum  bool    `json:"sum"`  // of an integer or a decimal
}

// problem is a failure of the run that its starter can mend.
func problem(kind, message string) error {
	return &wasman.Failure{Type: kind, Message: message}
}

// check completes the options and refuses those that make no sense.
func (o *options) check() error {
	if o.BatchRows == 0 {
		o.BatchRows = 5000
	}
	switch {
	case o.Activity == "":
		return problem("InvalidOptions", "the input names no activity")
	case o.BatchRows < 0:
		return problem("InvalidOptions", "batch_rows is "+strconv.Itoa(o.BatchRows)+", not a number of rows")
	case len(o.Columns) == 0:
		return problem("InvalidOptions", "the input names no columns")
	}
	taken := map[string]bool{"row": true, "error": true} // each line has these
	for i := range o.Columns {
		c := &o.Columns[i]
		if c.As == "" {
			c.As = c.Name
		}
		if taken[c.As] {
			return problem("InvalidOptions", "the output would have "+quoted(c.As)+" twice")
		}
		taken[c.As] = true
		kind, known := kinds[c.Type]
		if !known {
			return problem("InvalidOptions", "column "+quoted(c.Name)+" has the unknown type "+quoted(c.Type))
		}
		if c.Sum && kind != kindInteger && kind != kindDecimal {
			return problem("InvalidOptions", "column "+quoted(c.Name)+" is of type "+c.Type+", which has no sum")
		}
	}
	return nil
}

// locate finds the columns in the header.
func (o *options) locate(header []string) ([]column, error) {
	found := make([]column, 0, len(o.Columns))
	for _, option := range o.Columns {
		at := -1
		for i, name := range header {
			if name != option.Name {
				continue
			}
			if at >= 0 {
				return nil, problem("InvalidCSV", "the header has column "+quoted(name)+" twice")
			}
			at = i
		}
		if at < 0 {
			return nil, problem("InvalidCSV", "the header has no column "+quoted(option.Name))
		}
		found = append(found, newColumn(option, at))
	}
	return found, nil
}

func quoted(name string) string { return "'" + name + "'" }
