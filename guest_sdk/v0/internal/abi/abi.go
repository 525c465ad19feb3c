// Package abi is the host's side of ABI v0 as Go functions: the four imports of module env, unchanged in meaning.
//
// Two files implement it. In a guest the functions are the imports; elsewhere they are a fake, so that what is built on
// them can be tested by the ordinary Go toolchain.
package abi

// Directions of StreamData.
const (
	Download int32 = 0
	Upload   int32 = 1
)

// Answers of CallAPI below zero.
const (
	Failed   int32 = -1 // the call failed; wasman.error tells why
	TooLarge int32 = -2 // the response did not fit; the next identical call takes it
)
