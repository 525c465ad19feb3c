package wasman

import (
	"encoding/json"
	"strconv"
)

// ActivityError is the failure of an activity after its last attempt, as the host reports it.
type ActivityError struct {
	Type     string          `json:"type"`     // the exception's type
	Message  string          `json:"message"`  // its text
	Activity string          `json:"activity"` // the activity's name
	Attempt  int             `json:"attempt"`  // the last attempt, counted from 1
	Details  json.RawMessage `json:"details"`  // JSON, or empty
}

// Error says which activity failed, when and why.
func (e *ActivityError) Error() string {
	text := e.Activity + " failed"
	if e.Attempt > 0 {
		text += " at attempt " + strconv.Itoa(e.Attempt)
	}
	return text + ": " + e.Type + ": " + e.Message
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
