package wasman

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"wasman.dev/guest/internal/abi"
)

func nothing(context.Context, None) (None, error) { return None{}, nil }

// registered are the workflows of one test.
func registered(t *testing.T, names ...string) {
	t.Helper()
	before := workflows
	workflows = map[string]func(ctx context.Context, input []byte) ([]byte, error){}
	t.Cleanup(func() { workflows = before })
	for _, name := range names {
		Workflow(name, nothing)
	}
}

func panicOf(act func()) (said string) {
	defer func() { said = fmt.Sprint(recover()) }()
	act()
	return ""
}

func TestAWorkflowIsFoundByItsName(t *testing.T) {
	for _, one := range []struct {
		names           []string
		entry, workflow string
		problem         string
	}{
		{[]string{"a", "b"}, "a", "whatever", ""},
		{[]string{"a", "b"}, "", "b", ""},
		{[]string{"a"}, "", "whatever", ""}, // the only one
		{[]string{"b", "a"}, "c", "a", "the module has no workflow 'c': it registers 'a', 'b'"},
		{[]string{"b", "a"}, "", "c", "the module has no workflow 'c': it registers 'a', 'b'"},
		{[]string{"a"}, "c", "a", "the module has no workflow 'c': it registers 'a'"},
		{nil, "", "a", "the module has no workflow 'a': it registers none"},
	} {
		t.Run(one.entry+" "+one.workflow+" of "+fmt.Sprint(one.names), func(t *testing.T) {
			registered(t, one.names...)
			found, err := chosen(one.entry, one.workflow)
			if one.problem == "" {
				if found == nil || err != nil {
					t.Fatal(err)
				}
				return
			}
			own, _ := ErrorOf[*Failure](err)
			if found != nil || own == nil || own.Type != "UnknownWorkflow" || own.Message != one.problem {
				t.Fatal(err)
			}
		})
	}
}

func TestTwoWorkflowsWithOneNamePanic(t *testing.T) {
	registered(t, "a")
	if said := panicOf(func() { Workflow("a", nothing) }); said != "wasman: two workflows are registered as 'a'" {
		t.Fatal(said)
	}
	if said := panicOf(func() { Workflow("", nothing) }); said != "wasman: a workflow has a name" {
		t.Fatal(said)
	}
}

func TestWhatGoesInAndComesOutHasToFit(t *testing.T) {
	registered(t)
	Workflow("half", func(_ context.Context, n int) (any, error) {
		if n == 1 {
			return func() {}, nil
		}
		return n / 2, nil
	})
	half, _ := chosen("half", "")
	if out, err := half(context.Background(), []byte("8")); string(out) != "4" || err != nil {
		t.Fatal(string(out), err)
	}
	for given, type_ := range map[string]string{`"8"`: "BadInput", "1": "BadResult"} {
		_, err := half(context.Background(), []byte(given))
		if own, _ := ErrorOf[*Failure](err); own == nil || own.Type != type_ || !strings.Contains(own.Message, "of workflow 'half'") {
			t.Fatal(err)
		}
	}
	Workflow("nothing", nothing)
	none, _ := chosen("nothing", "")
	if out, err := none(context.Background(), nil); len(out) != 0 || err != nil {
		t.Fatal(string(out), err)
	}
}

func TestAnActivitysOptionsAreWritten(t *testing.T) {
	a := NewActivity[None, None]("a", Retries(5), Timeout(time.Second), Backoff(1, 2, 1.5), Heartbeat(3), ScheduleToClose(4), ScheduleToStart(5))
	const want = `{"maximum_attempts":5,"initial_interval":1,"maximum_interval":2,"backoff":1.5,` +
		`"start_to_close":1000000000,"schedule_to_close":4,"schedule_to_start":5,"heartbeat":3}`
	if string(a.options) != want {
		t.Fatal(string(a.options))
	}
	if plain := NewActivity[None, None]("a"); plain.options != nil {
		t.Fatal(string(plain.options))
	}
}

func TestARunFailsByTheFirstErrorThatHasAType(t *testing.T) {
	declined := &ActivityError{Type: "Declined", Message: "no", Activity: "charge", Attempt: 2, Details: JSON(`{"cents":3}`)}
	for _, one := range []struct {
		err  error
		told bool
		want string
	}{
		{errors.New("lost"), false, `{"type":"Error","message":"lost"}`},
		{Fail("rejected"), false, `{"type":"rejected","message":"rejected"}`},
		{fmt.Errorf("a: %w", &Failure{Type: "T", Message: "b", Details: 7}), true, `{"type":"T","message":"a: b","details":7}`},
		{&Failure{Type: "T", Details: func() {}}, false, `{"type":"T","message":"T","details":"(the details cannot be written: `},
		{context.Canceled, true, `{"type":"Cancelled","message":"context canceled"}`},
		{context.Canceled, false, `{"type":"Error","message":"context canceled"}`}, // nobody has asked for it
		{context.DeadlineExceeded, false, `{"type":"DeadlineExceeded","message":"context deadline exceeded"}`},
		{declined, false, `{"type":"ActivityError","message":"charge failed at attempt 2: Declined: no","details":{"type":"Declined",`},
	} {
		run.told = one.told
		if said := string(failureOf(one.err)); !strings.HasPrefix(said, one.want) {
			t.Errorf("%v: %s", one.err, said)
		}
	}
	run.told = false
}

func TestAGuestThatCannotGoOnSaysSo(t *testing.T) {
	begin()
	defer begin()
	for _, one := range []struct {
		open     int
		deadline int64
		ended    bool
		want     uint32
	}{{0, -1, false, 1}, {1, -1, false, 0}, {0, 7, false, 0}, {0, -1, true, 0}} {
		run.open, run.ended = map[uint32]*operation{}, one.ended
		for n := range one.open {
			run.open[uint32(n)] = &operation{}
		}
		if rest(one.deadline); run.block.Flags != one.want || run.block.Deadline != one.deadline {
			t.Error(one, run.block)
		}
	}
}

// silent is a host that answers nothing.
type silent struct{ abi.Fake }

func (silent) Asked() {}

func TestAReceiveIsWithdrawnAndACallIsStillAnswered(t *testing.T) {
	abi.Host = silent{}
	defer func() { abi.Host = nil }()
	begin()
	defer begin()
	call, receive := ask(abi.Call, "a", nil, nil), ask(abi.Receive, "b", nil, nil)
	commands()
	for range 2 { // the second time nothing happens
		call.giveUp(false)
		receive.giveUp(true)
	}
	if said := commands(); len(said) != 2*abi.Header || said[8] != byte(abi.Cancel) || said[abi.Header+8] != byte(abi.Cancel) {
		t.Fatal(said)
	}
	if run.open[call.number] != call || run.open[receive.number] != nil {
		t.Fatal(run.open)
	}
	answer(call.number, true, nil)
	<-call.done
	answer(receive.number, false, nil)
	select {
	case <-receive.done:
		t.Fatal("it was withdrawn")
	default:
	}
}

func TestAReceiveLeavesNothingOpenWhenItsContextEnds(t *testing.T) {
	abi.Host = silent{}
	defer func() { abi.Host = nil }()
	begin()
	defer begin()
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	for _, want := range []int{2, 0} { // asked for and withdrawn; not asked for at all
		if _, err := NewSignal[None]("a").Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if said := len(run.out); said < want*abi.Header || want == 0 && said != 0 || len(run.open) != 0 {
			t.Fatal(said, run.open)
		}
		commands()
	}
}

func TestNothingIsAskedForWhereNobodyAnswers(t *testing.T) {
	const want = "wasman: an initialisation asks for 'a', and no run is there to answer: ask in the workflow"
	if said := panicOf(func() { NewActivity[None, None]("a").Start(context.Background(), None{}) }); said != want {
		t.Fatal(said)
	}
}
