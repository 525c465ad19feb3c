package table

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"io"
	"math"
	"math/big"
	"math/rand"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

// rowsOf reads text by the reader under test.
func rowsOf(t *testing.T, input io.Reader) (rows [][]string, unclosed bool) {
	t.Helper()
	r := NewReader(input)
	header, err := r.Header()
	if err != nil {
		t.Fatal(err)
	}
	rows = append(rows, header)
	for {
		more, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return rows, unclosed
		}
		unclosed = r.unclosed
		var row []string
		for i := range r.fields {
			row = append(row, string(r.field(i)))
		}
		rows = append(rows, row)
	}
}

func TestReading(t *testing.T) {
	for _, test := range []struct {
		text string
		want [][]string
	}{
		{"a,b\n1,2\n", [][]string{{"a", "b"}, {"1", "2"}}},
		{"a,b\r\n1,2", [][]string{{"a", "b"}, {"1", "2"}}},
		{"a,b\r\n1,2\r", [][]string{{"a", "b"}, {"1", "2"}}},
		{"\ufeffa\n1\n", [][]string{{"a"}, {"1"}}},
		{"\ufeff\"a\"\n1\n", [][]string{{"a"}, {"1"}}},
		{"a\n\"x\ny\"\n", [][]string{{"a"}, {"x\ny"}}},
		{"a\n\"x\r\ny\"\r\n", [][]string{{"a"}, {"x\r\ny"}}},
		{"a,b\n\"1,5\",\"say \"\"hi\"\"\"\n", [][]string{{"a", "b"}, {"1,5", `say "hi"`}}},
		{"a\n\"\"\n\"\"\"\"\n", [][]string{{"a"}, {""}, {`"`}}},
		{"a,b\n,\n\n\r\n3\n", [][]string{{"a", "b"}, {"", ""}, {"3"}}},
		{"a\nx\"y\"\n\"x\"y\"z\n", [][]string{{"a"}, {`x"y"`}, {`xy"z`}}},
		{"a\n\"x\"\"\"\"y\"\n", [][]string{{"a"}, {`x""y`}}},
		{"a\n1", [][]string{{"a"}, {"1"}}},
		{"a\n", [][]string{{"a"}}},
		{"a", [][]string{{"a"}}},
	} {
		for _, input := range []io.Reader{
			strings.NewReader(test.text), iotest.OneByteReader(strings.NewReader(test.text)),
		} {
			if got, unclosed := rowsOf(t, input); !reflect.DeepEqual(got, test.want) || unclosed {
				t.Errorf("%q: %q", test.text, got)
			}
		}
	}
}

func TestReadingAgreesWithTheStandardLibrary(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	alphabet := []string{"a", "b", " ", ",", "\"", "\n", "é", "x,y", "\r", "long text "}
	for range 3000 {
		var want [][]string
		for range 1 + random.Intn(6) {
			row := make([]string, 2+random.Intn(3))
			for i := range row {
				for range random.Intn(5) {
					row[i] += alphabet[random.Intn(len(alphabet))]
				}
			}
			want = append(want, row)
		}
		var text bytes.Buffer
		writer := csv.NewWriter(&text)
		writer.UseCRLF = false
		if err := writer.WriteAll(want); err != nil {
			t.Fatal(err)
		}
		if got, _ := rowsOf(t, iotest.HalfReader(&text)); !reflect.DeepEqual(got, want) {
			t.Fatalf("wrote %q, read %q", want, got)
		}
	}
}

func TestUnclosedQuoteAndOversizedRow(t *testing.T) {
	for _, text := range []string{"a\n1\n\"x\n", "a\n1\n\"", "a\n1\n\"x\"\"", "a\n1\n2,\""} {
		if rows, unclosed := rowsOf(t, strings.NewReader(text)); !unclosed || len(rows) != 3 {
			t.Errorf("%q: a quote that is not closed goes unnoticed: %q", text, rows)
		}
	}
	r := NewReader(io.MultiReader(strings.NewReader("a\n1\n\""), strings.NewReader(strings.Repeat("x", 3*largestRow))))
	if _, err := r.Header(); err != nil {
		t.Fatal(err)
	}
	_, _ = r.Next()
	_, err := r.Next()
	if err == nil || err.Error() != "row 2 has over 1048576 bytes: perhaps a quote is not closed" {
		t.Error(err)
	}
	if len(r.buffer) > 2*largestRow {
		t.Errorf("the buffer grew to %d", len(r.buffer))
	}
}

func TestDecimals(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"12.5", "12.5"}, {"12.50", "12.5"}, {"0", "0"}, {"-0.00", "0"}, {"+7", "7"}, {"007.100", "7.1"},
		{"-0.000001", "-0.000001"}, {"999999999999.999999", "999999999999.999999"}, {"-1.010", "-1.01"},
		{"", notDecimal}, {"-", notDecimal}, {".5", notDecimal}, {"5.", notDecimal}, {"1e3", notDecimal},
		{"abc", notDecimal}, {"1.2.3", notDecimal}, {" 1", notDecimal}, {"1,5", notDecimal}, {"--1", notDecimal},
		{"1.0000000", tooPrecise}, {"1000000000000", outOfRange}, {"99999999999999999999999.5", outOfRange},
		{"99999999999999999999999.x", notDecimal},
	} {
		micros, wrong := parseDecimal([]byte(test.text))
		if wrong == "" {
			wrong = string(appendDecimal(nil, micros))
		}
		if wrong != test.want {
			t.Errorf("%q: %q, not %q", test.text, wrong, test.want)
		}
	}
}

func TestIntegers(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"0", "0"}, {"-0", "0"}, {"+5", "5"}, {"0012", "12"}, {"9223372036854775807", "9223372036854775807"},
		{"-9223372036854775808", "-9223372036854775808"}, {"9223372036854775808", outOfRange},
		{"-9223372036854775809", outOfRange}, {"18446744073709551616", outOfRange}, {"99999999999999999999999", outOfRange},
		{"99999999999999999999999x", notInteger}, {"", notInteger}, {"+", notInteger}, {"1.0", notInteger}, {"NA", notInteger},
	} {
		number, wrong := parseInteger([]byte(test.text))
		if wrong == "" {
			wrong = strconv.FormatInt(number, 10)
		}
		if wrong != test.want {
			t.Errorf("%q: %q, not %q", test.text, wrong, test.want)
		}
	}
}

func TestEmails(t *testing.T) {
	for text, want := range map[string]bool{
		"a@b.c": true, "first.last@mail.example.org": true, "é@b.c": true,
		"": false, "a": false, "@b.c": false, "a@b": false, "a.b@c": false, "a@b@c.d": false, "a b@c.d": false, "a@b.c\n": false,
	} {
		if isEmail([]byte(text)) != want {
			t.Errorf("%q: not %v", text, want)
		}
	}
}

func TestSumsAreExact(t *testing.T) {
	random := rand.New(rand.NewSource(2))
	for range 300 {
		var sum exactSum
		exact := new(big.Int)
		for range random.Intn(40) {
			number := int64(random.Uint64()) >> random.Intn(64)
			sum.add(number)
			exact.Add(exact, big.NewInt(number))
		}
		checkText(t, sum, exact)
	}
	checkText(t, exactSum{math.MaxInt64, math.MaxUint64}, new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 127), big.NewInt(1)))
	checkText(t, exactSum{math.MinInt64, 0}, new(big.Int).Neg(new(big.Int).Lsh(big.NewInt(1), 127)))
}

func checkText(t *testing.T, sum exactSum, exact *big.Int) {
	t.Helper()
	if got := sum.text(0); got != exact.String() {
		t.Errorf("%s, not %s", got, exact)
	}
	got := sum.text(6)
	read, ok := new(big.Rat).SetString(got)
	if !ok || read.Cmp(new(big.Rat).SetFrac(exact, big.NewInt(micro))) != 0 {
		t.Errorf("%s, not %s millionths", got, exact)
	}
	if strings.Contains(got, ".") && strings.HasSuffix(got, "0") || strings.HasSuffix(got, ".") || strings.HasPrefix(got, "-0") && exact.Sign() == 0 {
		t.Errorf("%s is not the shortest form", got)
	}
}

// nowhere is an output that nothing is written to.
type nowhere struct{ io.Writer }

func (nowhere) Close() error { return nil }

func linesOf(t *testing.T, text string, columns ...ColumnOption) []string {
	t.Helper()
	o := Options{Activity: "a", Columns: columns}
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	source := NewReader(strings.NewReader(text))
	header, err := source.Header()
	if err != nil {
		t.Fatal(err)
	}
	located, err := o.Locate(header)
	if err != nil {
		t.Fatal(err)
	}
	w := NewWriter(nowhere{io.Discard})
	for row := 1; ; row++ {
		more, err := source.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
		w.appendRow(row, source, located)
	}
	lines := strings.Split(strings.TrimSuffix(string(w.lines), "\n"), "\n")
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	return lines
}

func TestLines(t *testing.T) {
	na := "NA"
	got := linesOf(t, "email,x,amount,dep\na@b.c,drop,12.50,NA\nnot one,drop,abc,5\n\"q\"\"@b.c\",,1,x\n1,2\n\xff@b.c,,-1,1\na@b.c,,\"1\n",
		ColumnOption{Name: "email", Type: "email"},
		ColumnOption{Name: "amount", Type: "decimal", Sum: true},
		ColumnOption{Name: "dep", As: "departure \"t\"", Type: "integer", Null: &na})
	want := []string{
		`{"row":1,"email":"a@b.c","amount":12.5,"departure \"t\"":null}`,
		`{"row":2,"email":null,"amount":null,"departure \"t\"":5,"error":"email: 'not one' is not an email address; amount: 'abc' is not a decimal"}`,
		`{"row":3,"email":"q\"@b.c","amount":1,"departure \"t\"":null,"error":"departure \"t\": 'x' is not an integer"}`,
		`{"row":4,"email":null,"amount":null,"departure \"t\"":null,"error":"2 fields instead of 4"}`,
		"{\"row\":5,\"email\":null,\"amount\":-1,\"departure \\\"t\\\"\":1,\"error\":\"email: '\ufffd@b.c' is not UTF-8\"}",
		`{"row":6,"email":null,"amount":null,"departure \"t\"":null,"error":"a quoted field is not closed"}`,
	}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Errorf("line %d:\n%s\n%s", i+1, got[min(i, len(got)-1)], want[i])
		}
	}
}

func TestEscapesAreRead(t *testing.T) {
	var all strings.Builder
	for r := rune(0); r < 0x300; r++ {
		all.WriteRune(r)
	}
	all.WriteString("\U0001f600")
	var read string
	text := append(appendString([]byte{'"'}, []byte(all.String())), '"')
	if err := json.Unmarshal(text, &read); err != nil || read != all.String() {
		t.Errorf("%v: %q", err, read)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	one := []ColumnOption{{Name: "a", Type: "string"}}
	for _, test := range []struct {
		options Options
		want    string
	}{
		{Options{Columns: one}, "the input names no activity"},
		{Options{Activity: "x"}, "the input names no columns"},
		{Options{Activity: "x", BatchRows: -1, Columns: one}, "batch_rows is -1, not a number of rows"},
		{Options{Activity: "x", Columns: []ColumnOption{{Name: "a", Type: "date"}}}, "column 'a' has the unknown type 'date'"},
		{Options{Activity: "x", Columns: []ColumnOption{{Name: "a", Type: "string", Sum: true}}}, "column 'a' is of type string, which has no sum"},
		{Options{Activity: "x", Columns: []ColumnOption{{Name: "a", As: "row", Type: "string"}}}, "the output would have 'row' twice"},
		{Options{Activity: "x", Columns: append(one, one...)}, "the output would have 'a' twice"},
	} {
		if err := test.options.Check(); err == nil || err.Error() != test.want {
			t.Errorf("%v, not %q", err, test.want)
		}
	}
	o := Options{Columns: one}
	if _, err := o.Locate([]string{"b"}); err == nil || err.Error() != "the header has no column 'a'" {
		t.Error(err)
	}
	if _, err := o.Locate([]string{"a", "a"}); err == nil || err.Error() != "the header has column 'a' twice" {
		t.Error(err)
	}
	if _, err := NewReader(strings.NewReader("")).Header(); err == nil || err.Error() != "the CSV is empty: it has no header" {
		t.Error(err)
	}
}
