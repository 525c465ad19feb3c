package table

import (
	"math"
	"math/bits"
	"strconv"
)

const (
	decimalDigits  = 6         // after the point
	micro          = 1_000_000 // 10 to the power of that
	largestDecimal = 1_000_000_000_000
)

// parseInteger reads a signed 64-bit integer: digits, with a sign or without.
func parseInteger(text []byte) (number int64, wrong string) {
	digits, negative := unsigned(text)
	if len(digits) == 0 {
		return 0, notInteger
	}
	var magnitude uint64
	overflow := false
	for _, b := range digits {
		if b < '0' || b > '9' {
			return 0, notInteger
		}
		if magnitude > math.MaxUint64/10-1 {
			overflow = true
		} else {
			magnitude = 10*magnitude + uint64(b-'0')
		}
	}
	switch {
	case overflow, magnitude > 1<<63, magnitude == 1<<63 && !negative:
		return 0, outOfRange
	case negative:
		return -int64(magnitude), ""
	}
	return int64(magnitude), ""
}

// parseDecimal reads a decimal of at most 12 digits before the point and 6 behind it, as millionths: digits, with a sign
// or without, and if there is a point, digits on both sides of it.
func parseDecimal(text []byte) (micros int64, wrong string) {
	digits, negative := unsigned(text)
	whole, i, large := int64(0), 0, false
	for ; i < len(digits) && isDigit(digits[i]); i++ {
		if whole = 10*whole + int64(digits[i]-'0'); whole >= largestDecimal {
			whole, large = 0, true
		}
	}
	if i == 0 {
		return 0, notDecimal
	}
	fraction, count := int64(0), 0
	if i < len(digits) {
		if digits[i] != '.' || i+1 == len(digits) {
			return 0, notDecimal
		}
		for _, b := range digits[i+1:] {
			if !isDigit(b) {
				return 0, notDecimal
			}
			if count++; count <= decimalDigits {
				fraction = 10*fraction + int64(b-'0')
			}
		}
	}
	switch {
	case count > decimalDigits:
		return 0, tooPrecise
	case large:
		return 0, outOfRange
	}
	for ; count < decimalDigits; count++ {
		fraction *= 10
	}
	micros = whole*micro + fraction
	if negative {
		micros = -micros
	}
	return micros, ""
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }

// unsigned takes the sign off.
func unsigned(text []byte) (digits []byte, negative bool) {
	if len(text) > 0 && (text[0] == '-' || text[0] == '+') {
		return text[1:], text[0] == '-'
	}
	return text, false
}

// appendDecimal writes millionths as a JSON number in its shortest form: 12.5, -0.000001, 7.
func appendDecimal(line []byte, micros int64) []byte {
	magnitude := uint64(micros)
	if micros < 0 {
		line, magnitude = append(line, '-'), -magnitude
	}
	line = strconv.AppendUint(line, magnitude/micro, 10)
	fraction := magnitude % micro
	if fraction == 0 {
		return line
	}
	line = append(line, '.')
	for unit := uint64(micro / 10); fraction > 0; unit /= 10 {
		line = append(line, '0'+byte(fraction/unit))
		fraction %= unit
	}
	return line
}

// exactSum is a sum of 64-bit numbers in 128 bits, two's complement: no file is long enough to overflow it.
type exactSum struct {
	high int64
	low  uint64
}

func (s *exactSum) add(number int64) {
	s.addSum(exactSum{number >> 63, uint64(number)})
}

func (s *exactSum) addSum(other exactSum) {
	low, carry := bits.Add64(s.low, other.low, 0)
	s.low = low
	s.high += other.high + int64(carry)
}

// text writes the sum as a decimal with scale digits after the point, in its shortest form.
func (s exactSum) text(scale int) string {
	high, low := uint64(s.high), s.low
	if s.high < 0 {
		var borrow uint64
		low, borrow = bits.Sub64(0, low, 0)
		high, _ = bits.Sub64(0, high, borrow)
	}
	var digits [41]byte // from the last one: 39 digits, the point and the sign
	n := len(digits)
	for written := 0; written <= scale || high|low != 0; written++ {
		if written == scale && scale > 0 && n < len(digits) {
			n--
			digits[n] = '.'
		}
		rest := high % 10
		high /= 10
		low, rest = bits.Div64(rest, low, 10)
		if rest == 0 && written < scale && n == len(digits) {
			continue // a zero at the end of the fraction
		}
		n--
		digits[n] = '0' + byte(rest)
	}
	if s.high < 0 {
		n--
		digits[n] = '-'
	}
	return string(digits[n:])
}
