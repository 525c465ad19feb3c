//go:build !tinygo && wasip1

package wasman

import (
	"os"
	"syscall"
)

// Standard Go's scheduler sleeps in poll_oneoff when no goroutine can go on. The host has a descriptor that can be read
// exactly then, so whoever reads from it is woken when all the others are parked, and the export can return.

//go:wasmimport wasman idle_deadline
func idleDeadline() int64

const idleDescriptor = 1000

var (
	idleFile *os.File
	idle     syscall.RawConn
)

func init() {
	idleFile = os.NewFile(idleDescriptor, "idle")
	conn, err := idleFile.SyscallConn()
	if err != nil {
		panic("wasman: the host has no idle descriptor: " + err.Error())
	}
	idle = conn
}

// drain lets all goroutines run until they are parked, and tells when the next timer is due.
func drain() int64 {
	waited := false
	err := idle.Read(func(uintptr) bool {
		before := waited
		waited = true
		return before
	})
	if err != nil {
		panic("wasman: the host's idle descriptor cannot be read: " + err.Error())
	}
	return idleDeadline()
}

func launch() { go live() }

//go:wasmexport wasman_abi
func exportVersion() int32 { return version }

//go:wasmexport wasman_block
func exportBlock() uint32 { return introduce() }

//go:wasmexport wasman_turn
func exportTurn(n uint32) int32 {
	begin()
	take(run.in[:n])
	leave(drain())
	return 0
}
