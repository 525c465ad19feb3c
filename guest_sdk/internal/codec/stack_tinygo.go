//go:build tinygo

package codec

import "unsafe"

// lock does nothing: no goroutine is interrupted in here, and what could wait for a lock could be unwound.
type lock struct{}

func (lock) Lock()   {}
func (lock) Unlock() {}

// Goroutines have a stack of a fixed size, which a value deep within others could run out of, and TinyGo notices too
// late. So each asks how much is left of it. From above stackReserve, what does not lie within anything is read or
// written: a number, or a type that does so itself.
const stackReserve = 4 << 10

// goroutine is internal/task.Task of TinyGo 0.39, as far as the lowest address of its stack.
type goroutine struct {
	_     [2]unsafe.Pointer
	_     uint64
	_     [5]unsafe.Pointer
	stack uintptr
}

//go:linkname currentTask internal/task.Current
func currentTask() *goroutine

//export llvm.stacksave.p0
func stackPointer() unsafe.Pointer

func stackLeft() bool {
	running := currentTask()
	return running == nil || uintptr(stackPointer()) > running.stack+stackReserve
}
