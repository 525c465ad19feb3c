//go:build tinygo

package codec

// Goroutines have 16 KB of stack, of which each value within another takes some 700 bytes. Input comes from outside: it
// is refused, with its place, before it runs into the end, where TinyGo notices too late.
const maxDepth = 12
