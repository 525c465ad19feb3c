// Command sdk_tour uses each part of package wasman once. It is not re-entrant: after a crash it is replayed.
//
// Input: {"names": ["Ada", "Grace"], "copy": true, "fail": "why"}. It calls the activity greet once a name, copies the
// download to the upload in upper case if asked to, and ends by wasman.Fail if fail is not empty. An activity that
// fails is shown by its error's text in place of the greeting. When it is to be cancelled it calls tidy, and ends.
package main

import (
	"bytes"
	"encoding/json"
	"io"

	wasman "wasman.dev/guest/v0"
)

func init() { wasman.Main(run) }

func main() {}

type input struct {
	Names []string `json:"names"`
	Copy  bool     `json:"copy"`
	Fail  string   `json:"fail"`
}

type greeting struct {
	Name string `json:"name"`
}

type result struct {
	Greetings []string        `json:"greetings"`
	Errors    []string        `json:"errors"`
	Bytes     int             `json:"bytes"`
	Session   json.RawMessage `json:"session"`
	Nanos     int64           `json:"nanos"` // the time at the end
}

func run() error {
	var in input
	if err := wasman.Input(&in); err != nil {
		return err
	}
	out := result{Greetings: []string{}, Errors: []string{}}
	if err := wasman.Session(&out.Session); err != nil {
		return err
	}
	for _, name := range in.Names {
		var text string
		if err := wasman.Call("greet", greeting{name}, &text); err != nil {
			if wasman.IsCancelled(err) {
				if err := wasman.Call("tidy", name, nil); err != nil {
					return err
				}
				return err
			}
			if _, ok := wasman.ErrorOf[*wasman.ActivityError](err); !ok {
				return err
			}
			out.Errors = append(out.Errors, err.Error())
			continue
		}
		out.Greetings = append(out.Greetings, text)
	}
	wasman.Checkpoint()
	if in.Fail != "" {
		wasman.Fail("Requested", in.Fail, in)
	}
	if in.Copy {
		var err error
		if out.Bytes, err = shout(wasman.Upload(), wasman.Download()); err != nil {
			return err
		}
	}
	out.Nanos = wasman.Now().UnixNano()
	return wasman.Result(out)
}

// shout copies in upper case and closes the upload.
func shout(to io.WriteCloser, from io.Reader) (copied int, err error) {
	chunk := make([]byte, 4096)
	for {
		n, err := from.Read(chunk)
		if err == io.EOF {
			return copied, to.Close()
		}
		if err != nil {
			return copied, err
		}
		if _, err := to.Write(bytes.ToUpper(chunk[:n])); err != nil {
			return copied, err
		}
		copied += n
	}
}
