package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"

	"decant/service"
)

// barPeriod is the shortest time between two drawings of the bar.
const barPeriod = 100 * time.Millisecond

const (
	narrowestBar = 10 // cells; below it, words give way first
	widestBar    = 60
	// barFrame is what stands around the cells: the percentage, the two ends of
	// the bar, and the spaces.
	barFrame = len(" 100% || ")
	// eraseLine goes to the start of the line and deletes it.
	eraseLine = "\r\x1b[K"
)

// barDisplay keeps the last line of a terminal.
type barDisplay struct {
	out       io.Writer
	columns   func() int
	unicode   bool
	arrow     string
	last      service.Event
	phase     string
	pause     lastPause
	lastDrawn time.Time
	drawn     bool // the line holds the bar
}

func (d *barDisplay) event(e service.Event) {
	d.last = e
	switch e.Event {
	case service.Started:
		d.note(startLine(e, d.arrow))
	case service.Exported:
		d.note(exportLine(e))
	case service.Warning:
		d.note("warning: " + escapeControls(e.Message))
	case service.Paused:
		if d.pause.isNews(e.Message) {
			d.note("paused: " + escapeControls(e.Message))
		}
	case service.DoneEvent, service.StoppedRun, service.FailedEvent:
		d.draw()
	default:
		if e.Phase != d.phase || time.Since(d.lastDrawn) >= barPeriod {
			d.draw()
		}
	}
}

// note writes a line above the bar.
func (d *barDisplay) note(line string) {
	if d.drawn {
		_, _ = io.WriteString(d.out, eraseLine) // a patientWriter
	}
	writeLine(d.out, line)
	d.drawn = false
	if d.last.Event != "" {
		d.draw()
	}
}

func (d *barDisplay) draw() {
	// Erased behind the text, not before it, so that it does not flicker.
	_, _ = io.WriteString(d.out, "\r"+d.line(d.last, d.columns())+"\x1b[K") // a patientWriter
	d.phase, d.lastDrawn, d.drawn = d.last.Phase, time.Now(), true
}

func (d *barDisplay) close() {
	if d.drawn {
		writeLine(d.out, "")
	}
	d.drawn = false
}

// line is the bar with as many words behind it as fit into one line of a terminal.
// The last column stays free: writing there moves some terminals to the next line.
func (d *barDisplay) line(e service.Event, columns int) string {
	room := columns - 1
	words := barWords(e, room-barFrame-narrowestBar)
	cells := min(widestBar, room-barFrame-utf8.RuneCountInString(words))
	if cells < 3 {
		text := fmt.Sprintf("%d%%", positionPercent(e))
		return text[:max(0, min(len(text), room))]
	}
	current, total := position(e)
	return drawBar(current, total, cells, words, d.unicode)
}

// barWords is what is most worth knowing in at most this many columns.
func barWords(e service.Event, columns int) string {
	phase, rate, space := escapeControls(e.Phase), "", ""
	switch e.Event {
	case service.DoneEvent, service.StoppedRun, service.FailedEvent:
		phase = string(e.Event)
	case service.Progress, service.CommittedTx:
		rate = speed(e)
	}
	if e.BytesDiscarded > 0 {
		space = freed(e)
	}
	for _, words := range []string{
		joinParts(phase, amounts(e), rate, space),
		joinParts(phase, amounts(e), rate),
		joinParts(phase, rate),
		rate,
		phase,
	} {
		if utf8.RuneCountInString(words) <= columns {
			return words
		}
	}
	return ""
}

// drawBar draws one state of a bar. A new progressbar is made for each drawing: its
// own rate and time left would count what an earlier run copied as new, and it
// draws no more once it was full, which is too early where a phase follows.
func drawBar(current, total int64, cells int, words string, unicode bool) string {
	if total <= 0 {
		current, total = 1, 1 // nothing to copy: all is done
	}
	theme := progressbar.ThemeASCII
	if unicode {
		theme = progressbar.ThemeDefault
	}
	bar := progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(io.Discard),
		progressbar.OptionSetWidth(cells),
		progressbar.OptionSetTheme(theme),
		progressbar.OptionSetDescription(words),
		progressbar.OptionShowDescriptionAtLineEnd(),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionSetElapsedTime(false),
	)
	// Neither fails with a total above 0, a position below it and a writer
	// that discards.
	_ = bar.Set64(current)
	_ = bar.RenderBlank()
	line := strings.TrimRight(strings.Trim(bar.String(), "\r"), " ")
	return strings.Replace(line, "  "+words, " "+words, 1)
}
