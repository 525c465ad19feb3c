// Package wasmantest runs workflows under `go test`, on a host that is not real and a clock that jumps.
//
//	func TestAnOrderIsCharged(t *testing.T) {
//		wasmantest.Run(t, func(t *testing.T, host *wasmantest.Host) {
//			wasmantest.Handle(host, charge, func(ctx context.Context, o Order) (Receipt, error) {
//				return Receipt{Number: "r-1"}, nil
//			})
//			time.AfterFunc(48*time.Hour, func() { wasmantest.Send(host, approve, Approval{OK: true}) })
//			receipt, err := wasmantest.Execute(host, order, Order{Cents: 450})
//			...
//		})
//	}
//
// Everything in Run is in a bubble of testing/synctest: when all goroutines wait, the clock jumps to the next timer, so
// three days take no time. A workflow that waits for what never comes fails the test, which says what it waits for.
package wasmantest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand"
	"sort"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wasman.dev/guest"
	"wasman.dev/guest/internal/abi"
)

// forever is when nothing else can be due: the clock jumps there only when all wait for each other.
const forever = 200 * 365 * 24 * time.Hour

// Host plays the host of the workflows that a test executes.
type Host struct {
	t       *testing.T
	asked   chan struct{}
	ctx     context.Context
	running sync.WaitGroup

	lock       sync.Mutex
	random     *rand.Rand
	activities map[string]activity
	calls      map[uint32]call
	receives   []receive // those that wait, the oldest first
	signals    map[string][][]byte
	session    []byte
	sources    map[string]io.Reader
	sinks      map[string]io.Writer
}

// activity answers a call: the result, or a failure.
type activity func(ctx context.Context, request []byte) ([]byte, error)

type call struct {
	activity string
	cancel   context.CancelFunc
}

type receive struct {
	number uint32
	signal string
}

// Run gives a test a host of its own. Workflows, activities and whatever else sleeps share the bubble's clock, which
// begins at midnight UTC 2000-01-01. A guest's memory has one run, so tests that use Run are not parallel.
func Run(t *testing.T, test func(t *testing.T, host *Host)) {
	t.Helper()
	if abi.Host != nil {
		t.Fatal("another test is in wasmantest.Run: tests that use it cannot be parallel")
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		h := &Host{
			t: t, asked: make(chan struct{}, 1), ctx: ctx, random: rand.New(rand.NewSource(1)),
			activities: map[string]activity{}, calls: map[uint32]call{}, signals: map[string][][]byte{},
			session: []byte("null"), sources: map[string]io.Reader{}, sinks: map[string]io.Writer{},
		}
		abi.Host = (*fake)(h)
		h.running.Go(h.serve)
		defer func() {
			cancel()
			h.running.Wait()
			abi.Host = nil
		}()
		test(t, h)
	})
}

// Handle answers the calls of an activity. An error is the failure of its last attempt: the workflow gets an
// *wasman.ActivityError, with what a *wasman.Failure says: type, details, cause.
func Handle[In, Out any](h *Host, called *wasman.Activity[In, Out], answer func(ctx context.Context, in In) (Out, error)) {
	h.lock.Lock()
	defer h.lock.Unlock()
	h.activities[abi.Guest.Name(called)] = func(ctx context.Context, request []byte) ([]byte, error) {
		var in In
		if err := read(request, &in); err != nil {
			return nil, &wasman.Failure{Type: "InvalidRequest", Message: err.Error()}
		}
		out, err := answer(ctx, in)
		if err != nil {
			return nil, err
		}
		return abi.Guest.Encode(out)
	}
}

// Send sends a signal. It is kept until the workflow receives it.
func Send[T any](h *Host, signal *wasman.Signal[T], value T) {
	h.t.Helper()
	data, err := abi.Guest.Encode(value)
	if err != nil {
		h.t.Errorf("the value of signal %s cannot be written: %v", abi.Guest.Name(signal), err)
		return
	}
	h.lock.Lock()
	name := abi.Guest.Name(signal)
	h.signals[name] = append(h.signals[name], data)
	h.lock.Unlock()
	h.deliver()
}

// Cancel asks that the run be cancelled: the context of its workflow ends.
func (h *Host) Cancel(reason string) { abi.Guest.Cancel(reason) }

// Session is how the run is bound to the outside: what wasman.Session decodes.
func (h *Host) Session(session any) {
	h.t.Helper()
	data, err := abi.Guest.Encode(session)
	if err != nil {
		h.t.Fatalf("the session cannot be written: %v", err)
	}
	h.lock.Lock()
	defer h.lock.Unlock()
	h.session = data
}

// Source is what wasman.Source(name) reads.
func (h *Host) Source(name string, from io.Reader) {
	h.lock.Lock()
	defer h.lock.Unlock()
	h.sources[name] = from
}

// Sink is what wasman.Sink(name) writes to.
func (h *Host) Sink(name string, to io.Writer) {
	h.lock.Lock()
	defer h.lock.Unlock()
	h.sinks[name] = to
}

// Execute runs a workflow to its end: its result, or its error as it returned it. Input and result go through JSON, as
// in a real run.
func Execute[In, Out any](h *Host, workflow func(ctx context.Context, in In) (Out, error), in In) (Out, error) {
	h.t.Helper()
	var given In
	var result Out
	if err := through(in, &given); err != nil {
		h.t.Fatalf("the input: %v", err)
	}
	ctx, end := context.WithCancel(abi.Guest.Begin())
	defer func() { // what the workflow has left behind ends with it
		end()
		synctest.Wait()
	}()
	h.lock.Lock()
	h.receives = nil
	h.lock.Unlock()
	watch := time.AfterFunc(forever, func() {
		h.t.Errorf("deadlock: the workflow waits for what never comes: %s", h.waits())
		h.Cancel("deadlock")
	})
	defer watch.Stop()
	out, err := workflow(ctx, given)
	if err != nil {
		return result, err
	}
	if err := through(out, &result); err != nil {
		h.t.Fatalf("the result: %v", err)
	}
	return result, nil
}

// waits says what the workflow has asked for and not been answered.
func (h *Host) waits() string {
	h.lock.Lock()
	defer h.lock.Unlock()
	var open []string
	for _, one := range h.calls {
		open = append(open, "activity "+one.activity)
	}
	sort.Strings(open)
	for _, one := range h.receives {
		open = append(open, "signal "+one.signal)
	}
	if len(open) == 0 {
		return "nothing that a host could answer"
	}
	return strings.Join(open, ", ")
}

// through writes a value and reads it again.
func through[T any](value T, into *T) error {
	data, err := abi.Guest.Encode(value)
	if err != nil {
		return err
	}
	return read(data, into)
}

// read reads a payload, in memory of its own.
func read[T any](data []byte, into *T) error {
	return abi.Guest.Decode(append([]byte(nil), data...), into)
}

// serve does what the workflow asks for.
func (h *Host) serve() {
	for {
		select {
		case <-h.asked:
			h.take(abi.Guest.Commands())
		case <-h.ctx.Done():
			return
		}
	}
}

func (h *Host) take(commands []byte) {
	for len(commands) >= abi.Header {
		length := binary.LittleEndian.Uint32(commands)
		number := binary.LittleEndian.Uint32(commands[4:])
		body := commands[abi.Header:length]
		switch binary.LittleEndian.Uint16(commands[8:]) {
		case abi.Call:
			name, options := binary.LittleEndian.Uint32(body), binary.LittleEndian.Uint32(body[4:])
			h.call(number, string(body[8:8+name]), body[8+name+options:])
		case abi.Receive:
			h.lock.Lock()
			h.receives = append(h.receives, receive{number, string(body)})
			h.lock.Unlock()
		case abi.Cancel:
			h.cut(number)
		}
		commands = commands[min(len(commands), int(length+7)&^7):]
	}
	h.deliver()
}

func (h *Host) call(number uint32, name string, request []byte) {
	ctx, cancel := context.WithCancel(h.ctx)
	h.lock.Lock()
	answer := h.activities[name]
	h.calls[number] = call{name, cancel}
	h.lock.Unlock()
	if answer == nil {
		h.t.Errorf("the workflow calls activity %s, and the test has no wasmantest.Handle for it", name)
		answer = func(context.Context, []byte) ([]byte, error) {
			return nil, &wasman.Failure{Type: "ActivityNotFound", Message: "the test does not handle " + name}
		}
	}
	h.running.Go(func() {
		result, err := answer(ctx, request)
		cut := ctx.Err() != nil
		cancel()
		h.lock.Lock()
		delete(h.calls, number)
		h.lock.Unlock()
		switch {
		case err == nil:
			abi.Guest.Answer(number, false, result)
		case cut && errors.Is(err, context.Canceled):
			abi.Guest.Answer(number, true, failure(name, &wasman.Failure{Type: wasman.TypeCancelled, Message: err.Error()}))
		default:
			abi.Guest.Answer(number, true, failure(name, err))
		}
	})
}

// failure is an activity's error as the host tells it.
func failure(name string, err error) []byte {
	said := causeOf(err)
	said.Activity, said.Attempt = name, 1
	data, wrong := abi.Guest.Encode(said)
	if wrong != nil {
		panic("wasmantest: a failure cannot be written: " + wrong.Error())
	}
	return data
}

// causeOf is an error with what it wraps.
func causeOf(err error) *wasman.ActivityError {
	said := &wasman.ActivityError{Type: "Error", Message: err.Error()}
	var within error
	if own, ok := wasman.ErrorOf[*wasman.Failure](err); ok {
		said.Type, said.NonRetryable, within = own.Type, own.NonRetryable, own.Cause
		if own.Details != nil {
			said.Details, _ = abi.Guest.Encode(own.Details)
		}
	}
	if within != nil {
		said.Cause = causeOf(within)
	}
	return said
}

// cut asks a call to stop, or withdraws a receive.
func (h *Host) cut(number uint32) {
	h.lock.Lock()
	defer h.lock.Unlock()
	if open, ok := h.calls[number]; ok {
		open.cancel()
	}
	for i, one := range h.receives {
		if one.number == number {
			h.receives = append(h.receives[:i], h.receives[i+1:]...)
			return
		}
	}
}

// deliver gives signals that are there to receives that wait, the oldest to the oldest.
func (h *Host) deliver() {
	h.lock.Lock()
	defer h.lock.Unlock()
	left := h.receives[:0]
	for _, one := range h.receives {
		values := h.signals[one.signal]
		if len(values) == 0 {
			left = append(left, one)
			continue
		}
		h.signals[one.signal] = values[1:]
		abi.Guest.Answer(one.number, false, values[0])
	}
	h.receives = left
}

// fake is the host's functions, as the guest imports them.
type fake Host

func (f *fake) Asked() {
	select {
	case f.asked <- struct{}{}:
	default: // it is awake
	}
}

func (f *fake) Now() int64 { return time.Now().UnixNano() }

func (f *fake) Random(b []byte) {
	f.lock.Lock()
	defer f.lock.Unlock()
	f.random.Read(b)
}

func (f *fake) Log(level int32, message string, attributes []byte) {
	f.t.Logf("log %d: %s %s", level, message, attributes)
}

func (f *fake) ResultLen(operation uint32) int32 {
	if operation != abi.Session {
		return -2
	}
	return int32(len(f.session))
}

func (f *fake) ResultRead(operation, offset uint32, b []byte) int32 {
	if operation != abi.Session {
		return -2
	}
	return int32(copy(b, f.session[offset:]))
}

func (f *fake) StreamRead(name string, b []byte) int32 {
	f.lock.Lock()
	from := f.sources[name]
	f.lock.Unlock()
	if from == nil {
		return -2
	}
	n, err := io.ReadFull(from, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		f.t.Errorf("source %q: %v", name, err)
	}
	return int32(n)
}

func (f *fake) StreamWrite(name string, b []byte) int32 {
	f.lock.Lock()
	to := f.sinks[name]
	f.lock.Unlock()
	if to == nil {
		return -2
	}
	n, err := to.Write(b)
	if err != nil {
		f.t.Errorf("sink %q: %v", name, err)
	}
	return int32(n)
}
