// Command gcchurn is a re-entrant guest that gives TinyGo's collector all occasions to go wrong when the guest is
// restored: a forest that changes at every step, garbage of all sizes, forced collections, and checkpoints taken deep in
// a recursion whose frames hold pointers. Every step verifies every tree, and panics at the first byte that is wrong.
//
// Input: {"steps": 100}. Each step calls the activity echo with a digest of the forest. The result has the last digest.
package main

import (
	"errors"
	"runtime"
	"strconv"

	wasman "wasman.dev/guest/v0"
	"wasman.dev/guest/v0/steps"
)

func init() {
	steps.Run(steps.Once("plant", plant), steps.Repeat("churn", churn), steps.Once("tell", tell))
}

func main() {}

type options struct {
	Steps int `json:"steps"`
}

type answer struct {
	Step   int    `json:"step"`
	Trees  int    `json:"trees"`
	Digest string `json:"digest"`
}

// node carries a payload that its seed determines, so that a freed and reused block shows.
type node struct {
	seed        uint32
	payload     []byte
	left, right *node
}

const trees = 64

var (
	settings options
	step     int
	mixed    bool // this step's forest is changed already
	state    = uint32(2463534242)
	forest   = map[string]*node{}
	last     answer
	garbage  any
)

func plant() error {
	if err := wasman.Input(&settings); err != nil {
		return err
	}
	for i := range trees {
		forest[key(i)] = grow(5)
	}
	return nil
}

func churn() (more bool, err error) {
	if !mixed {
		for range 8 {
			forest[key(int(random()%trees))] = grow(4 + int(random()%3))
		}
		mixed = true
		descend(24, nil)
	}
	for i := range 200 {
		garbage = make([]byte, 16+random()%6000)
		if i%50 == 0 {
			runtime.GC()
		}
	}
	last = answer{step, len(forest), strconv.FormatUint(uint64(verify()), 16)}
	var echoed answer
	if err := wasman.Call("echo", last, &echoed); err != nil {
		return false, err
	}
	if echoed != last {
		return false, errors.New("step " + strconv.Itoa(step) + " got the answer of another call")
	}
	mixed = false
	step++
	return step < settings.Steps, nil
}

func tell() error { return wasman.Result(last) }

func key(i int) string { return "tree " + strconv.Itoa(i) }

// descend takes a checkpoint below depth frames that each hold what nothing else does, and finds it whole on its way
// back. A restored guest does not come that way, so nothing on it may change what is kept: no random numbers there.
//
//go:noinline
func descend(depth int, above *node) {
	own := grow(1)
	if depth > 0 {
		descend(depth-1, own)
	} else {
		runtime.GC()
		wasman.Checkpoint()
		runtime.GC()
	}
	garbage = make([]byte, 100+40*depth)
	sum(own)
	sum(above)
}

func grow(depth int) *node {
	if depth == 0 {
		return nil
	}
	n := &node{seed: random()}
	n.payload = make([]byte, 1+n.seed%300)
	for i := range n.payload {
		n.payload[i] = byte(n.seed >> (i % 24))
	}
	n.left, n.right = grow(depth-1), grow(depth-1)
	return n
}

// verify is a digest of the forest, independent of the order in which the map gives it.
func verify() (digest uint32) {
	for name, tree := range forest {
		digest += sum(tree) * uint32(len(name)+int(name[len(name)-1]))
	}
	return digest
}

func sum(n *node) uint32 {
	if n == nil {
		return 1
	}
	if len(n.payload) != int(1+n.seed%300) {
		panic("gcchurn: a node has changed")
	}
	for i, b := range n.payload {
		if b != byte(n.seed>>(i%24)) {
			panic("gcchurn: a payload has changed")
		}
	}
	return n.seed ^ (31*sum(n.left) + 17*sum(n.right))
}

// random is xorshift: the state is memory, so it is restored with the rest.
func random() uint32 {
	state ^= state << 13
	state ^= state >> 17
	state ^= state << 5
	return state
}
