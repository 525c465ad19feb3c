package wasman

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand"
	"reflect"
	"strconv"
	"time"

	"wasman.dev/guest/internal/abi"
	"wasman.dev/guest/internal/codec"
)

// Now is the time of the last thing that happened to the run: it stands still while the workflow computes. So does
// time.Now.
func Now() time.Time { return time.Unix(0, abi.Now()) }

// Sleep waits for d, or until ctx ends, whose error it gives then. A worker need not be there meanwhile.
func Sleep(ctx context.Context, d time.Duration) error {
	if ctx.Done() == nil {
		time.Sleep(d)
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return endOf(ctx)
	}
}

// hostSource draws from the run's own random stream: other runs draw other numbers, the same run the same ones again.
type hostSource struct{}

func (hostSource) Uint64() uint64 {
	var b [8]byte
	abi.Random(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

func (s hostSource) Int63() int64 { return int64(s.Uint64() >> 1) }
func (hostSource) Seed(int64)     {}

// Rand draws from the run's own random stream, as crypto/rand does. The top-level functions of math/rand draw the same
// in every run under standard Go.
func Rand() *rand.Rand { return rand.New(hostSource{}) }

// UUID is a random UUID (version 4), in its usual form.
func UUID() string {
	var b [16]byte
	abi.Random(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	text := make([]byte, 0, 36)
	for i, part := range [][]byte{b[:4], b[4:6], b[6:8], b[8:10], b[10:]} {
		if i > 0 {
			text = append(text, '-')
		}
		text = hex.AppendEncode(text, part)
	}
	return string(text)
}

// Level is how much a line of the log matters; as in log/slog.
type Level int32

// Levels.
const (
	Debug   Level = -4
	Notice  Level = 0
	Warning Level = 4
	Error   Level = 8
)

// Log writes a line to the worker's log: a message, then names and values; an error is shown by its text. It is not
// repeated when a run is taken up again. A value without a name is called !BADKEY, as log/slog does. Package
// wasman.dev/guest/slogger has a handler for log/slog.
func Log(level Level, message string, attributes ...any) {
	var more []byte
	for separator := byte('{'); len(attributes) > 0; separator = ',' {
		name, named := attributes[0].(string)
		if named = named && len(attributes) > 1; named {
			attributes = attributes[1:]
		} else {
			name = "!BADKEY"
		}
		more = append(codec.AppendString(append(more, separator), name), ':')
		more = append(more, shown(attributes[0])...)
		attributes = attributes[1:]
	}
	if len(more) > 0 {
		more = append(more, '}')
	}
	abi.Log(int32(level), message, more)
}

func shown(value any) []byte {
	if err, ok := value.(error); ok {
		if v := reflect.ValueOf(value); v.Kind() != reflect.Pointer || !v.IsNil() { // none was found by ErrorOf, say
			value = err.Error()
		}
	}
	data, err := codec.Marshal(value)
	if err != nil {
		return codec.AppendString(nil, "("+err.Error()+")")
	}
	return data
}

// Source is a source of the session, by its field's name; "" is the only one there is. A Read fills the whole buffer
// unless the source ends. The host knows the position, so a run that is taken up again reads on from there.
func Source(name string) io.Reader { return source(name) }

// Sink is a sink of the session, by its field's name; "" is the only one there is. Close ends it; it becomes visible as
// a whole, after the run has completed.
func Sink(name string) io.WriteCloser { return sink(name) }

type (
	source string
	sink   string
)

func (s source) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	switch n := abi.StreamRead(string(s), p); {
	case n < 0:
		return 0, errors.New("wasman: the session has no source '" + string(s) + "' (code " + strconv.Itoa(int(n)) + ")")
	case n == 0:
		return 0, io.EOF
	default:
		return int(n), nil
	}
}

func (s sink) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) { // never with nothing: that closes
		n := abi.StreamWrite(string(s), p[written:])
		if n <= 0 {
			return written, s.refused(n)
		}
		written += int(n)
	}
	return written, nil
}

func (s sink) Close() error {
	if n := abi.StreamWrite(string(s), nil); n < 0 {
		return s.refused(n)
	}
	return nil
}

func (s sink) refused(code int32) error {
	return errors.New("wasman: the session has no sink '" + string(s) + "', or it is closed (code " + strconv.Itoa(int(code)) + ")")
}
