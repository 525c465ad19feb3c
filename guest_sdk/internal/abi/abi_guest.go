//go:build wasip1

package abi

import "unsafe"

//go:wasmimport wasman now
func hostNow() int64

//go:wasmimport wasman random
func hostRandom(data unsafe.Pointer, length uint32) int32

//go:wasmimport wasman log
func hostLog(level int32, message unsafe.Pointer, length uint32, attributes unsafe.Pointer, attributesLength uint32) int32

//go:wasmimport wasman flush
func hostFlush(commands unsafe.Pointer, length uint32) int32

//go:wasmimport wasman result_len
func hostResultLen(operation uint32) int32

//go:wasmimport wasman result_read
func hostResultRead(operation, offset uint32, data unsafe.Pointer, length uint32) int32

//go:wasmimport wasman stream_read
func hostStreamRead(name unsafe.Pointer, nameLength uint32, data unsafe.Pointer, length uint32) int32

//go:wasmimport wasman stream_write
func hostStreamWrite(name unsafe.Pointer, nameLength uint32, data unsafe.Pointer, length uint32) int32

func text(s string) unsafe.Pointer    { return unsafe.Pointer(unsafe.StringData(s)) }
func bytesOf(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

// Now is the time of the last delivery, ns since 1970.
func Now() int64 { return hostNow() }

// Random fills b from the run's own random stream.
func Random(b []byte) { hostRandom(bytesOf(b), uint32(len(b))) }

// Log writes a line to the host's log; attributes are a JSON object, or nothing.
func Log(level int32, message string, attributes []byte) {
	hostLog(level, text(message), uint32(len(message)), bytesOf(attributes), uint32(len(attributes)))
}

// Flush hands commands over before the turn ends.
func Flush(commands []byte) int32 { return hostFlush(bytesOf(commands), uint32(len(commands))) }

// ResultLen is how many bytes an announced answer has.
func ResultLen(operation uint32) int32 { return hostResultLen(operation) }

// ResultRead copies an answer from offset on; how many bytes.
func ResultRead(operation, offset uint32, b []byte) int32 {
	return hostResultRead(operation, offset, bytesOf(b), uint32(len(b)))
}

// StreamRead fills b from a source; how many bytes, 0 at its end.
func StreamRead(name string, b []byte) int32 {
	return hostStreamRead(text(name), uint32(len(name)), bytesOf(b), uint32(len(b)))
}

// StreamWrite writes b to a sink; nothing closes it.
func StreamWrite(name string, b []byte) int32 {
	return hostStreamWrite(text(name), uint32(len(name)), bytesOf(b), uint32(len(b)))
}
