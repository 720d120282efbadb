package main

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"decant/units"
)

// printableName is a name that came from outside, fit for a terminal and a log: as
// it is if it prints as itself, and quoted with escapes if it holds control
// characters, text direction marks or broken UTF-8, or could be taken for quoted.
func printableName(name string) string {
	if name == "" || strings.HasPrefix(name, `"`) || escapeControls(name) != name {
		return strconv.Quote(name)
	}
	return name
}

// escapeControls replaces each character that does not print by its Go escape, so
// that a message stays one line and cannot steer the terminal.
func escapeControls(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if (r == utf8.RuneError && size == 1) || !strconv.IsPrint(r) {
			quoted := strconv.Quote(text[i : i+size])
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(text[i : i+size])
		}
		i += size
	}
	return b.String()
}

// arrow stands between a source and its destination.
func (p *program) arrow() string {
	if p.unicode {
		return "→"
	}
	return "->"
}

// isUnicodeLocale says whether the locale that getenv tells of uses UTF-8.
func isUnicodeLocale(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := getenv(name); value != "" {
			value = strings.ToLower(value)
			return strings.Contains(value, "utf-8") || strings.Contains(value, "utf8")
		}
	}
	return false
}

// exactBytes is a size for people with its number of bytes.
func exactBytes(bytes int64) string {
	if bytes < 1024 {
		return units.FormatBytes(bytes)
	}
	return fmt.Sprintf("%s (%d bytes)", units.FormatBytes(bytes), bytes)
}

// percent is the whole percentage that part is of whole; all of nothing is 100.
// It reaches 100 only when part does.
func percent(part, whole float64) int {
	if part >= whole {
		return 100
	}
	return max(0, int(part/whole*100))
}

// longestSeconds is where a duration stops being worth telling.
const longestSeconds = 1000 * 24 * 3600

// formatSeconds writes a duration for people, in whole seconds below an hour and
// in whole minutes above.
func formatSeconds(seconds float64) string {
	if math.IsNaN(seconds) || seconds < 0 {
		return "an unknown time"
	}
	if seconds > longestSeconds {
		return "more than 1000 days"
	}
	d := time.Duration(seconds * float64(time.Second)).Round(time.Second)
	if d < time.Hour {
		return d.String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

// formatElapsed is formatSeconds with tenths where they matter.
func formatElapsed(seconds float64) string {
	if seconds >= 0 && seconds < 10 {
		return fmt.Sprintf("%.1fs", seconds)
	}
	return formatSeconds(seconds)
}

// formatTime writes a point in time in the time zone of the reader.
func formatTime(t time.Time) string {
	return t.Local().Format("2006-01-02 15:04:05 -0700")
}

// marshalAnswer is the JSON form of an answer.
func marshalAnswer(value any) ([]byte, error) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the answer as JSON: %w", err)
	}
	return append(text, '\n'), nil
}
