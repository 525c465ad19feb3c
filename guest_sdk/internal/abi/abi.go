// Package abi is the border between a guest and its host: ABI v1, module wasman, as docs/abi.md specifies it.
//
// In a guest the functions are the imports; elsewhere they call the fake that Host holds, so that workflows can be
// tested by the ordinary Go toolchain.
package abi

// Kinds of commands.
const (
	Call     uint16 = 1
	Receive  uint16 = 2
	Cancel   uint16 = 3
	Complete uint16 = 4
	Fail     uint16 = 5
)

// Kinds of events.
const (
	Start     uint16 = 1
	Result    uint16 = 2
	Failed    uint16 = 3
	Fired     uint16 = 4
	Cancelled uint16 = 5
)

const (
	// Version is the ABI's.
	Version = 1
	// None stands where there is no operation.
	None uint32 = 0xffffffff
	// Input and Session are read by ResultRead as if they were operations.
	Input   uint32 = 0xffffffff
	Session uint32 = 0xfffffffe
	// Pulled is the flag of an event whose body is read by ResultRead.
	Pulled uint16 = 1
	// Header is how many bytes a frame has before its body.
	Header = 16
)

// Block is what the host reads after every turn.
type Block struct {
	InPtr, InCap, OutPtr, OutLen, Flags, Zero uint32
	Deadline                                  int64
}
