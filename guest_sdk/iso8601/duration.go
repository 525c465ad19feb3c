// Package iso8601 has durations as other languages write them in JSON: "PT1.5S", "P3DT2H".
package iso8601

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration whose JSON is an ISO 8601 duration. Python's timedelta reads and writes the same.
type Duration time.Duration

const (
	day  = 24 * time.Hour
	year = 365 * day // as pydantic counts
)

// String is the duration in ISO 8601.
func (d Duration) String() string {
	sign, rest := "", uint64(d)
	if d < 0 {
		sign, rest = "-", -rest
	}
	seconds, fraction := rest/uint64(time.Second), rest%uint64(time.Second)
	text := strconv.FormatUint(seconds, 10)
	if fraction > 0 {
		nanoseconds := strconv.FormatUint(fraction, 10)
		text += "." + strings.TrimRight(strings.Repeat("0", 9-len(nanoseconds))+nanoseconds, "0")
	}
	return sign + "PT" + text + "S"
}

// MarshalJSON writes the duration in seconds, exactly.
func (d Duration) MarshalJSON() ([]byte, error) { return []byte(`"` + d.String() + `"`), nil }

// UnmarshalJSON reads any ISO 8601 duration without months, whose length nobody knows. A year has 365 days.
func (d *Duration) UnmarshalJSON(data []byte) error {
	text := string(data)
	if text == "null" {
		return nil
	}
	if len(text) < 2 || text[0] != '"' || text[len(text)-1] != '"' {
		return errors.New(text + " is no ISO 8601 duration, such as \"PT1.5S\"")
	}
	read, err := Parse(text[1 : len(text)-1])
	if err == nil {
		*d = read
	}
	return err
}

// Parse reads an ISO 8601 duration.
func Parse(text string) (Duration, error) {
	bad := errors.New("'" + text + "' is no ISO 8601 duration, such as 'PT1.5S', or not one of a known length")
	rest, sign := text, time.Duration(1)
	if strings.HasPrefix(rest, "-") || strings.HasPrefix(rest, "+") {
		if rest[0] == '-' {
			sign = -1
		}
		rest = rest[1:]
	}
	if !strings.HasPrefix(rest, "P") || len(rest) < 3 {
		return 0, bad
	}
	rest = rest[1:]
	units, inTime := map[byte]time.Duration{'Y': year, 'W': 7 * day, 'D': day}, false
	var total time.Duration
	for rest != "" {
		if rest[0] == 'T' && !inTime && len(rest) > 1 {
			units, inTime = map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second}, true
			rest = rest[1:]
			continue
		}
		end := strings.IndexFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' && r != ',' })
		if end <= 0 {
			return 0, bad
		}
		unit, known := units[rest[end]]
		part, ok := amount(rest[:end], unit, rest[end] == 'S')
		if !known || !ok || total > 1<<63-1-part {
			return 0, bad
		}
		total += part
		rest = rest[end+1:]
	}
	return Duration(sign * total), nil
}

// amount is a number of units; seconds may have a fraction, of which nanoseconds count.
func amount(text string, unit time.Duration, fractional bool) (time.Duration, bool) {
	whole, fraction, cut := strings.Cut(strings.Replace(text, ",", ".", 1), ".")
	if cut && (!fractional || fraction == "") {
		return 0, false
	}
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || unit > 0 && n > (1<<63-1)/int64(unit) {
		return 0, false
	}
	total := time.Duration(n) * unit
	if fraction != "" {
		nanoseconds, err := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
		if err != nil || total > 1<<63-1-time.Duration(nanoseconds) {
			return 0, false
		}
		total += time.Duration(nanoseconds)
	}
	return total, true
}
