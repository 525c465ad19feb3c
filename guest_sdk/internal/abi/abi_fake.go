//go:build !wasip1

package abi

import "context"

// Fake is a host for tests.
type Fake interface {
	Now() int64
	Random(b []byte)
	Log(level int32, message string, attributes []byte)
	ResultLen(operation uint32) int32
	ResultRead(operation, offset uint32, b []byte) int32
	StreamRead(name string, b []byte) int32
	StreamWrite(name string, b []byte) int32
	// Asked is called when the guest has written a command, which the host takes at the end of the turn.
	Asked()
}

// Host is what plays the host outside a guest.
var Host Fake

// Guest is the guest's side, for who plays its host.
var Guest struct {
	// Begin forgets the run before, and gives the context of a new one.
	Begin func() context.Context
	// Commands are those since they were last taken.
	Commands func() []byte
	// Answer gives the answer of an operation.
	Answer func(operation uint32, failed bool, body []byte)
	// Cancel asks that the run be cancelled.
	Cancel func(reason string)
	// Name is what an activity or a signal is called.
	Name func(handle any) string
	// Encode and Decode are how payloads are written and read; into is a pointer.
	Encode func(value any) ([]byte, error)
	Decode func(data []byte, into any) error
}

func host() Fake {
	if Host == nil {
		panic("wasman: there is no host here: run workflows by package wasmantest, or build them for wasip1")
	}
	return Host
}

// Now is the host's time, ns since 1970.
func Now() int64 { return host().Now() }

// Random fills b.
func Random(b []byte) { host().Random(b) }

// Log writes a line to the host's log.
func Log(level int32, message string, attributes []byte) { host().Log(level, message, attributes) }

// ResultLen is how many bytes an announced answer has.
func ResultLen(operation uint32) int32 { return host().ResultLen(operation) }

// ResultRead copies an answer from offset on; how many bytes.
func ResultRead(operation, offset uint32, b []byte) int32 {
	return host().ResultRead(operation, offset, b)
}

// StreamRead fills b from a source.
func StreamRead(name string, b []byte) int32 { return host().StreamRead(name, b) }

// StreamWrite writes b to a sink.
func StreamWrite(name string, b []byte) int32 { return host().StreamWrite(name, b) }
