//go:build tinygo && wasip1

package wasman

import (
	"math"
	"runtime"
	"unsafe"

	_ "wasman.dev/guest/internal/random" // crypto/rand draws from the run's own stream
)

// TinyGo's scheduler runs until no goroutine can go on and then, because a reactor has returned to its host, forgets to
// tell. So one goroutine, the sentinel, lives as long as the run: it is told of what has happened, lets all the others
// run, and when nothing is left but timers that lie ahead, it stops the scheduler. Exports are entered outside of any
// goroutine: the collector does not scan that stack, so nothing is held on it, and everything happens in the sentinel.
//
// What is taken from the runtime are internals of TinyGo 0.39; a build with another version is refused by wasman build.

type task struct {
	next, ptr unsafe.Pointer
	data      uint64
}

type runtimeTimer struct{ when, period int64 }

type timerNode struct {
	next  *timerNode
	timer *runtimeTimer
}

//go:extern runtime.sleepQueue
var sleepQueue *task

//go:extern runtime.sleepQueueBaseTime
var sleepQueueBaseTime int64

//go:extern runtime.timerQueue
var timerQueue *timerNode

//go:extern runtime.schedulerExit
var schedulerExit bool

//go:linkname schedulerRunQueue runtime.schedulerRunQueue
func schedulerRunQueue() *struct{ head, tail unsafe.Pointer }

//go:linkname scheduler runtime.scheduler
func scheduler(returnAtDeadlock bool)

//go:linkname scheduleTask runtime.scheduleTask
func scheduleTask(t *task)

//go:linkname currentTask internal/task.Current
func currentTask() *task

//go:linkname pause internal/task.Pause
func pause()

//go:linkname ticks runtime.ticks
func ticks() int64

var (
	sentinel *task
	given    uint32
)

// nextTimer is when the earliest timer is due, or -1. What sleeps beyond the last time that there is, in the year 2262,
// is due with it: Go cuts its timers there as well.
func nextTimer() int64 {
	due := int64(-1)
	if sleepQueue != nil {
		sleepQueue.data = min(sleepQueue.data, uint64(math.MaxInt64-sleepQueueBaseTime))
		due = sleepQueueBaseTime + int64(sleepQueue.data)
	}
	if timerQueue != nil && (due < 0 || timerQueue.timer.when < due) {
		due = timerQueue.timer.when
	}
	return due
}

func watch() {
	sentinel = currentTask()
	for {
		begin()
		take(run.in[:given])
		due := nextTimer()
		for schedulerRunQueue().head != nil || due >= 0 && due <= ticks() {
			runtime.Gosched()
			due = nextTimer()
		}
		leave(due)
		schedulerExit = true
		pause()
	}
}

// launch has nothing to do: the goroutine of the workflow comes behind the sentinel, which is told that the run begins.
func launch() {}

//export wasman_abi
func exportVersion() int32 { return version }

// exportBlock prepares what every run begins with: the host keeps memory as this leaves it, once for all of them. Stacks
// that are made here cost a run no time and, until they are used, no pages.
//
//export wasman_block
func exportBlock() uint32 {
	go watch()
	go live()
	return introduce()
}

//export wasman_turn
func exportTurn(n uint32) int32 {
	given = n
	if sentinel != nil { // else it is about to run for the first time
		scheduleTask(sentinel)
	}
	scheduler(true)
	return 0
}
