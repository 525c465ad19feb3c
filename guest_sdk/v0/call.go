package wasman

import (
	"encoding/json"
	"errors"
	"strconv"

	"wasman.dev/guest/v0/internal/abi"
)

// Names of host_call_api that the host answers itself.
const (
	nameInput   = "wasman.input"
	nameSession = "wasman.session"
	nameResult  = "wasman.result"
	nameFail    = "wasman.fail"
	nameError   = "wasman.error"
)

const (
	// smallResponse fits most answers; it is allocated once.
	smallResponse = 4 << 10
	// largestResponse bounds the growth below: a length is a signed 32-bit number.
	largestResponse = 1 << 30
)

var small [smallResponse]byte

// Call calls the activity name with request as JSON, and decodes its answer into response. A nil request sends nothing,
// a nil response drops the answer. An activity that failed for good is an *ActivityError.
func Call(name string, request, response any) error {
	body, err := encode(name, request)
	if err != nil {
		return err
	}
	return decoded(name, body, response)
}

// CallBytes calls the activity name with the bytes of request as they are, and returns its answer as it is.
func CallBytes(name string, request []byte) ([]byte, error) {
	answer, err := call(name, request)
	if err != nil {
		return nil, err
	}
	return append([]byte(nil), answer...), nil
}

// Input decodes the run's input into v, a pointer.
func Input(v any) error { return decoded(nameInput, nil, v) }

// Session decodes the instance's session into v, a pointer. Streams in it are opened by the host: see Download, Upload.
func Session(v any) error { return decoded(nameSession, nil, v) }

// Result gives the run's result. A later one replaces it; it counts when the body returns without error.
func Result(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return errors.New("wasman: the result cannot be written as JSON: " + err.Error())
	}
	_, err = call(nameResult, body)
	return err
}

// Fail ends the run as failed. It never returns.
func Fail(type_, message string, details any) {
	failure := struct {
		Type    string `json:"type"`
		Message string `json:"message"`
		Details any    `json:"details"`
	}{type_, message, details}
	body, err := json.Marshal(failure)
	if err != nil { // the details are at fault; the failure itself must not get lost
		failure.Details = "(the details cannot be written as JSON: " + err.Error() + ")"
		body, _ = json.Marshal(failure)
	}
	abi.CallAPI(nameFail, body, nil)
	panic("wasman: the host let a failed run go on")
}

// encode writes a request; nil is no request at all.
func encode(name string, request any) ([]byte, error) {
	if request == nil {
		return nil, nil
	}
	body, err := json.Marshal(request)
	if err != nil {
		return nil, errors.New("wasman: the request to " + name + " cannot be written as JSON: " + err.Error())
	}
	return body, nil
}

// decoded calls name and decodes the answer. An empty answer leaves response as it is.
func decoded(name string, request []byte, response any) error {
	answer, err := call(name, request)
	if err != nil || response == nil || len(answer) == 0 {
		return err
	}
	if err := json.Unmarshal(answer, response); err != nil {
		return errors.New("wasman: the answer of " + name + " does not fit: " + err.Error())
	}
	return nil
}

// call returns the answer of name. It is valid until the next call.
func call(name string, request []byte) ([]byte, error) {
	answer, status := exchange(name, request)
	switch {
	case status >= 0:
		return answer, nil
	case status == abi.Failed:
		return nil, lastError(name)
	case status == abi.TooLarge:
		return nil, errors.New("wasman: the answer of " + name + " has over " + strconv.Itoa(largestResponse) + " bytes")
	}
	return nil, errors.New("wasman: the host answered " + name + " with the unknown status " + strconv.Itoa(int(status)))
}

// exchange makes the call. An answer that is too large stays with the host, which does not say its size, until the same
// call comes with room enough.
func exchange(name string, request []byte) ([]byte, int32) {
	response := small[:]
	for {
		n := abi.CallAPI(name, request, response)
		switch {
		case n > int32(len(response)):
			panic("wasman: the host wrote more than there is room for")
		case n >= 0:
			return response[:n], n
		case n != abi.TooLarge || len(response) >= largestResponse:
			return nil, n
		}
		response = make([]byte, 4*len(response))
	}
}
