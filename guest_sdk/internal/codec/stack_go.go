//go:build !tinygo

package codec

import "sync"

// lock guards what tests use in many threads.
type lock = sync.Mutex

// stackLeft is whether there is stack for another value within: Go's stacks grow.
func stackLeft() bool { return true }
