// Package slogger lets log/slog write to the worker's log. It is a package of its own because slog makes a guest larger.
//
//	logger := slog.New(slogger.New(slog.LevelInfo))
//	logger.Info("paid", "cents", 500)
package slogger

import (
	"context"
	"log/slog"
	"time"

	"wasman.dev/guest"
)

// Handler hands records on to wasman.Log: the message, and its attributes by their names, those of groups as
// "group.name". Time is the host's.
type Handler struct {
	level  slog.Leveler
	prefix string
	given  []any
}

// New is a handler of records of at least this level.
func New(level slog.Leveler) *Handler { return &Handler{level: level} }

// Enabled says whether a level is enough.
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

// Handle writes one record.
func (h *Handler) Handle(_ context.Context, record slog.Record) error {
	attributes := append([]any(nil), h.given...)
	record.Attrs(func(attribute slog.Attr) bool {
		attributes = appended(attributes, h.prefix, attribute)
		return true
	})
	wasman.Log(wasman.Level(record.Level), record.Message, attributes...)
	return nil
}

// WithAttrs is the handler with more attributes in every record.
func (h *Handler) WithAttrs(attributes []slog.Attr) slog.Handler {
	more := *h
	more.given = append([]any(nil), h.given...)
	for _, attribute := range attributes {
		more.given = appended(more.given, h.prefix, attribute)
	}
	return &more
}

// WithGroup is the handler with a group around what comes.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	more := *h
	more.prefix += name + "."
	return &more
}

func appended(to []any, prefix string, attribute slog.Attr) []any {
	value := attribute.Value.Resolve()
	switch {
	case value.Kind() == slog.KindGroup:
		if attribute.Key != "" {
			prefix += attribute.Key + "."
		}
		for _, inner := range value.Group() {
			to = appended(to, prefix, inner)
		}
		return to
	case attribute.Equal(slog.Attr{}):
		return to
	}
	shown := value.Any()
	if d, ok := shown.(time.Duration); ok {
		shown = d.String()
	}
	return append(to, prefix+attribute.Key, shown)
}
