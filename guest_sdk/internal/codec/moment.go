package codec

import "time"

// Times are written and read here and not by package time, whose layouts are a fifth of a small guest.

// appendMoment appends t as RFC 3339 has it, with as many digits of the second as it needs. Its year is 0 to 9999.
func appendMoment(b []byte, t time.Time) []byte {
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	b = digits(b, year, 4)
	b = digits(append(b, '-'), int(month), 2)
	b = digits(append(b, '-'), day, 2)
	b = digits(append(b, 'T'), hour, 2)
	b = digits(append(b, ':'), minute, 2)
	b = digits(append(b, ':'), second, 2)
	if fraction := t.Nanosecond(); fraction > 0 {
		b = digits(append(b, '.'), fraction, 9)
		for b[len(b)-1] == '0' {
			b = b[:len(b)-1]
		}
	}
	_, offset := t.Zone()
	if offset == 0 {
		return append(b, 'Z')
	}
	sign := byte('+')
	if offset < 0 {
		sign, offset = '-', -offset
	}
	b = digits(append(b, sign), offset/3600, 2)
	return digits(append(b, ':'), offset/60%60, 2)
}

func digits(b []byte, n, width int) []byte {
	at := len(b)
	for range width {
		b = append(b, '0')
	}
	for i := at + width - 1; i >= at; i-- {
		b[i] = '0' + byte(n%10)
		n /= 10
	}
	return b
}

// readMoment reads what RFC 3339 has for a time.
func readMoment(s string) (time.Time, bool) {
	r := reading{s, true}
	year := r.number(4, 0, 9999)
	r.letter("-")
	month := r.number(2, 1, 12)
	r.letter("-")
	day := r.number(2, 1, 31)
	r.letter("Tt ")
	hour := r.number(2, 0, 23)
	r.letter(":")
	minute := r.number(2, 0, 59)
	r.letter(":")
	second := r.number(2, 0, 59)
	nanosecond := r.fraction()
	zone, offset := time.UTC, 0
	if sign := r.letter("Zz+-"); sign == '+' || sign == '-' {
		offset = r.number(2, 0, 23) * 3600
		r.letter(":")
		offset += r.number(2, 0, 59) * 60
		if sign == '-' {
			offset = -offset
		}
		zone = time.FixedZone("", offset)
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, nanosecond, zone)
	return t, r.good && r.rest == "" && t.Day() == day // no 30th of February
}

type reading struct {
	rest string
	good bool
}

func (r *reading) letter(wanted string) byte {
	if r.rest != "" {
		for i := range len(wanted) {
			if c := r.rest[0]; c == wanted[i] {
				r.rest = r.rest[1:]
				return c
			}
		}
	}
	r.good = false
	return 0
}

func (r *reading) number(width, least, most int) int {
	n := 0
	if len(r.rest) < width {
		r.good, r.rest = false, ""
		return least
	}
	for i := range width {
		c := r.rest[i]
		if c < '0' || c > '9' {
			r.good = false
		}
		n = 10*n + int(c-'0')
	}
	r.rest = r.rest[width:]
	if n < least || n > most {
		r.good = false
		return least
	}
	return n
}

func (r *reading) fraction() int {
	if r.rest == "" || r.rest[0] != '.' {
		return 0
	}
	r.rest = r.rest[1:]
	nanosecond, unit, read := 0, 100_000_000, 0
	for r.rest != "" && r.rest[0] >= '0' && r.rest[0] <= '9' {
		nanosecond += int(r.rest[0]-'0') * unit
		unit /= 10
		r.rest = r.rest[1:]
		read++
	}
	if read == 0 {
		r.good = false
	}
	return nanosecond
}
