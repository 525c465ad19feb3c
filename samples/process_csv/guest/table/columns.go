package table

import "strconv"

// kind is a column's type.
type kind int

const (
	kindString kind = iota
	kindInteger
	kindDecimal
	kindEmail
)

var kinds = map[string]kind{"string": kindString, "integer": kindInteger, "decimal": kindDecimal, "email": kindEmail}

// What is wrong with a value, after the value.
const (
	notUTF8       = " is not UTF-8"
	notInteger    = " is not an integer"
	notDecimal    = " is not a decimal"
	notEmail      = " is not an email address"
	tooPrecise    = " has more than 6 fraction digits"
	outOfRange    = " is out of range"
	notClosed     = "a quoted field is not closed"
	errorsBetween = "; "
)

// column is one column of the output.
type column struct {
	kind    kind
	field   int    // its place in a row of the CSV
	name    string // in the output
	key     string // `,"name":`
	hasNull bool
	null    string // the text that means null
	sums    bool
	batch   exactSum
	total   exactSum
}

func newColumn(option ColumnOption, field int) column {
	key := append(appendString([]byte(`,"`), []byte(option.As)), `":`...)
	c := column{kind: kinds[option.Type], field: field, name: option.As, key: string(key), sums: option.Sum}
	if option.Null != nil {
		c.hasNull, c.null = true, *option.Null
	}
	return c
}

// appendValue appends the JSON of a valid value, and adds it to the sum. Of another it tells what is wrong.
func (c *column) appendValue(line, value []byte) (_ []byte, wrong string) {
	if c.hasNull && isText(value, c.null) {
		return append(line, "null"...), ""
	}
	switch c.kind {
	case kindInteger:
		number, wrong := parseInteger(value)
		if wrong != "" {
			return line, wrong
		}
		if c.sums {
			c.batch.add(number)
		}
		return strconv.AppendInt(line, number, 10), ""
	case kindDecimal:
		micros, wrong := parseDecimal(value)
		if wrong != "" {
			return line, wrong
		}
		if c.sums {
			c.batch.add(micros)
		}
		return appendDecimal(line, micros), ""
	case kindEmail:
		if !isEmail(value) {
			return line, notEmail
		}
	}
	if !validText(value) {
		return line, notUTF8
	}
	return append(appendString(append(line, '"'), value), '"'), ""
}

// isText compares by hand: for bytes.Equal TinyGo copies both sides into strings.
func isText(value []byte, text string) bool {
	if len(value) != len(text) {
		return false
	}
	for i := range value {
		if value[i] != text[i] {
			return false
		}
	}
	return true
}

// isEmail accepts a non-empty local part, one @, and a domain with a dot in it; no spaces or control characters.
func isEmail(value []byte) bool {
	at, dot := -1, -1
	for i, b := range value {
		switch {
		case b == '@':
			if at >= 0 {
				return false
			}
			at = i
		case b == '.':
			dot = i
		case b <= ' ' || b == 0x7f:
			return false
		}
	}
	return at > 0 && dot > at
}

// scale is the number of fraction digits in the column's sums.
func (c *column) scale() int {
	if c.kind == kindDecimal {
		return decimalDigits
	}
	return 0
}

// Columns are those of the output, in its order.
type Columns []column

// CloseBatch gives the sums of the rows since the last one, as exact decimals by the name in the output.
func (all Columns) CloseBatch() map[string]string {
	sums := map[string]string{}
	for i := range all {
		if c := &all[i]; c.sums {
			sums[c.name] = c.batch.text(c.scale())
			c.total.addSum(c.batch)
			c.batch = exactSum{}
		}
	}
	return sums
}

// Totals gives the sums of all batches that are closed.
func (all Columns) Totals() map[string]string {
	sums := map[string]string{}
	for i := range all {
		if c := &all[i]; c.sums {
			sums[c.name] = c.total.text(c.scale())
		}
	}
	return sums
}
