// Programs of goroutines that are drawn from a seed, and bodies that go wrong: what tests of durability run.
package main

import (
	"context"
	crypto "crypto/rand"
	"encoding/hex"
	"io"
	"math/rand"
	"strconv"
	"strings"
	"time"

	"wasman.dev/guest"
)

var (
	echo = wasman.NewActivity[string, string]("echo")
	mail = wasman.NewSignal[string]("mail")

	_ = wasman.Workflow("drawn", drawn)
	_ = wasman.Workflow("calls", calls)
	_ = wasman.Workflow("sleeps", sleeps)
	_ = wasman.Workflow("years", years)
	_ = wasman.Workflow("panics", panics)
	_ = wasman.Workflow("deadlock", deadlock)
	_ = wasman.Workflow("endless", endless)
	_ = wasman.Workflow("deep", deep)
	_ = wasman.Workflow("overflows", overflows)
	_ = wasman.Workflow("ticks", ticks)
	_ = wasman.Workflow("receives", receives)
	_ = wasman.Workflow("fanout", fanout)
	_ = wasman.Workflow("wide", wide)
	_ = wasman.Workflow("anything", func(_ context.Context, given any) (any, error) { return given, nil })
	_ = wasman.Workflow("copies", copies)
	_ = wasman.Workflow("cancels", cancels)
	_ = wasman.Workflow("draws", draws)
	_ = wasman.Workflow("fails", fails)
	_ = wasman.Workflow("nested", func(_ context.Context, given Nested) (Nested, error) { return given, nil })
	_ = wasman.Workflow("bytes", func(_ context.Context, given []byte) ([]byte, error) { return given, nil })
	_ = wasman.Workflow("blank", func(context.Context, wasman.None) (wasman.None, error) { return wasman.None{}, nil })
)

// Nested holds others of its kind, in each way that JSON has.
type Nested struct {
	Member *Nested           `json:"member,omitempty"`
	List   []Nested          `json:"list,omitempty"`
	Map    map[string]Nested `json:"map,omitempty"`
	Number int               `json:"number,omitempty"`
}

// Drawn is what a drawn program is made of.
type Drawn struct {
	Seed  int64 `json:"seed"`
	Width int   `json:"width"` // goroutines
	Steps int   `json:"steps"` // of each
}

// drawn runs goroutines that call, sleep, select, exchange and receive as a seed says, and tells what came of it in the
// order in which it came.
func drawn(ctx context.Context, given Drawn) ([]string, error) {
	said := make(chan string)
	exchange := make(chan string)
	var came []string
	running := given.Width
	done := make(chan struct{})
	seen := map[string]int{}
	for i := range given.Width {
		go func() {
			random := rand.New(rand.NewSource(given.Seed*1000 + int64(i)))
			for step := range given.Steps {
				name := strconv.Itoa(i) + "." + strconv.Itoa(step)
				said <- name + " " + one(ctx, random, name, exchange)
			}
			done <- struct{}{}
		}()
	}
	for running > 0 {
		select {
		case line := <-said:
			came = append(came, line)
			word, _, _ := strings.Cut(line[strings.IndexByte(line, ' ')+1:], " ")
			seen[word]++
		case <-done:
			running--
		}
	}
	for word, n := range seen {
		if n < 0 {
			return nil, wasman.Fail("lost " + word)
		}
	}
	return came, nil
}

func one(ctx context.Context, random *rand.Rand, name string, exchange chan string) string {
	short := time.Duration(random.Intn(5000)) * time.Millisecond
	switch random.Intn(8) {
	case 0:
		if err := wasman.Sleep(ctx, short); err != nil {
			return "error " + err.Error()
		}
		return "slept"
	case 1, 2:
		answer, err := echo.Do(ctx, name)
		if err != nil {
			return "error " + err.Error()
		}
		return "called " + answer
	case 3: // whichever comes first
		a, b := echo.Start(ctx, name+"a"), echo.Start(ctx, name+"b")
		select {
		case <-a.Done():
			answer, _ := a.Get(ctx)
			return "first " + answer
		case <-b.Done():
			answer, _ := b.Get(ctx)
			return "second " + answer
		case <-time.After(short):
			return "neither"
		}
	case 4:
		select {
		case exchange <- name:
			return "sent"
		case other := <-exchange:
			return "met " + other
		case <-time.After(short):
			return "alone"
		}
	case 5:
		within, cancel := context.WithTimeout(ctx, short)
		defer cancel()
		value, err := mail.Receive(within)
		if err != nil {
			return "no mail"
		}
		return "mail " + value
	case 6: // garbage, and what must survive it
		kept := map[int]string{}
		for n := range 50 {
			kept[n] = strings.Repeat(name, 10)
		}
		time.Sleep(short)
		if len(kept) != 50 || kept[7] != strings.Repeat(name, 10) {
			return "error memory"
		}
		return "kept"
	default:
		ticker := time.NewTicker(short + time.Millisecond)
		defer ticker.Stop()
		<-ticker.C
		<-ticker.C
		return "ticked at " + strconv.FormatInt(wasman.Now().UnixMilli()%1_000_000, 10)
	}
}

// calls calls again and again.
func calls(ctx context.Context, count int) (int, error) {
	for n := range count {
		if _, err := echo.Do(ctx, strconv.Itoa(n)); err != nil {
			return n, err
		}
	}
	return count, nil
}

// sleeps waits for a number of ms, and tells how many went by.
func sleeps(_ context.Context, ms int64) (int64, error) {
	begin := time.Now()
	time.Sleep(time.Duration(ms) * time.Millisecond)
	return time.Since(begin).Milliseconds(), nil
}

// years sleeps so many years, and beside that a moment longer.
func years(_ context.Context, count int64) (int, error) {
	slept := make(chan int)
	for more := range 2 {
		go func() {
			time.Sleep(time.Duration(count)*365*24*time.Hour + time.Duration(more))
			slept <- 1
		}()
	}
	return <-slept + <-slept, nil
}

func panics(ctx context.Context, message string) (wasman.None, error) {
	if _, err := echo.Do(ctx, message); err != nil {
		return wasman.None{}, err
	}
	panic(message)
}

func deadlock(ctx context.Context, name string) (wasman.None, error) {
	if _, err := echo.Do(ctx, name); err != nil {
		return wasman.None{}, err
	}
	a, b := make(chan int), make(chan int)
	go func() { a <- <-b }()
	b <- <-a
	return wasman.None{}, nil
}

var sink int

func endless(ctx context.Context, name string) (wasman.None, error) {
	if _, err := echo.Do(ctx, name); err != nil {
		return wasman.None{}, err
	}
	for {
		sink++
	}
}

//go:noinline
func depth(n int) int {
	var frame [64]byte
	frame[n%64] = byte(n)
	if n == 0 {
		return int(frame[0])
	}
	return depth(n-1) + int(frame[n%64])
}

func deep(_ context.Context, n int) (int, error) { return depth(n), nil }

// overflows needs more stack the deeper it goes, also where depth is made a loop, and waits behind that.
func overflows(ctx context.Context, n int) (string, error) {
	return echo.Do(ctx, strconv.Itoa(stacked(n)))
}

//go:noinline
func stacked(n int) int {
	var frame [64]int
	frame[n%64] = n
	if n == 0 {
		return frame[0]
	}
	return stacked(n-1) + frame[(n+1)%64] + frame[n%64]
}

// ticks is a ticker that nobody stops, for so many ticks.
func ticks(_ context.Context, count int) (int, error) {
	ticker := time.NewTicker(time.Millisecond)
	for range count {
		<-ticker.C
	}
	return count, nil
}

// receives takes so many values and tells them in order.
func receives(ctx context.Context, count int) ([]string, error) {
	var values []string
	for range count {
		value, err := mail.Receive(ctx)
		if err != nil {
			return values, err
		}
		values = append(values, value)
	}
	return values, nil
}

// fanout starts so many calls at once and joins them.
func fanout(ctx context.Context, count int) (int, error) {
	started := make([]*wasman.Future[string], count)
	for n := range count {
		started[n] = echo.Start(ctx, strconv.Itoa(n))
	}
	total := 0
	for n, future := range started {
		answer, err := future.Get(ctx)
		if err != nil {
			return total, err
		}
		if answer == strconv.Itoa(n) {
			total++
		}
	}
	return total, nil
}

// wide is goroutines that call, each again and again.
func wide(ctx context.Context, given Drawn) (int, error) {
	done := make(chan int)
	for i := range given.Width {
		go func() {
			for step := range given.Steps {
				if _, err := echo.Do(ctx, strconv.Itoa(i)+"."+strconv.Itoa(step)); err != nil {
					panic(err)
				}
			}
			done <- given.Steps
		}()
	}
	total := 0
	for range given.Width {
		total += <-done
	}
	return total, nil
}

// copies reads two sources in turn, a chunk each, into the other's sink, and calls between the chunks.
func copies(ctx context.Context, chunk int) (int, error) {
	total := 0
	buffer := make([]byte, chunk)
	open := map[string]string{"left": "to_right", "right": "to_left"}
	for len(open) > 0 {
		for _, source := range []string{"left", "right"} {
			target, more := open[source]
			if !more {
				continue
			}
			n, err := wasman.Source(source).Read(buffer)
			if err == io.EOF {
				delete(open, source)
				if err := wasman.Sink(target).Close(); err != nil {
					return total, err
				}
				continue
			}
			if err != nil {
				return total, err
			}
			if _, err := wasman.Sink(target).Write(buffer[:n]); err != nil {
				return total, err
			}
			total += n
			if _, err := echo.Do(ctx, strconv.Itoa(total)); err != nil {
				return total, err
			}
		}
	}
	if _, err := wasman.Sink("to_left").Write(buffer[:1]); err == nil {
		return total, wasman.Fail("a closed sink was written to")
	}
	if _, err := wasman.Source("nowhere").Read(buffer); err == nil {
		return total, wasman.Fail("a source was read that is not there")
	}
	return total, nil
}

// cancels waits for ever, and tidies up when it is to end.
func cancels(ctx context.Context, name string) (out string, err error) {
	undo := wasman.NewSaga(ctx)
	defer undo.Close(&err)
	undo.Add(func(ctx context.Context) error { _, err := echo.Do(ctx, "undo "+name); return err })
	return out, wasman.Sleep(ctx, 1000*time.Hour)
}

func main() {}

// fails calls an activity, and one that undoes it; of an error it makes one of its own, if it is to.
func fails(ctx context.Context, how string) (out string, err error) {
	undo := wasman.NewSaga(ctx)
	defer undo.Close(&err)
	undo.Add(func(ctx context.Context) error { _, err := echo.Do(ctx, "undo"); return err })
	out, err = echo.Do(ctx, how)
	if failed, ok := wasman.ErrorOf[*wasman.ActivityError](err); ok && how == "own" {
		err = &wasman.Failure{
			Type: "OrderFailed", Message: "no order", Details: []any{failed.NonRetryable, failed.Details},
			NonRetryable: failed.NonRetryable, Cause: err,
		}
	}
	return out, err
}

// draws tells random numbers, by where they come from.
func draws(context.Context, wasman.None) (map[string]string, error) {
	var bytes [16]byte
	if _, err := crypto.Read(bytes[:]); err != nil {
		return nil, err
	}
	return map[string]string{
		"crypto/rand": hex.EncodeToString(bytes[:]),
		"Rand":        strconv.FormatInt(wasman.Rand().Int63(), 16),
		"UUID":        wasman.UUID(),
	}, nil
}
