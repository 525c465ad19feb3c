package wasman

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"sync"

	"wasman.dev/guest/internal/abi"
	"wasman.dev/guest/internal/codec"
)

const inboxSize = 32 << 10

// operation is something that the host was asked for. Its fields are set before done is closed.
type operation struct {
	number    uint32
	name      string
	done      chan struct{}
	body      []byte
	failed    bool
	cancelled bool // its end was asked for
	receives  bool // it is a receive of the signal of that name
}

// run is the one run that lives in this memory.
var run struct {
	lock   sync.Mutex // tests run goroutines at the same time; guests do not
	next   uint32
	open   map[uint32]*operation
	back   []*operation // receives whose values nobody has taken, the oldest first
	ctx    context.Context
	cancel context.CancelCauseFunc
	reason string // why the run is to be cancelled
	told   bool   // whether somebody asked for that
	ended  bool
	info   Info
	input  []byte // until the workflow has it
	block  abi.Block
	in     [inboxSize]byte
	out    []byte
}

// Info says which run this is.
type Info struct {
	Entry    string `json:"entry"`    // the registered workflow that the application named, or ""
	Workflow string `json:"workflow"` // the workflow's name in the application
	ID       string `json:"id"`       // the workflow id
	Run      string `json:"run"`      // the run id
	Tenant   string `json:"tenant"`
}

// CurrentInfo is about this run.
func CurrentInfo() Info { return run.info }

// Session decodes how the run is bound to the outside world: the session that the application gave at its start.
func Session[T any]() (T, error) {
	var session T
	data, err := pull(abi.Session)
	if err != nil {
		return session, err
	}
	if err := decode(data, &session); err != nil {
		return session, errors.New("wasman: the session does not fit: " + err.Error())
	}
	return session, nil
}

// appendFrame writes a command to the outbox: head, and the rest of what it says. The lock is held.
func appendFrame(kind uint16, number uint32, head, rest []byte) {
	for len(run.out)%8 != 0 {
		run.out = append(run.out, 0)
	}
	var frame [abi.Header]byte
	binary.LittleEndian.PutUint32(frame[:], uint32(len(frame)+len(head)+len(rest)))
	binary.LittleEndian.PutUint32(frame[4:], number)
	binary.LittleEndian.PutUint16(frame[8:], kind)
	run.out = append(append(append(run.out, frame[:]...), head...), rest...)
	asked()
}

// tooEarly is why nothing can be asked for by an initialisation, such as that of a variable.
func tooEarly(name string) string {
	return "wasman: an initialisation asks for '" + name + "', and no run is there to answer: ask in the workflow"
}

// ask issues an operation; head and rest are what it says.
func ask(kind uint16, name string, head, rest []byte) *operation {
	mayAsk(name)
	run.lock.Lock()
	defer run.lock.Unlock()
	op := &operation{number: run.next, name: name, receives: kind == abi.Receive, done: make(chan struct{})}
	run.next++
	if run.open == nil {
		run.open = map[uint32]*operation{}
	}
	run.open[op.number] = op
	appendFrame(kind, op.number, head, rest)
	return op
}

// giveUp asks that a call be cut short, or withdraws a receive, which is then never answered.
func (op *operation) giveUp(withdraw bool) {
	run.lock.Lock()
	defer run.lock.Unlock()
	if run.open[op.number] == nil || op.cancelled {
		return
	}
	op.cancelled = true
	if withdraw {
		delete(run.open, op.number)
	}
	appendFrame(abi.Cancel, op.number, nil, nil)
}

// pull reads what is too large for the inbox.
func pull(number uint32) ([]byte, error) {
	length := abi.ResultLen(number)
	if length < 0 {
		return nil, errors.New("wasman: the host does not give operation " + strconv.Itoa(int(number)) + ": code " + strconv.Itoa(int(length)))
	}
	data := make([]byte, length)
	for at := 0; ; {
		n := int(abi.ResultRead(number, uint32(at), data[at:]))
		if n < 0 {
			return nil, errors.New("wasman: the host does not give operation " + strconv.Itoa(int(number)) + ": code " + strconv.Itoa(n))
		}
		if at += n; at >= len(data) {
			return data, nil
		}
	}
}

// body is what an event says, wherever it is.
func body(number uint32, flags uint16, frame []byte) []byte {
	if flags&abi.Pulled == 0 {
		return append([]byte(nil), frame...)
	}
	data, err := pull(number)
	if err != nil {
		panic(err.Error())
	}
	return data
}

// take is told of what has happened: events, one behind the other. It runs in a goroutine.
func take(events []byte) {
	for len(events) >= abi.Header {
		length := binary.LittleEndian.Uint32(events)
		number := binary.LittleEndian.Uint32(events[4:])
		kind := binary.LittleEndian.Uint16(events[8:])
		flags := binary.LittleEndian.Uint16(events[10:])
		frame := events[abi.Header:length]
		events = events[min(len(events), int(length+7)&^7):]
		switch kind {
		case abi.Start:
			start(flags, frame)
		case abi.Result, abi.Failed:
			answer(number, kind == abi.Failed, body(number, flags, frame))
		case abi.Cancelled:
			run.told, run.reason = true, string(frame)
			if run.cancel != nil {
				run.cancel(&cancelRequest{run.reason})
			}
		}
	}
}

func answer(number uint32, failed bool, data []byte) {
	run.lock.Lock()
	op := run.open[number]
	delete(run.open, number)
	run.lock.Unlock()
	if op != nil {
		op.body, op.failed = data, failed
		close(op.done)
	}
}

func start(flags uint16, frame []byte) {
	at := 4 + binary.LittleEndian.Uint32(frame)
	info := frame[4:at]
	if err := codec.Unmarshal(info, &run.info); err != nil {
		panic("wasman: the host's word of the run makes no sense: " + err.Error())
	}
	run.input = body(abi.Input, flags, frame[at:])
	run.ctx, run.cancel = context.WithCancelCause(context.Background())
	launch()
}

// live is the workflow, from its begin to its end. It runs in a goroutine.
func live() {
	workflow, err := chosen(run.info.Entry, run.info.Workflow)
	input := run.input
	run.input = nil
	var result []byte
	if err == nil {
		result, err = workflow(run.ctx, input)
	}
	end(result, err)
}

func end(result []byte, err error) {
	run.lock.Lock()
	defer run.lock.Unlock()
	run.ended = true
	if err == nil {
		appendFrame(abi.Complete, abi.None, result, nil)
		return
	}
	appendFrame(abi.Fail, abi.None, failureOf(err), nil)
}

// rest tells the host what the turn has come to; deadline is when the runtime's next timer is due.
func rest(deadline int64) {
	run.block.OutLen = uint32(len(run.out))
	run.block.Deadline = deadline
	run.block.Flags = 0
	if !run.ended && deadline < 0 && len(run.open) == 0 {
		run.block.Flags = 1
	}
}
