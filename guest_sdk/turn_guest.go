//go:build wasip1

package wasman

import (
	"unsafe"

	"wasman.dev/guest/internal/abi"
	"wasman.dev/guest/internal/codec"
)

func asked() {}

func mayAsk(name string) {
	if run.ctx == nil {
		panic(tooEarly(name))
	}
}

// introduce is what wasman_block does, once, after the initialisation.
func introduce() uint32 {
	if len(workflows) == 0 {
		panic("wasman: no workflow is registered: register it at package level, since main never runs")
	}
	run.block.InPtr = uint32(uintptr(unsafe.Pointer(&run.in)))
	run.block.InCap = inboxSize
	run.block.Deadline = -1
	run.out = make([]byte, 0, 1024)
	_ = codec.Unmarshal([]byte("{}"), &run.info) // so that the codec knows its fields
	return uint32(uintptr(unsafe.Pointer(&run.block)))
}

// begin forgets the commands of the turn before, which the host has read.
func begin() { run.out = run.out[:0] }

// leave says where this turn's commands are.
func leave(deadline int64) {
	rest(deadline)
	run.block.OutPtr = uint32(uintptr(unsafe.Pointer(unsafe.SliceData(run.out))))
}

const version = abi.Version
