package table

import (
	"io"
	"strconv"
	"unicode/utf8"
)

// Writer gathers NDJSON lines and writes them in chunks.
type Writer struct {
	output io.WriteCloser
	lines  []byte
	wrong  []byte // what is wrong with the current row, as JSON
}

// NewWriter writes to output, which Close closes.
func NewWriter(output io.WriteCloser) *Writer {
	return &Writer{output: output, lines: make([]byte, 0, 2*chunkSize), wrong: make([]byte, 0, 256)}
}

// WriteRow writes the line of the row that rows is at, and tells whether the row is valid.
func (w *Writer) WriteRow(number int, rows *Reader, columns Columns) (valid bool, err error) {
	valid = w.appendRow(number, rows, columns)
	return valid, w.writeFullChunks()
}

// appendRow gathers the line.
func (w *Writer) appendRow(number int, rows *Reader, columns Columns) (valid bool) {
	line := append(w.lines, `{"row":`...)
	line = strconv.AppendInt(line, int64(number), 10)
	w.wrong = w.wrong[:0]
	switch width := rows.width; {
	case rows.unclosed:
		w.addWrong(notClosed)
	case len(rows.fields) != width:
		w.addWrong(strconv.Itoa(len(rows.fields)) + " fields instead of " + strconv.Itoa(width))
	}
	whole := len(w.wrong) == 0 // otherwise no value can be trusted to be in its column
	for i := range columns {
		c := &columns[i]
		line = append(line, c.key...)
		if !whole {
			line = append(line, "null"...)
			continue
		}
		value := rows.field(c.field)
		var wrong string
		if line, wrong = c.appendValue(line, value); wrong != "" {
			line = append(line, "null"...)
			w.addWrongValue(c.name, value, wrong)
		}
	}
	if len(w.wrong) > 0 {
		line = append(line, `,"error":"`...)
		line = append(line, w.wrong...)
		line = append(line, '"')
	}
	w.lines = append(line, "}\n"...)
	return len(w.wrong) == 0
}

// addWrong notes what is wrong with the row as a whole.
func (w *Writer) addWrong(text string) { w.wrong = append(w.wrong, text...) }

// addWrongValue notes what is wrong with a value: amount: 'abc' is not a decimal.
func (w *Writer) addWrongValue(name string, value []byte, wrong string) {
	if len(w.wrong) > 0 {
		w.wrong = append(w.wrong, errorsBetween...)
	}
	w.wrong = appendString(w.wrong, []byte(name))
	w.wrong = append(w.wrong, ": '"...)
	w.wrong = appendString(w.wrong, value)
	w.wrong = append(w.wrong, '\'')
	w.wrong = append(w.wrong, wrong...)
}

// writeFullChunks writes as many whole chunks as there are.
func (w *Writer) writeFullChunks() error {
	for len(w.lines) >= chunkSize {
		if _, err := w.output.Write(w.lines[:chunkSize]); err != nil {
			return err
		}
		w.lines = w.lines[:copy(w.lines, w.lines[chunkSize:])]
	}
	return nil
}

// Close writes the rest and closes the output.
func (w *Writer) Close() error {
	if _, err := w.output.Write(w.lines); err != nil {
		return err
	}
	return w.output.Close()
}

const hexadecimal = "0123456789abcdef"

// appendString appends text as the inside of a JSON string. Bytes that are not UTF-8 become U+FFFD, which only the text
// of an error can meet: see validText.
func appendString(line, text []byte) []byte {
	plain := 0 // text[plain:i] needs no escape and is not yet appended
	for i := 0; i < len(text); {
		b := text[i]
		if b < utf8.RuneSelf {
			i++
			if b >= ' ' && b != '"' && b != '\\' {
				continue
			}
			line = append(line, text[plain:i-1]...)
			plain = i
			switch b {
			case '"', '\\':
				line = append(line, '\\', b)
			case '\n':
				line = append(line, '\\', 'n')
			case '\r':
				line = append(line, '\\', 'r')
			case '\t':
				line = append(line, '\\', 't')
			default:
				line = append(line, '\\', 'u', '0', '0', hexadecimal[b>>4], hexadecimal[b&15])
			}
			continue
		}
		r, size := utf8.DecodeRune(text[i:])
		i += size
		if r == utf8.RuneError && size == 1 {
			line = append(line, text[plain:i-1]...)
			line = append(line, string(utf8.RuneError)...)
			plain = i
		}
	}
	return append(line, text[plain:]...)
}

// validText tells whether text is UTF-8; nearly all is ASCII, which needs no decoding.
func validText(text []byte) bool {
	for i, b := range text {
		if b >= utf8.RuneSelf {
			return utf8.Valid(text[i:])
		}
	}
	return true
}
