package main

import (
	"math"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// fault 89: names with control characters
func TestPrintableName(t *testing.T) {
	tests := []struct{ name, want string }{
		{"/images/a.raw", "/images/a.raw"},
		{"/images/with space.raw", "/images/with space.raw"},
		{"/images/größe-日本.raw", "/images/größe-日本.raw"},
		{`/images/back\slash`, `/images/back\slash`},
		{"", `""`},
		{`"quoted"`, `"\"quoted\""`},
		{"/a\nb", `"/a\nb"`},
		{"/a\x1b]0;title\x07", `"/a\x1b]0;title\a"`},
		{"/a\u009b2J", `"/a\u009b2J"`},
		{"/a\u202egnp.exe", `"/a\u202egnp.exe"`},
		{"/a\xff", `"/a\xff"`},
		{"/a\x7f", `"/a\x7f"`},
	}
	for _, test := range tests {
		if got := printableName(test.name); got != test.want {
			t.Errorf("printableName(%q) = %s, want %s", test.name, got, test.want)
		}
	}
}

func TestPrintableNameLosesNothingAndPrints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "name")
		got := printableName(name)
		if strings.ContainsFunc(got, func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Fatalf("%q does not print", got)
		}
		back := got
		if strings.HasPrefix(got, `"`) {
			var err error
			if back, err = strconv.Unquote(got); err != nil {
				t.Fatal(err)
			}
		}
		if back != name {
			t.Fatalf("%q came back as %q", name, back)
		}
	})
}

func TestFormatSeconds(t *testing.T) {
	tests := []struct {
		seconds float64
		want    string
	}{
		{0, "0s"},
		{0.4, "0s"},
		{59.6, "1m0s"},
		{75, "1m15s"},
		{3 * 3600, "3h0m"},
		{49*3600 + 29, "49h0m"},
		{49*3600 + 31, "49h1m"},
		{1e18, "more than 1000 days"},
		{math.Inf(1), "more than 1000 days"},
		{math.NaN(), "an unknown time"},
		{-1, "an unknown time"},
	}
	for _, test := range tests {
		if got := formatSeconds(test.seconds); got != test.want {
			t.Errorf("formatSeconds(%v) = %s, want %s", test.seconds, got, test.want)
		}
	}
}

func TestFormatElapsedTellsTenthsOfShortTimes(t *testing.T) {
	for seconds, want := range map[float64]string{0.04: "0.0s", 0.37: "0.4s", 9.94: "9.9s", 10.2: "10s", 75: "1m15s"} {
		if got := formatElapsed(seconds); got != want {
			t.Errorf("formatElapsed(%v) = %s, want %s", seconds, got, want)
		}
	}
}

func TestPercentReachesHundredOnlyAtTheEnd(t *testing.T) {
	tests := []struct {
		part, whole float64
		want        int
	}{{0, 0, 100}, {0, 10, 0}, {999, 1000, 99}, {1000, 1000, 100}, {2000, 1000, 100}, {-1, 10, 0}, {math.MaxInt64 / 2, math.MaxInt64, 50}}
	for _, test := range tests {
		if got := percent(test.part, test.whole); got != test.want {
			t.Errorf("percent(%v, %v) = %d, want %d", test.part, test.whole, got, test.want)
		}
	}
}

func TestLocale(t *testing.T) {
	tests := []struct {
		environment map[string]string
		want        bool
	}{
		{map[string]string{}, false},
		{map[string]string{"LANG": "de_DE.UTF-8"}, true},
		{map[string]string{"LANG": "C.utf8"}, true},
		{map[string]string{"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, false},
		{map[string]string{"LANG": "C", "LC_CTYPE": "en_US.UTF-8"}, true},
		{map[string]string{"LANG": "de_DE.ISO-8859-1"}, false},
	}
	for _, test := range tests {
		if got := isUnicodeLocale(func(name string) string { return test.environment[name] }); got != test.want {
			t.Errorf("%v: %v", test.environment, got)
		}
	}
}
