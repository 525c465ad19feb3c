package table

import (
	"bytes"
	"errors"
	"io"
	"strconv"
)

const (
	// chunkSize is what one read of the source asks for, and one write to the sink gives: a crossing into the host costs
	// microseconds, so a chunk of this size makes it vanish, and a snapshot must keep what is buffered.
	chunkSize = 64 << 10
	// largestRow bounds memory: a quote that is never closed would take the rest of the file into one field.
	largestRow = 1 << 20
)

// Reader reads CSV as RFC 4180 has it, without allocating: a row is a list of ranges in the buffer. It also takes
// what is common and harmless: lines that end in LF alone, a byte order mark, a last line without an end, empty lines
// (skipped), and quotes within or text after a quoted field, as Python's csv module reads them.
type Reader struct {
	input  io.Reader
	ended  bool // the input gave its last byte
	buffer []byte
	start  int // of what is not yet used in buffer
	end    int

	width int // fields in the header

	// The current row.
	number   int // counted from 0, the header
	fields   []textRange
	unclosed bool // the input ended within quotes
}

// textRange is one field: buffer[start:end].
type textRange struct {
	start, end int
	// raw: the range begins at an opening quote and has more to it than the quotes around.
	raw bool
}

// NewReader reads what input gives.
func NewReader(input io.Reader) *Reader {
	return &Reader{input: input, buffer: make([]byte, 2*chunkSize), number: -1}
}

// Header reads the first row.
func (r *Reader) Header() ([]string, error) {
	mark := []byte("\ufeff")
	for r.end < len(mark) && !r.ended {
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	if bytes.HasPrefix(r.buffer[:r.end], mark) {
		r.start = len(mark)
	}
	more, err := r.Next()
	if err != nil {
		return nil, err
	}
	if !more {
		return nil, problem("InvalidCSV", "the CSV is empty: it has no header")
	}
	r.width = len(r.fields)
	names := make([]string, r.width)
	for i := range names {
		names[i] = string(r.field(i))
	}
	return names, nil
}

// field is the text of a field, valid until the next row.
func (r *Reader) field(i int) []byte { return r.buffer[r.fields[i].start:r.fields[i].end] }

// Next goes to the next row that is not an empty line.
func (r *Reader) Next() (more bool, err error) {
	for {
		size, complete := r.scan()
		if !complete {
			if err := r.fill(); err != nil {
				return false, err
			}
			continue
		}
		if size == 0 {
			return false, nil
		}
		first := r.buffer[r.start]
		r.start += size
		if len(r.fields) == 1 && r.fields[0].start == r.fields[0].end && first != '"' {
			continue // an empty line; a line of "" alone is a row
		}
		r.number++
		for i := range r.fields {
			if r.fields[i].raw {
				r.unquote(&r.fields[i])
			}
		}
		return true, nil
	}
}

// fill reads one chunk behind what is not yet used.
func (r *Reader) fill() error {
	if r.start > 0 {
		copy(r.buffer, r.buffer[r.start:r.end])
		r.start, r.end = 0, r.end-r.start
	}
	if r.end > largestRow {
		return problem("InvalidCSV", "row "+strconv.Itoa(r.number+1)+" has over "+strconv.Itoa(largestRow)+
			" bytes: perhaps a quote is not closed")
	}
	if r.end+chunkSize > len(r.buffer) {
		larger := make([]byte, 2*len(r.buffer))
		copy(larger, r.buffer[:r.end])
		r.buffer = larger
	}
	n, err := r.input.Read(r.buffer[r.end : r.end+chunkSize])
	r.end += n
	if errors.Is(err, io.EOF) {
		r.ended, err = true, nil
	}
	return err
}

// scan finds the fields of the row at start, without changing the buffer: a row that is not wholly there is scanned
// again when more is. It returns the row's size with its line end; 0 is the end of the file.
func (r *Reader) scan() (size int, complete bool) {
	text := r.buffer[:r.end]
	fields := r.fields[:0]
	r.unclosed = false
	i := r.start
	if i == len(text) {
		return 0, r.ended
	}
	for {
		field := textRange{start: i}
		if i < len(text) && text[i] == '"' {
			var inside bool
			field, i, inside = scanQuoted(text, i)
			r.unclosed = inside
		}
		for i < len(text) && text[i] != ',' && text[i] != '\n' {
			i++
		}
		if i == len(text) && !r.ended {
			return 0, false
		}
		last := i == len(text) || text[i] == '\n'
		end := i
		if last && end > field.start && text[end-1] == '\r' && !r.unclosed {
			end--
		}
		switch {
		case field.end == 0: // not quoted
			field.end = end
		case field.raw || end > field.end+1: // doubled quotes, or text after the closing one
			field.start, field.end, field.raw = field.start-1, end, true
		}
		fields = append(fields, field)
		if i < len(text) {
			i++
		}
		if last {
			r.fields = fields
			return i - r.start, true
		}
	}
}

// scanQuoted reads the quoted part of a field, from its opening quote. It returns the range between the quotes, raw if
// there are doubled ones in it, where the closing quote's successor is, and whether the text ended before that quote.
func scanQuoted(text []byte, open int) (field textRange, next int, inside bool) {
	field.start = open + 1
	for i := open + 1; ; i++ {
		for i < len(text) && text[i] != '"' {
			i++
		}
		if i >= len(text) {
			field.end = len(text)
			return field, len(text), true
		}
		if i+1 < len(text) && text[i+1] == '"' {
			field.raw = true
			i++
			continue
		}
		field.end = i
		return field, i + 1, false
	}
}

// unquote turns a raw range into its text, in place: doubled quotes become one, the quotes around go, and what follows
// the closing quote is kept as it is.
func (r *Reader) unquote(field *textRange) {
	raw := r.buffer[field.start:field.end]
	n := 0
	for i := 1; i < len(raw); i++ {
		if raw[i] == '"' {
			i++
			if i >= len(raw) || raw[i] != '"' { // the closing one
				n += copy(raw[n:], raw[min(i, len(raw)):])
				break
			}
		}
		raw[n] = raw[i]
		n++
	}
	*field = textRange{start: field.start, end: field.start + n}
}
