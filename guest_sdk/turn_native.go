//go:build !wasip1

package wasman

import (
	"context"

	"wasman.dev/guest/internal/abi"
	"wasman.dev/guest/internal/codec"
)

func launch() { go live() }
func asked()  { abi.Host.Asked() }

func mayAsk(name string) {
	if abi.Host == nil {
		panic(tooEarly(name))
	}
}

// What package wasmantest does with a guest.
func init() {
	abi.Guest.Begin = begin
	abi.Guest.Commands = commands
	abi.Guest.Answer = answer
	abi.Guest.Cancel = cancelRun
	abi.Guest.Name = func(handle any) string { return handle.(interface{ called() string }).called() }
	abi.Guest.Encode = encode[any]
	abi.Guest.Decode = decodeAny
}

func begin() context.Context {
	run.lock.Lock()
	defer run.lock.Unlock()
	run.next, run.open, run.back, run.out, run.ended = 0, nil, nil, nil, false
	run.told, run.reason, run.info = false, "", Info{}
	run.ctx, run.cancel = context.WithCancelCause(context.Background())
	return run.ctx
}

func commands() []byte {
	run.lock.Lock()
	defer run.lock.Unlock()
	taken := run.out
	run.out = nil
	return taken
}

func cancelRun(reason string) {
	run.lock.Lock()
	run.told, run.reason = true, reason
	cancel := run.cancel
	run.lock.Unlock()
	if cancel != nil {
		cancel(&cancelRequest{reason})
	}
}

func (a *Activity[In, Out]) called() string { return a.name }
func (s *Signal[T]) called() string         { return s.name }

// decodeAny is decode for a pointer of any type.
func decodeAny(data []byte, into any) error {
	switch v := into.(type) {
	case *[]byte:
		return decode(data, v)
	case *None:
		return decode(data, v)
	}
	if len(data) == 0 {
		return nil
	}
	return codec.Unmarshal(data, into)
}
