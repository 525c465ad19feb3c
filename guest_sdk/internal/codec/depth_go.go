//go:build !tinygo

package codec

const maxDepth = 200 // of values within each other: a ring of pointers must end somewhere
