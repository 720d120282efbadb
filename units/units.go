// Package units reads and writes sizes and rates the way people do. Units are
// powers of 1024: K, KiB, M, MiB and so on mean the same as in lvm2 and qemu-img.
package units

import (
	"fmt"
	"math"
	"math/big"
	"strings"

	"github.com/dustin/go-humanize"
)

// maxInputBytes bounds what is parsed. No sensible size is longer, and a long run
// of digits would otherwise cost memory.
const maxInputBytes = 64

// shifts maps a unit in lower case to the power of two that it stands for.
var shifts = map[string]uint{
	"b": 0,
	"k": 10, "kib": 10,
	"m": 20, "mib": 20,
	"g": 30, "gib": 30,
	"t": 40, "tib": 40,
	"p": 50, "pib": 50,
	"e": 60, "eib": 60,
}

// ParseBytes reads a size such as 1234, 512B, 64K, 64KiB, "64 KiB" or 1.5G, in
// either case, and returns it in bytes. A fraction of a byte is dropped; a
// fraction without a unit is refused. So are signs, exponents, sizes above
// 2^63-1, and the decimal-looking KB, MB and so on, which mean 1000 to some
// people and 1024 to others.
func ParseBytes(s string) (int64, error) {
	bytes, err := parse(s)
	if err != nil {
		return 0, fmt.Errorf("size %q: %w", clip(s), err)
	}
	return bytes, nil
}

// ParseRate reads a rate such as 50MiB/s or 50M and returns it in bytes per
// second. "0" and "unlimited" are 0, which stands for no limit.
func ParseRate(s string) (int64, error) {
	if s == "unlimited" {
		return 0, nil
	}
	bytes, err := parse(strings.TrimSuffix(s, "/s"))
	if err != nil {
		return 0, fmt.Errorf("rate %q: %w", clip(s), err)
	}
	if bytes == 0 && strings.ContainsAny(s, "123456789") {
		return 0, fmt.Errorf("rate %q: less than 1 byte a second; write 0 or unlimited for no limit", clip(s))
	}
	return bytes, nil
}

// FormatBytes writes a size for people, rounded to two or three digits: "1.5 GiB".
func FormatBytes(bytes int64) string {
	if bytes < 0 {
		// The detour keeps the smallest int64, which has no positive twin.
		return "-" + humanize.IBytes(uint64(-(bytes+1))+1)
	}
	return humanize.IBytes(uint64(bytes))
}

func parse(s string) (int64, error) {
	if len(s) > maxInputBytes {
		return 0, fmt.Errorf("longer than %d characters", maxInputBytes)
	}
	number, unit := split(s)
	if !isDecimal(number) {
		return 0, fmt.Errorf("not a number with an optional unit; write for example 1234, 64KiB or 1.5G")
	}
	shift, known := shifts[strings.ToLower(unit)]
	if unit != "" && !known {
		return 0, fmt.Errorf("unknown unit %q; the units are K, M, G, T, P, E, or KiB, MiB, GiB, TiB, PiB, EiB, all powers of 1024", unit)
	}
	if unit == "" && strings.Contains(number, ".") {
		return 0, fmt.Errorf("a fraction needs a unit, for example 1.5G")
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("not a decimal number")
	}
	value.Mul(value, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), shift)))
	whole := new(big.Int).Quo(value.Num(), value.Denom())
	if !whole.IsInt64() {
		return 0, fmt.Errorf("larger than %d bytes", int64(math.MaxInt64))
	}
	return whole.Int64(), nil
}

// split cuts the leading digits and dots from the unit behind them. One space may
// stand between the two.
func split(s string) (number, unit string) {
	end := strings.IndexFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end < 0 {
		return s, ""
	}
	number, unit = s[:end], s[end:]
	if len(unit) > 1 {
		unit = strings.TrimPrefix(unit, " ")
	}
	return number, unit
}

// isDecimal says whether s is digits, or digits, a dot and digits.
func isDecimal(s string) bool {
	whole, fraction, dotted := strings.Cut(s, ".")
	return isDigits(whole) && (!dotted || isDigits(fraction))
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// clip keeps a hostile argument from filling the screen.
func clip(s string) string {
	if len(s) > maxInputBytes {
		return s[:maxInputBytes] + "..."
	}
	return s
}
