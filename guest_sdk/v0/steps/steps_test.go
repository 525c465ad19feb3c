package steps

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"wasman.dev/guest/v0/internal/abi"
)

var errCrash = errors.New("crash")

// TestResumedFromAnyCheckpointTheStepsAreTheSame crashes at each checkpoint in turn and restores what memory was there.
func TestResumedFromAnyCheckpointTheStepsAreTheSame(t *testing.T) {
	var log []string
	var rows int // the guest's memory, with current
	steps := []Step{
		Once("open", func() error { log = append(log, "open"); return nil }),
		Repeat("rows", func() (bool, error) {
			rows++
			log = append(log, "row "+strconv.Itoa(rows))
			return rows < 3, nil
		}),
		Once("finish", func() error { log = append(log, "finish"); return nil }),
	}
	before := abi.Host.Checkpoint
	t.Cleanup(func() { list, current, abi.Host.Checkpoint = nil, 0, before })
	const want = "open,row 1,row 2,row 3,finish"
	for crash := 1; crash <= 4; crash++ {
		list, current, rows, log = steps, 0, 0, nil
		taken := 0
		abi.Host.Checkpoint = func() {
			if taken++; taken == crash {
				panic(errCrash)
			}
		}
		func() {
			defer func() {
				if recover() != errCrash {
					t.Fatalf("there is no checkpoint %d", crash)
				}
			}()
			_ = run()
		}()
		abi.Host.Checkpoint = func() { taken++ }
		if err := run(); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(log, ","); got != want || taken != 4 {
			t.Errorf("crash at checkpoint %d: %s, %d checkpoints", crash, got, taken)
		}
	}
}

func TestAFailedStepIsNamed(t *testing.T) {
	cause := errors.New("no header")
	list = []Step{Once("open", func() error { return cause })}
	t.Cleanup(func() { list, current = nil, 0 })
	err := run()
	if err == nil || err.Error() != "open: no header" || !errors.Is(err, cause) {
		t.Fatal(err)
	}
	if current != 0 {
		t.Fatal("the failed step counts as done")
	}
}
