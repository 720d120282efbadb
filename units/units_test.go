package units_test

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"decant/units"
)

func TestParseBytesReadsWhatPeopleWrite(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1234": 1234, "512B": 512, "64K": 64 << 10, "64k": 64 << 10, "64KiB": 64 << 10, "64 KiB": 64 << 10,
		"1GiB": 1 << 30, "1gib": 1 << 30, "1.5G": 3 << 29, "0.5K": 512, "2T": 2 << 40, "1P": 1 << 50, "7E": 7 << 60,
		"1.1K":                1126, // 1126.4, the fraction of a byte is dropped
		"9223372036854775807": math.MaxInt64,
		"007":                 7,
	} {
		if got, err := units.ParseBytes(in); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
}

// fault 91: negative, huge and odd sizes.
func TestParseBytesRefusesTheRest(t *testing.T) {
	for _, in := range []string{
		"", " ", "-1", "+1", "1 ", " 1", "1  K", "1e3", "1e308", "NaN", "Inf", "0x10", "1_000", "1,5G", "1.", ".5G", "1.2.3K",
		"1.5", "1KB", "1MB", "1kb", "1Ki", "1X", "K", "KiB", "1K/s", "1K\x00", "9223372036854775808", "8E", "99999999999T",
		"١", strings.Repeat("1", 65), "1" + strings.Repeat("0", 60) + "E",
	} {
		if got, err := units.ParseBytes(in); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", in, got)
		}
	}
}

func TestParseRate(t *testing.T) {
	for in, want := range map[string]int64{
		"50MiB/s": 50 << 20, "50M": 50 << 20, "50 MiB/s": 50 << 20, "1000": 1000, "0": 0, "0/s": 0, "unlimited": 0,
	} {
		if got, err := units.ParseRate(in); err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "/s", "-1", "50MB/s", "50M/m", "50M/s/s", "fast", "0.0001K", "Unlimited"} {
		if got, err := units.ParseRate(in); err == nil {
			t.Errorf("ParseRate(%q) = %d, want an error", in, got)
		}
	}
}

func TestFormatBytes(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1 << 10: "1.0 KiB", 3 << 29: "1.5 GiB", -2 << 20: "-2.0 MiB", math.MinInt64: "-8.0 EiB",
	} {
		if got := units.FormatBytes(in); got != want {
			t.Errorf("FormatBytes(%d) = %q, want %q", in, got, want)
		}
	}
}

func TestParseBytesReadsFormatBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bytes := rapid.Int64Range(0, 1<<62).Draw(t, "bytes")
		text := units.FormatBytes(bytes)
		got, err := units.ParseBytes(text)
		if err != nil {
			t.Fatal(err)
		}
		// Two digits are kept, so the error is at most one part in twenty.
		if diff := got - bytes; diff > bytes/19+1 || -diff > bytes/19+1 {
			t.Fatalf("%d is written %q, which reads as %d", bytes, text, got)
		}
	})
}

func FuzzParseBytes(f *testing.F) {
	for _, seed := range []string{"1234", "64KiB", "1.5G", "-1", "1e9", "NaN", "8E", " 1", "1KB"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		bytes, err := units.ParseBytes(s)
		if err != nil {
			return
		}
		if bytes < 0 {
			t.Fatalf("ParseBytes(%q) = %d", s, bytes)
		}
		if strings.ContainsAny(s, "+-_,\x00\n") {
			t.Fatalf("ParseBytes(%q) accepted junk", s)
		}
	})
}

func FuzzParseRate(f *testing.F) {
	for _, seed := range []string{"50MiB/s", "50M", "0", "unlimited", "/s", "-1/s"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if rate, err := units.ParseRate(s); err == nil && rate < 0 {
			t.Fatalf("ParseRate(%q) = %d", s, rate)
		}
	})
}
