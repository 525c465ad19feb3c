// Command mixed does all that is not the same twice in an ordinary Go program: goroutines, channels, select between
// ready cases, the order of a map, math/rand, system random bytes, time and sleep. What it draws goes into the calls of
// the activity echo, so a host that lets one of them differ when it runs the guest again sees another call.
//
// It is a command, built by TinyGo and by standard Go, and speaks the ABI by hand, as a guest without an SDK does.
package main

import (
	"math/rand"
	"os"
	"strconv"
	"time"
	"unsafe"
)

//go:wasmimport env host_call_api
func hostCallAPI(name unsafe.Pointer, nameLen uint32, request unsafe.Pointer, requestLen uint32, response unsafe.Pointer, responseMax uint32) int32

//go:wasmimport env checkpoint
func hostCheckpoint()

//go:wasmimport wasi_snapshot_preview1 random_get
func randomGet(buffer unsafe.Pointer, length uint32) uint32

const rounds = 12

var response [1024]byte

// call returns the answer, or ends the guest with exit code 1.
func call(name, request string) string {
	n := hostCallAPI(
		unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)),
		unsafe.Pointer(unsafe.StringData(request)), uint32(len(request)),
		unsafe.Pointer(&response[0]), uint32(len(response)),
	)
	if n < 0 {
		println("mixed:", name, "answered", n)
		os.Exit(1)
	}
	return string(response[:n])
}

func main() {
	words := map[string]int{}
	for i := range 40 {
		words["w"+strconv.Itoa(i)] = i
	}
	digest, mismatches, slept := uint32(2166136261), 0, time.Duration(0)
	for round := range rounds {
		line := strconv.Itoa(round) + order(words) + selected() + workers() + drawn()
		if round%3 == 1 {
			pause := time.Duration(10+rand.Intn(40)) * time.Millisecond
			before := time.Now()
			time.Sleep(pause)
			if time.Since(before) < pause {
				println("mixed: woken too early")
				os.Exit(1)
			}
			slept += pause
		}
		line += " t" + strconv.FormatInt(time.Now().UnixNano(), 10)
		request := `"` + line + `"` // JSON: nothing in it needs an escape
		if call("echo", request) != request {
			mismatches++
		}
		for _, b := range []byte(line) {
			digest = (digest ^ uint32(b)) * 16777619
		}
		words["r"+strconv.Itoa(round)] = round
		if round == rounds/2 {
			hostCheckpoint() // only a hint here: this guest is not re-entrant
		}
	}
	call("wasman.result", `{"rounds":`+strconv.Itoa(rounds)+`,"mismatches":`+strconv.Itoa(mismatches)+
		`,"slept_ms":`+strconv.FormatInt(slept.Milliseconds(), 10)+`,"digest":"`+strconv.FormatUint(uint64(digest), 16)+`"}`)
}

// order is the first few keys as the map gives them.
func order(words map[string]int) string {
	text, n := "", 0
	for word := range words {
		if n++; n > 4 {
			break
		}
		text += " " + word
	}
	return text
}

// selected chooses between channels that are all ready.
func selected() string {
	a, b, c := make(chan int, 4), make(chan int, 4), make(chan int, 4)
	for i := range 4 {
		a <- i
		b <- i
		c <- i
	}
	text := " "
	for range 6 {
		select {
		case <-a:
			text += "a"
		case <-b:
			text += "b"
		case <-c:
			text += "c"
		}
	}
	return text
}

// workers is the order in which goroutines that sleep and compute get through one channel.
func workers() string {
	done := make(chan string)
	for i := range 4 {
		go func() {
			n := rand.Intn(1000)
			time.Sleep(time.Duration(n%3) * time.Millisecond)
			for range n % 7 {
				done <- ""
			}
			done <- " g" + strconv.Itoa(i)
			done <- "end"
		}()
	}
	text := ""
	for ended := 0; ended < 4; {
		if got := <-done; got == "end" {
			ended++
		} else {
			text += got
		}
	}
	return text
}

// drawn is the generator's and the system's random numbers.
func drawn() string {
	var bytes [4]byte
	if randomGet(unsafe.Pointer(&bytes[0]), uint32(len(bytes))) != 0 {
		println("mixed: no random bytes")
		os.Exit(1)
	}
	text := " r" + strconv.Itoa(rand.Intn(1_000_000)) + " s"
	for _, b := range bytes {
		text += strconv.FormatUint(uint64(b), 16) + "."
	}
	return text
}
