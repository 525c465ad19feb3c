package slogger

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"wasman.dev/guest/internal/abi"
)

type host struct {
	abi.Fake // what is not asked for here is nobody's
	lines    []string
	levels   []int32
}

func (h *host) Log(level int32, message string, attributes []byte) {
	h.lines = append(h.lines, message+" "+string(attributes))
	h.levels = append(h.levels, level)
}

func TestRecordsReachTheHost(t *testing.T) {
	h := &host{}
	abi.Host = h
	t.Cleanup(func() { abi.Host = nil })
	logger := slog.New(New(slog.LevelInfo)).With("order", "o-1")
	logger.Debug("not this one")
	logger.Info("paid", "cents", 500, "took", time.Second, slog.Group("card", "last", "11", slog.Group("", "kind", "x")))
	logger.WithGroup("bank").With("id", 7).WithGroup("").Error("declined", "why", errors.New("no money"), slog.Attr{})
	logger.Log(context.Background(), slog.LevelWarn, "plain")
	want := []string{
		`paid {"order":"o-1","cents":500,"took":"1s","card.last":"11","card.kind":"x"}`,
		`declined {"order":"o-1","bank.id":7,"bank.why":"no money"}`,
		`plain {"order":"o-1"}`,
	}
	if len(h.lines) != len(want) {
		t.Fatalf("%q", h.lines)
	}
	for i := range want {
		if h.lines[i] != want[i] {
			t.Errorf("%s\n%s", h.lines[i], want[i])
		}
	}
	if h.levels[0] != 0 || h.levels[1] != 8 || h.levels[2] != 4 {
		t.Error(h.levels)
	}
}
