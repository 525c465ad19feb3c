//go:build tinygo && wasip1

package wasman

// Plain export, not go:wasmexport: the body runs on the system stack, so no goroutine's stack is left behind in memory
// when the host enters run anew.
//
//export run
func exportRun() int32 {
	runBody()
	return 0
}
