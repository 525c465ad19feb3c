package wasman

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"wasman.dev/guest/v0/internal/abi"
)

// host plays one for a test: answers by name, and a record of what was asked.
type host struct {
	answers map[string]string // by name; absent means the call fails
	asked   []string          // "name request"
	stays   string            // the call whose answer did not fit
}

func play(t *testing.T, answers map[string]string) *host {
	t.Helper()
	before := abi.Host
	t.Cleanup(func() { abi.Host = before })
	h := &host{answers: answers}
	abi.Host.CallAPI = h.callAPI
	return h
}

func (h *host) callAPI(name string, request, response []byte) int32 {
	call := strings.TrimSpace(name + " " + string(request))
	if call != h.stays {
		h.asked = append(h.asked, call)
	}
	h.stays = ""
	answer, ok := h.answers[name]
	switch {
	case name == nameFail:
		panic("failed: " + string(request)) // as the real call, it does not return
	case !ok:
		return abi.Failed
	case len(answer) > len(response):
		h.stays = call
		return abi.TooLarge
	}
	return int32(copy(response, answer))
}

func TestCallEncodesTheRequestAndDecodesTheAnswer(t *testing.T) {
	h := play(t, map[string]string{"greet": `{"text":"hello Ada"}`})
	var answer struct{ Text string }
	if err := Call("greet", map[string]string{"name": "Ada"}, &answer); err != nil {
		t.Fatal(err)
	}
	if answer.Text != "hello Ada" || h.asked[0] != `greet {"name":"Ada"}` {
		t.Fatalf("answer %q, asked %q", answer.Text, h.asked)
	}
}

func TestCallWithoutRequestSendsNothing(t *testing.T) {
	h := play(t, map[string]string{"ping": ""})
	if err := Call("ping", nil, nil); err != nil {
		t.Fatal(err)
	}
	if h.asked[0] != "ping" {
		t.Fatalf("asked %q", h.asked)
	}
}

func TestLargeAnswersAreFetchedByTheIdenticalCall(t *testing.T) {
	for _, size := range []int{0, 1, smallResponse - 1, smallResponse, smallResponse + 1, 300_000} {
		want := strings.Repeat("x", size)
		h := play(t, map[string]string{"big": want})
		got, err := CallBytes("big", []byte("request"))
		if err != nil || string(got) != want {
			t.Fatalf("%d bytes: got %d, %v", size, len(got), err)
		}
		if len(h.asked) != 1 {
			t.Fatalf("%d bytes: the host saw %d different calls", size, len(h.asked))
		}
	}
}

func TestCallBytesOutlivesTheNextCall(t *testing.T) {
	play(t, map[string]string{"a": "first", "b": "other"})
	first, _ := CallBytes("a", nil)
	if _, err := CallBytes("b", nil); err != nil {
		t.Fatal(err)
	}
	if string(first) != "first" {
		t.Fatalf("the first answer became %q", first)
	}
}

func TestFailedActivityIsTyped(t *testing.T) {
	play(t, map[string]string{
		nameError: `{"type":"ValueError","message":"no such name","activity":"greet","attempt":3,"details":{"name":"?"}}`,
	})
	err := Call("greet", "?", nil)
	failed, ok := ErrorOf[*ActivityError](fmt.Errorf("greeting: %w", err))
	if !ok || failed.Attempt != 3 || string(failed.Details) != `{"name":"?"}` {
		t.Fatalf("%#v", failed)
	}
	if failed.Error() != "greet failed at attempt 3: ValueError: no such name" {
		t.Fatal(failed.Error())
	}
}

func TestFailedActivityHasItsCause(t *testing.T) {
	play(t, map[string]string{
		nameError: `{"type":"OSError","message":"m","activity":"greet","attempt":1,"cause":{"type":"A","message":"a","cause":{"type":"B","message":"b"}}}`,
	})
	failed, _ := ErrorOf[*ActivityError](Call("greet", "?", nil))
	if failed.Cause == nil || failed.Cause.Type != "A" || failed.Cause.Cause.Message != "b" || failed.Cause.Cause.Cause != nil {
		t.Fatalf("%#v", failed)
	}
	if IsCancelled(failed) {
		t.Fatal("it was not cancelled")
	}
}

func TestCancelledCallIsKnown(t *testing.T) {
	play(t, map[string]string{nameError: `{"type":"Cancelled","message":"enough","activity":"greet"}`})
	err := Call("greet", "?", nil)
	if !IsCancelled(fmt.Errorf("greeting: %w", err)) || IsCancelled(errors.New("other")) || IsCancelled(nil) {
		t.Fatal(err)
	}
}

func TestFailedActivityOfAHostWithoutReasons(t *testing.T) {
	play(t, nil)
	if err := Call("greet", nil, nil); err == nil || err.Error() != "greet failed: Unknown: the host gives no reason" {
		t.Fatal(err)
	}
}

func TestAnswerOfAnotherShapeIsAnError(t *testing.T) {
	play(t, map[string]string{"greet": `[1]`})
	var text string
	if err := Call("greet", nil, &text); err == nil || !strings.HasPrefix(err.Error(), "wasman: the answer of greet does not fit: ") {
		t.Fatal(err)
	}
}

func TestUnknownStatusIsAnError(t *testing.T) {
	play(t, nil)
	abi.Host.CallAPI = func(string, []byte, []byte) int32 { return -7 }
	if err := Call("greet", nil, nil); err == nil || !strings.Contains(err.Error(), "-7") {
		t.Fatal(err)
	}
}

func TestInputSessionAndResult(t *testing.T) {
	h := play(t, map[string]string{nameInput: `7`, nameSession: `{"user":"ada"}`, nameResult: ""})
	var number int
	var session struct{ User string }
	if err := errors.Join(Input(&number), Session(&session), Result([]int{number})); err != nil {
		t.Fatal(err)
	}
	if number != 7 || session.User != "ada" || h.asked[2] != "wasman.result [7]" {
		t.Fatalf("%d %q %q", number, session.User, h.asked)
	}
}

func TestBodyEndsTheRunAsItsErrorSays(t *testing.T) {
	activity := &ActivityError{Type: "E", Message: "m", Activity: "greet", Attempt: 1}
	cancelled := &ActivityError{Type: TypeCancelled, Message: "enough", Activity: "greet"}
	for _, test := range []struct {
		err  error
		want string
	}{
		{errors.New("plain"), `{"type":"Error","message":"plain","details":null}`},
		{fmt.Errorf("x: %w", &Failure{"Own", "text", 5}), `{"type":"Own","message":"x: text","details":5}`},
		{activity, `{"type":"ActivityError","message":"greet failed at attempt 1: E: m","details":` +
			`{"type":"E","message":"m","activity":"greet","attempt":1,"details":null}}`},
		{fmt.Errorf("x: %w", cancelled), `{"type":"Cancelled","message":"x: greet failed: Cancelled: enough","details":` +
			`{"type":"Cancelled","message":"enough","activity":"greet","attempt":0,"details":null}}`},
		{&Failure{"Own", "text", func() {}}, `{"type":"Own","message":"text","details":` +
			`"(the details cannot be written as JSON: json: unsupported type: func())"}`},
	} {
		play(t, nil)
		body = func() error { return test.err }
		if got := panicOf(runBody); got != "failed: "+test.want {
			t.Errorf("%v: %s", test.err, got)
		}
	}
	body = nil
	if got := panicOf(runBody); !strings.Contains(got, `"type":"NoBody"`) {
		t.Error(got)
	}
}

func TestOneBodyOnly(t *testing.T) {
	body = nil
	t.Cleanup(func() { body = nil })
	Main(func() error { return nil })
	if got := panicOf(func() { Main(func() error { return nil }) }); got == "" {
		t.Fatal("a second body was taken")
	}
}

func panicOf(f func()) (text string) {
	defer func() { text = fmt.Sprint(recover()) }()
	f()
	return ""
}

func TestStreams(t *testing.T) {
	play(t, nil)
	source, sink, closed := strings.NewReader("some bytes"), strings.Builder{}, 0
	abi.Host.StreamData = func(direction int32, data []byte) int32 {
		switch {
		case direction == abi.Download:
			n, _ := source.Read(data)
			return int32(n)
		case len(data) == 0:
			closed++
			return 0
		}
		n, _ := sink.Write(data[:min(3, len(data))]) // takes less than offered
		return int32(n)
	}
	upload := Upload()
	if n, err := upload.Write(nil); n != 0 || err != nil || closed != 0 {
		t.Fatal("an empty write reached the host, which takes it for the end")
	}
	if n, err := Download().Read(nil); n != 0 || err != nil {
		t.Fatal("an empty read is not the end")
	}
	if n, err := io.Copy(upload, Download()); n != 10 || err != nil || sink.String() != "some bytes" {
		t.Fatal(n, err, sink.String())
	}
	if err := upload.Close(); err != nil || closed != 1 {
		t.Fatal(err, closed)
	}
	abi.Host.StreamData = func(int32, []byte) int32 { return abi.Failed }
	_, read := Download().Read(make([]byte, 1))
	_, write := upload.Write([]byte{1})
	if read != errDownload || write != errUpload || upload.Close() != errUpload {
		t.Fatal(read, write)
	}
}

func TestNow(t *testing.T) {
	play(t, nil)
	abi.Host.Time = func() int64 { return 1_700_000_000_000_000_001 }
	if got := Now().UTC().Format(time.RFC3339Nano); got != "2023-11-14T22:13:20.000000001Z" {
		t.Fatal(got)
	}
}
