//go:build tinygo && wasip1

package random

import "unsafe"

//go:wasmimport wasi_snapshot_preview1 random_get
func randomGet(data unsafe.Pointer, length uint32) uint32

// drawn is not on the stack, because the first number is drawn before there is a heap that it could escape to.
var drawn uint32

// The three functions that are one object file of wasi-libc: with all of them here, the linker does not take it.

//export arc4random
func arc4random() uint32 {
	fill(unsafe.Pointer(&drawn), 4)
	return drawn
}

//export arc4random_buf
func fill(data unsafe.Pointer, length uint32) {
	if randomGet(data, length) != 0 {
		panic("wasman: the host gives no random bytes")
	}
}

//export arc4random_uniform
func uniform(bound uint32) uint32 {
	if bound < 2 {
		return 0
	}
	for least := -bound % bound; ; { // what is below would make some numbers likelier
		if n := arc4random(); n >= least {
			return n % bound
		}
	}
}
