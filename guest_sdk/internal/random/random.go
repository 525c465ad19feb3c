// Package random gives a guest built by TinyGo its random numbers, by being imported.
//
// TinyGo takes them from wasi-libc, which asks the host once, when the module is initialised, and computes the rest. All
// runs begin with one image of the initialised module, so all of them would draw the same keys and UUIDs from crypto/rand.
// Here the host is asked for each number: it has a stream for each run. What wasi-libc would have brought along, a cipher
// and the whole of printf, is left out with it.
package random
