//go:build !wasip1

package abi

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
