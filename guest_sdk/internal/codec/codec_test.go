package codec

import (
	"encoding/json"
	"math"
	"math/rand"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

type inner struct {
	A int     `json:"a"`
	B string  `json:"b,omitempty"`
	C float64 `json:"-"`
}

// Embedded is embedded.
type Embedded struct {
	Hidden string
	Deep   *inner
}

type everything struct {
	Bool     bool
	Int      int64
	Small    int8
	Unsigned uint64
	Float    float64
	Single   float32
	Text     string  `json:"text"`
	Quoted   int     `json:"quoted,string"`
	Maybe    *string `json:"maybe,omitempty"`
	Pointer  *inner
	List     []inner
	Texts    []string
	Three    [3]int
	Bytes    []byte
	Map      map[string]int
	Numbered map[int]string
	When     time.Time
	Long     time.Duration
	Any      any
	Hidden   int
	Embedded
	private int
}

func word(r *rand.Rand) string {
	letters := []rune("ab \"\\\n\t\r\b\f\x00\x1f/<>&é漢\u2028\U0001f600\ufffd")
	var b strings.Builder
	for range r.Intn(12) {
		b.WriteRune(letters[r.Intn(len(letters))])
	}
	return b.String()
}

func drawn(r *rand.Rand) everything {
	text := word(r)
	e := everything{
		Bool: r.Intn(2) == 0, Int: int64(r.Uint64()) >> r.Intn(64), Small: int8(r.Intn(256)), Unsigned: r.Uint64() >> r.Intn(64),
		Float: math.Ldexp(r.NormFloat64(), r.Intn(200)-100), Single: float32(r.NormFloat64()), Text: word(r), Quoted: r.Intn(99),
		Texts: []string{}, List: []inner{}, Bytes: []byte{}, Map: map[string]int{}, Numbered: map[int]string{},
		When: time.Unix(r.Int63n(1e10), r.Int63n(1e9)).UTC(), Long: time.Duration(r.Int63()),
		Embedded: Embedded{Hidden: "hidden"}, Hidden: 7,
	}
	if r.Intn(2) == 0 {
		e.Maybe, e.Pointer, e.Deep = &text, &inner{A: r.Intn(9)}, &inner{B: word(r)}
	}
	for range r.Intn(3) {
		e.List = append(e.List, inner{A: r.Intn(1000), B: word(r)})
		e.Texts = append(e.Texts, word(r))
		e.Bytes = append(e.Bytes, byte(r.Intn(256)))
		e.Map[word(r)] = r.Intn(9)
		e.Numbered[r.Intn(2000)-1000] = word(r)
	}
	e.Any = []any{nil, true, "x", 1.5, map[string]any{"k": []any{}, "a": 1e300}, 0.0}[r.Intn(6)]
	return e
}

// plain is what encoding/json writes, without its escapes for HTML.
func plain(t *testing.T, v any) string {
	t.Helper()
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func TestWritesWhatTheStandardLibraryWrites(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for range 3000 {
		e := drawn(r)
		got, err := Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if want := plain(t, e); string(got) != want {
			t.Fatalf("\n%s\n%s", got, want)
		}
	}
}

func TestReadsWhatTheStandardLibraryReads(t *testing.T) {
	r := rand.New(rand.NewSource(2))
	for range 3000 {
		data, err := json.MarshalIndent(drawn(r), " ", "\t")
		if err != nil {
			t.Fatal(err)
		}
		var got, want everything
		if err := Unmarshal(data, &got); err != nil {
			t.Fatalf("%v: %s", err, data)
		}
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("\n%+v\n%+v\n%s", got, want, data)
		}
	}
}

func TestNothingIsTheEmptyList(t *testing.T) {
	got, err := Marshal(struct {
		L []int
		M map[string]int
		B []byte
		P *int
	}{})
	if want := `{"L":[],"M":{},"B":"","P":null}`; err != nil || string(got) != want {
		t.Fatalf("%s, %v", got, err)
	}
}

func TestNumbersAreExact(t *testing.T) {
	for _, text := range []string{"9223372036854775807", "-9223372036854775808", "9007199254740993"} {
		var n int64
		if err := Unmarshal([]byte(text), &n); err != nil || strconv.FormatInt(n, 10) != text {
			t.Errorf("%s: %d, %v", text, n, err)
		}
	}
	var n uint64
	if err := Unmarshal([]byte("18446744073709551615"), &n); err != nil || n != math.MaxUint64 {
		t.Errorf("%d, %v", n, err)
	}
}

func TestWhatDoesNotFitNamesTheField(t *testing.T) {
	type order struct {
		Items []struct {
			Count uint8 `json:"count"`
		} `json:"items"`
		When time.Time      `json:"when"`
		By   map[string]int `json:"by"`
	}
	for text, want := range map[string]string{
		`{"items":[{"count":1},{"count":300}]}`: "items[1].count: 300 does not fit into a uint8 (byte 31)",
		`{"items":[{"count":"x"}]}`:             `items[0].count: "x" does not fit into a uint8 (byte 19)`,
		`{"items":{}}`:                          "items: {} does not fit into a []struct",
		`{"when":"today"}`:                      "when: 'today' is no time as RFC 3339 writes it",
		`{"by":{"me":1.5}}`:                     "by[me]: 1.5 does not fit into a int (byte 12)",
		`{"items":[`:                            "items[0]: this is no JSON",
		`{"items":[]} x`:                        "more stands behind the value",
		`{"items":[],}`:                         "a name should stand here",
		``:                                      "this is no JSON",
	} {
		var o order
		err := Unmarshal([]byte(text), &o)
		if err == nil || !strings.HasPrefix(err.Error(), strings.TrimSuffix(want, "…")) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestWhatJSONHasNoPlaceFor(t *testing.T) {
	ring := map[string]any{}
	ring["me"] = ring
	type holder struct {
		Price map[string][]float64 `json:"price"`
	}
	for want, v := range map[string]any{
		"price[a][1]: JSON has no place for NaN":  holder{map[string][]float64{"a": {1, math.NaN()}}},
		"JSON has no place for +Inf":              math.Inf(1),
		"JSON has no place for a chan int":        make(chan int),
		"JSON's names are text, and a bool is no": map[bool]int{true: 1},
		"values lie within each other more than":  ring,
		"the year 10000 has no place in RFC 3339": time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if _, err := Marshal(v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestTimesAreReadAsTheStandardLibraryReadsThem(t *testing.T) {
	for _, text := range []string{
		"2026-01-02T03:04:05Z", "2026-01-02T03:04:05.1Z", "2026-12-31T23:59:59.999999999+05:30", "2024-02-29T00:00:00-11:00",
		"0000-01-01T00:00:00Z", "2023-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-01-02T24:00:00Z", "2026-01-02T03:04:05",
		"2026-01-02T03:04Z", "26-01-02T03:04:05Z", "2026-01-02T03:04:05.Z", "2026-01-02T03:04:05Zx", "", "2026-1-02T03:04:05Z",
		"2026-01-02T03:04:60Z", "2026-04-31T03:04:05Z", "2026-01-00T03:04:05Z", "abcd-01-02T03:04:05Z",
	} {
		want, wrong := time.Parse(time.RFC3339, text)
		got, ok := readMoment(text)
		if ok != (wrong == nil) || ok && !got.Equal(want) {
			t.Errorf("%q: %v, %v; package time: %v, %v", text, got, ok, want, wrong)
		}
	}
	r := rand.New(rand.NewSource(3))
	for range 2000 {
		moment := time.Unix(r.Int63n(1e11), r.Int63n(1e9)).In(time.FixedZone("", (r.Intn(1440)-720)*60))
		if got, want := string(appendMoment(nil, moment)), moment.Format(time.RFC3339Nano); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}

func TestBadUTF8IsReplaced(t *testing.T) {
	got, err := Marshal("a\xffb")
	if err != nil || string(got) != "\"a\ufffdb\"" {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"\"a\xffb\"", `"\ud800"`, `"\ud800x"`, `"\udc00\ud800"`, "\"\\n\xff\"", `"\ud83d\ude00"`} {
		var got, want string
		if err := Unmarshal([]byte(text), &got); err != nil {
			t.Error(err)
		}
		if err := json.Unmarshal([]byte(text), &want); err != nil || got != want {
			t.Errorf("%q: %q, not %q", text, got, want)
		}
	}
}

type shouting string

func (s shouting) MarshalJSON() ([]byte, error) {
	return []byte(`"` + strings.ToUpper(string(s)) + `"`), nil
}

func (s *shouting) UnmarshalJSON(data []byte) error {
	*s = shouting(strings.ToLower(strings.Trim(string(data), `"`)))
	return nil
}

func TestTypesMayReadAndWriteThemselves(t *testing.T) {
	type holder struct {
		S    shouting
		P    *shouting
		Skip Raw
	}
	p := shouting("b")
	got, err := Marshal(holder{"a", &p, Raw(`{"x": 1}`)})
	if err != nil || string(got) != `{"S":"A","P":"B","Skip":{"x": 1}}` {
		t.Fatalf("%s, %v", got, err)
	}
	var back holder
	if err := Unmarshal(got, &back); err != nil || back.S != "a" || *back.P != "b" || string(back.Skip) != `{"x": 1}` {
		t.Fatalf("%+v, %v", back, err)
	}
}

// card writes and reads itself by methods of its pointer.
type card struct{ number string }

func (c *card) MarshalJSON() ([]byte, error) { return []byte(`"` + c.number + `"`), nil }
func (c *card) UnmarshalJSON(data []byte) error {
	c.number = strings.Trim(string(data), `"`)
	return nil
}

func TestMethodsOfThePointerAreThoseOfTheValue(t *testing.T) {
	type holder struct {
		One   card
		Point *card
		None  *card
		List  []card
		Three [1]card
		Map   map[string]card
		Any   any
	}
	given := holder{card{"1"}, &card{"2"}, nil, []card{{"3"}}, [1]card{{"4"}}, map[string]card{"k": {"5"}}, card{"6"}}
	want := `{"One":"1","Point":"2","None":null,"List":["3"],"Three":["4"],"Map":{"k":"5"},"Any":"6"}`
	for _, v := range []any{given, &given} {
		if got, err := Marshal(v); err != nil || string(got) != want {
			t.Errorf("%s, %v", got, err)
		}
	}
	var back holder
	if err := Unmarshal([]byte(want), &back); err != nil {
		t.Fatal(err)
	}
	if back.Any = given.Any; !reflect.DeepEqual(back, given) {
		t.Fatalf("%+v", back)
	}
}

type (
	closed  struct{ a, b int }
	empty   struct{}
	omitted struct {
		Secret string `json:"-"`
	}
	embedding struct{ closed }
)

func TestAStructThatShowsNothingIsRefused(t *testing.T) {
	for _, v := range []any{closed{1, 2}, &closed{}, embedding{}} {
		name := strings.TrimPrefix(reflect.TypeOf(v).String(), "*")
		got, err := Marshal(struct {
			Within []any `json:"within"`
		}{[]any{v}})
		if err == nil || !strings.HasPrefix(err.Error(), "within[0]: JSON would hold nothing of a "+name+": ") {
			t.Errorf("%s, %v", got, err)
		}
	}
	var c closed
	if err := Unmarshal([]byte("{}"), &c); err == nil || !strings.Contains(err.Error(), "nothing of a codec.closed") {
		t.Error(err)
	}
	for _, v := range []any{empty{}, struct{ empty }{}, omitted{"x"}} { // nothing is lost, or nobody wants it kept
		if got, err := Marshal(v); err != nil || string(got) != "{}" {
			t.Errorf("%s, %v", got, err)
		}
	}
}

type liar string

func (l liar) MarshalJSON() ([]byte, error) { return []byte(l), nil }

// month is zero at 7, as it says itself.
type month int

func (m month) IsZero() bool { return m == 7 }

// counter says so by a method of its pointer.
type counter struct{ N int }

func (c *counter) IsZero() bool { return c.N == 9 }

type omitting struct {
	When    time.Time      `json:"when,omitzero"`
	Count   int            `json:",omitzero"`
	Part    inner          `json:"part,omitzero"`
	Pointer *int           `json:"pointer,omitzero"`
	List    []int          `json:"list,omitzero"`
	Map     map[string]int `json:"map,omitzero"`
	Month   month          `json:"month,omitzero"`
	Counter counter        `json:"counter,omitzero"`
	Counted *counter       `json:"counted,omitzero"`
	Any     any            `json:"any,omitzero"`
	Both    []int          `json:"both,omitempty,omitzero"`
}

func TestZeroIsLeftOutAsTheTagSays(t *testing.T) {
	five := 5
	for _, v := range []omitting{
		{},
		{Month: 7, Counter: counter{9}, Counted: &counter{9}, Any: 0},
		{When: time.Unix(0, 0).UTC(), Count: 1, Part: inner{A: 1}, Pointer: &five, List: []int{}, Map: map[string]int{}, Month: 1,
			Counter: counter{1}, Counted: &counter{}, Any: "", Both: []int{}},
		{When: time.Time{}.In(time.FixedZone("", 3600)), Any: time.Time{}},
	} {
		for _, given := range []any{v, &v} {
			if got, err := Marshal(given); err != nil || string(got) != plain(t, given) {
				t.Errorf("\n%s, %v\n%s", got, err, plain(t, given))
			}
		}
	}
}

type (
	byPointer struct {
		*inner
		D int
	}
	byName struct {
		inner `json:"in"`
		D     int
	}
	byBoth struct {
		*inner `json:"in"`
		D      int
	}
)

func TestEmbeddedStructsThatAreNotExportedShowWhatIs(t *testing.T) {
	for _, v := range []any{
		byPointer{&inner{A: 1, B: "b"}, 2}, byPointer{D: 2}, byName{inner{A: 1}, 2}, byBoth{&inner{A: 1}, 2}, byBoth{D: 2},
	} {
		if got, err := Marshal(v); err != nil || string(got) != plain(t, v) {
			t.Errorf("\n%s, %v\n%s", got, err, plain(t, v))
		}
	}
	named := byName{}
	if err := Unmarshal([]byte(`{"in":{"a":1},"D":2}`), &named); err != nil || named.A != 1 || named.D != 2 {
		t.Errorf("%+v, %v", named, err)
	}
	made := byPointer{inner: &inner{}}
	if err := Unmarshal([]byte(`{"a":1,"D":2}`), &made); err != nil || made.A != 1 {
		t.Errorf("%+v, %v", made, err)
	}
	for text, into := range map[string]any{`{"D":2,"a":1}`: &byPointer{}, `{"in":{"a":1}}`: &byBoth{}} {
		err := Unmarshal([]byte(text), into)
		if err == nil || !strings.Contains(err.Error(), "cannot be made: codec.inner is not exported") {
			t.Errorf("%s: %+v, %v", text, into, err)
		}
	}
	if none := (byPointer{}); Unmarshal([]byte(`{"D":2}`), &none) != nil || none.D != 2 {
		t.Errorf("%+v", none)
	}
}

func TestWhatOthersSayIsJSONMustBeIt(t *testing.T) {
	for _, text := range []string{`{`, `{x}`, `[1,]`, `1 2`, `"`, `nul`} {
		for whose, v := range map[string]any{"a wasman.JSON": Raw(text), "what MarshalJSON gives": liar(text)} {
			got, err := Marshal(map[string]any{"k": v})
			if err == nil || !strings.HasPrefix(err.Error(), "[k]: "+whose+" is no JSON: ") {
				t.Errorf("%s: %s, %v", text, got, err)
			}
		}
	}
	for given, want := range map[string]string{"": "null", " [ 1 ] ": " [ 1 ] "} {
		if got, err := Marshal(Raw(given)); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
}

func TestAnyCountsOnceForEachLevel(t *testing.T) {
	nested := func(depth int) (v any) {
		for range depth {
			v = []any{v}
		}
		return v
	}
	data, err := Marshal(nested(maxDepth))
	if err != nil {
		t.Fatal(err)
	}
	var back any
	if err := Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, nested(maxDepth)) {
		t.Fatal(err)
	}
	if _, err := Marshal(nested(maxDepth + 2)); err == nil {
		t.Fatal("a value is nested deeper than may be")
	}
}

func TestANumberInAStringIsAllOfIt(t *testing.T) {
	var v struct {
		N int `json:"n,string"`
	}
	if err := Unmarshal([]byte(`{"n":"12"}`), &v); err != nil || v.N != 12 {
		t.Fatal(v, err)
	}
	if err := Unmarshal([]byte(`{"n":"12x"}`), &v); err == nil || !strings.HasPrefix(err.Error(), "n: more stands behind") {
		t.Fatal(v, err)
	}
}

func FuzzWhatIsReadIsReadAlike(f *testing.F) {
	for _, seed := range []string{`{"Int":1,"List":[{"a":2}],"Any":[1,{"x":null}]}`, `[[[[`, `{"text":"\ud83d`, `-0.0e+7`, `nul`, `{"Map":{"":1}}`} {
		f.Add([]byte(seed))
	}
	f.Add([]byte(strings.Repeat("[", 100_000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got, want any
		mine, theirs := Unmarshal(data, &got), json.Unmarshal(data, &want)
		deep := mine != nil && strings.Contains(mine.Error(), "deep")
		if (mine == nil) != (theirs == nil) && !deep {
			t.Fatalf("%q: %v, and encoding/json %v", data, mine, theirs)
		}
		if mine == nil && !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: %v, and encoding/json %v", data, got, want)
		}
		var whole everything
		_ = Unmarshal(data, &whole)
	})
}
