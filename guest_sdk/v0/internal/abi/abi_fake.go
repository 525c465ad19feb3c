//go:build !(tinygo && wasip1)

package abi

// Host is what plays the host outside a guest: a test sets the functions that it needs.
var Host = struct {
	Checkpoint func()
	Time       func() int64
	CallAPI    func(name string, request, response []byte) int32
	StreamData func(direction int32, data []byte) int32
}{
	Checkpoint: func() { panic(noHost) },
	Time:       func() int64 { panic(noHost) },
	CallAPI:    func(string, []byte, []byte) int32 { panic(noHost) },
	StreamData: func(int32, []byte) int32 { panic(noHost) },
}

const noHost = "wasman: there is no host outside a guest built by TinyGo for wasip1"

// Checkpoint calls the fake.
func Checkpoint() { Host.Checkpoint() }

// Time calls the fake.
func Time() int64 { return Host.Time() }

// CallAPI calls the fake.
func CallAPI(name string, request, response []byte) int32 {
	return Host.CallAPI(name, request, response)
}

// StreamData calls the fake.
func StreamData(direction int32, data []byte) int32 { return Host.StreamData(direction, data) }
