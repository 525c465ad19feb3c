package iso8601

import (
	"encoding/json"
	"math"
	"testing"
	"time"
)

func TestWhatPythonWritesIsRead(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"PT0S":                0,
		"PT1.5S":              1500 * time.Millisecond,
		"PT0.000001S":         time.Microsecond,
		"-PT3S":               -3 * time.Second,
		"P1DT2H3M4.5S":        26*time.Hour + 3*time.Minute + 4500*time.Millisecond,
		"P1Y35D":              400 * day,
		"P2W":                 14 * day,
		"+PT1H":               time.Hour,
		"PT9223372036.85477S": 9223372036854770000,
	} {
		got, err := Parse(text)
		if err != nil || got != Duration(want) {
			t.Errorf("Parse(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
}

func TestWhatIsNoDurationIsRefused(t *testing.T) {
	for _, text := range []string{"", "P", "PT", "P1", "1S", "PS", "P1M", "PT1", "P1DT", "PT1.5H", "PT.5S", "PT1.S", "P1S",
		"PT1.2.3S", "PTT1S", "PT9223372037S", "P99999999999999999999D", "--PT1S"} {
		if got, err := Parse(text); err == nil {
			t.Errorf("Parse(%q) = %v", text, got)
		}
	}
	var d Duration
	for _, text := range []string{`3`, `"`, `"x"`} {
		if err := d.UnmarshalJSON([]byte(text)); err == nil {
			t.Errorf("%s was read as %v", text, d)
		}
	}
}

func TestEveryDurationIsWrittenExactly(t *testing.T) {
	for _, want := range []Duration{0, 1, -1, 1500000000, Duration(90 * day), math.MaxInt64, -math.MaxInt64} {
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Duration
		if err := json.Unmarshal(data, &got); err != nil || got != want {
			t.Errorf("%s was read as %v, %v; want %v", data, got, err, want)
		}
	}
	if got := Duration(math.MinInt64).String(); got != "-PT9223372036.854775808S" {
		t.Error(got)
	}
}
