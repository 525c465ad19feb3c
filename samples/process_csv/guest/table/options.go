package table

import "strconv"

// Options is the run's input.
type Options struct {
	Activity  string         `json:"activity"`   // called once a batch
	BatchRows int            `json:"batch_rows"` // rows between two calls, 5,000 when absent
	Columns   []ColumnOption `json:"columns"`    // in the order of the output; columns not named are dropped
}

// ColumnOption is one column of the output.
type ColumnOption struct {
	Name string  `json:"name"` // in the CSV's header
	As   string  `json:"as"`   // in the output, the same when absent
	Type string  `json:"type"` // string, integer, decimal or email
	Null *string `json:"null"` // the text that means null; absent: none does
	Sum  bool    `json:"sum"`  // of an integer or a decimal
}

// Problem is a failure of the run that its starter can mend.
type Problem struct {
	Type    string // InvalidOptions or InvalidCSV
	Message string
}

// Error is the message.
func (p *Problem) Error() string { return p.Message }

func problem(kind, message string) error { return &Problem{kind, message} }

// Check completes the options and refuses those that make no sense.
func (o *Options) Check() error {
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

// Locate finds the columns in the header.
func (o *Options) Locate(header []string) (Columns, error) {
	found := make(Columns, 0, len(o.Columns))
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
