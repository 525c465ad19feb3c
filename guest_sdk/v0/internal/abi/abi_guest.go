//go:build tinygo && wasip1

package abi

import (
	"runtime/volatile"
	"unsafe"

	_ "wasman.dev/guest/internal/random" // crypto/rand draws from the run's own stream
)

//go:wasmimport env checkpoint
func hostCheckpoint()

//go:wasmimport env host_get_time
func hostGetTime() int64

//go:wasmimport env host_call_api
func hostCallAPI(name unsafe.Pointer, nameLen uint32, request unsafe.Pointer, requestLen uint32, response unsafe.Pointer, responseMax uint32) int32

//go:wasmimport env stream_data
func hostStreamData(direction int32, data unsafe.Pointer, length uint32) int32

// stackChainStart is the head of the list of stack frames that TinyGo's compiler maintains for its collector.
//
//go:extern runtime.stackChainStart
var stackChainStart unsafe.Pointer

// Checkpoint lets the host keep the guest as it is now.
//
// A host that comes back to this moment restores memory and globals, puts the stack pointer back to where it was when
// run was entered, and enters run anew. The frames on the stack are gone then, so nothing in the kept memory may lead
// to them. One thing does, the head of the list of frames: it is nil while the host looks. The accesses are volatile
// because the compiler knows of nobody outside who reads it, and would drop the store. Not inlined, so that the list's
// bookkeeping of a caller cannot be moved in between.
//
//go:noinline
func Checkpoint() {
	head := (*uint32)(unsafe.Pointer(&stackChainStart))
	frames := volatile.LoadUint32(head)
	volatile.StoreUint32(head, 0)
	hostCheckpoint()
	volatile.StoreUint32(head, frames)
}

// Time is the host's clock, in nanoseconds since 1970.
func Time() int64 { return hostGetTime() }

// CallAPI calls an activity, or what the host itself answers to. It returns the response's length, Failed or TooLarge.
func CallAPI(name string, request, response []byte) int32 {
	return hostCallAPI(
		unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)),
		unsafe.Pointer(unsafe.SliceData(request)), uint32(len(request)),
		unsafe.Pointer(unsafe.SliceData(response)), uint32(len(response)),
	)
}

// StreamData moves bytes from the download or to the upload. It returns their count, 0 at the end, or Failed.
func StreamData(direction int32, data []byte) int32 {
	return hostStreamData(direction, unsafe.Pointer(unsafe.SliceData(data)), uint32(len(data)))
}
