package wasman

import (
	"encoding/json"
	"strconv"
)

// TypeCancelled is the Type of an *ActivityError whose call was cut short because the run is to be cancelled.
const TypeCancelled = "Cancelled"

// ActivityError is the failure of an activity after its last attempt, as the host reports it.
type ActivityError struct {
	Type         string          `json:"type"`                    // the exception's type
	Message      string          `json:"message"`                 // its text
	Activity     string          `json:"activity"`                // the activity's name
	Attempt      int             `json:"attempt"`                 // the last attempt, counted from 1
	Details      json.RawMessage `json:"details"`                 // JSON, or empty
	NonRetryable bool            `json:"non_retryable,omitempty"` // no other attempt followed, because it could not help
	Cause        *ActivityError  `json:"cause,omitempty"`         // what brought it about, or nil; it names no activity
}

// Error says which activity failed, when and why.
func (e *ActivityError) Error() string {
	text := e.Activity + " failed"
	if e.Attempt > 0 {
		text += " at attempt " + strconv.Itoa(e.Attempt)
	}
	return text + ": " + e.Type + ": " + e.Message
}

// IsCancelled says whether err is, or wraps, the failure of a call because the run is to be cancelled. The guest hears of
// it once. It may call activities to tidy up; when its body returns err, the run has been cancelled.
func IsCancelled(err error) bool {
	failed, ok := ErrorOf[*ActivityError](err)
	return ok && failed.Type == TypeCancelled
}

// Failure is an error with a type and details of its own: returned from the body, it ends the run as such.
type Failure struct {
	Type    string
	Message string
	Details any // anything that encoding/json can write
}

// Error is the message.
func (f *Failure) Error() string { return f.Message }

// ErrorOf finds the first T in err and what it wraps. It does what errors.As does for a guest that must not have that.
func ErrorOf[T error](err error) (found T, ok bool) {
	for err != nil {
		if found, ok = err.(T); ok {
			return found, true
		}
		wrapper, wraps := err.(interface{ Unwrap() error })
		if !wraps {
			break
		}
		err = wrapper.Unwrap()
	}
	return found, false
}

// failureOf is what the host is told when the body returns err: type and details of the first error that has them, the
// message of the whole.
func failureOf(err error) Failure {
	failure := Failure{Type: "Error", Message: err.Error()}
	if own, ok := ErrorOf[*Failure](err); ok {
		failure.Type, failure.Details = own.Type, own.Details
	} else if activity, ok := ErrorOf[*ActivityError](err); ok {
		failure.Type, failure.Details = "ActivityError", activity
		if activity.Type == TypeCancelled {
			failure.Type = TypeCancelled
		}
	}
	return failure
}

// lastError asks the host why the call of name, just made, failed.
func lastError(name string) error {
	failed := &ActivityError{}
	answer, status := exchange(nameError, nil)
	if status < 0 || json.Unmarshal(answer, failed) != nil {
		failed = &ActivityError{Type: "Unknown", Message: "the host gives no reason"}
	}
	if failed.Activity == "" {
		failed.Activity = name
	}
	return failed
}
