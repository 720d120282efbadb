package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"decant/service"
	"decant/units"
)

// display shows the events of one run in one form. Its methods are not called
// concurrently.
type display interface {
	event(service.Event)
	note(line string) // for a person, between two events
	close()           // nothing comes after it
}

// report passes the events of one run to its display. Its methods may be called
// concurrently.
type report struct {
	program *program
	form    progressForm

	mu      sync.Mutex
	display display
	started service.Event
	done    *service.Event
}

func (p *program) newReport(form progressForm) *report {
	if form == progressAuto || form == progressBar {
		form = progressPlain
		if p.stderrColumns() > 0 {
			form = progressBar
		}
	}
	r := &report{program: p, form: form}
	people := &patientWriter{to: p.stderr}
	switch form {
	case progressBar:
		r.display = &barDisplay{out: people, columns: p.stderrColumns, unicode: p.unicode, arrow: p.arrow()}
	case progressJSON:
		r.display = newJSONDisplay(&patientWriter{to: p.stdout}, people)
	case progressNone:
		r.display = silentDisplay{people}
	default:
		r.display = newPlainDisplay(people, p.arrow())
	}
	return r
}

// event is the service.Sink of the run.
func (r *report) event(e service.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Event {
	case service.Started:
		r.started = e
	case service.DoneEvent:
		r.done = &e
	}
	r.display.event(e)
}

func (r *report) note(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.display.note(line)
}

// close leaves the terminal fit for other text.
func (r *report) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.display.close()
}

// end closes the display, and sums up a migration that has ended well.
func (r *report) end(err error) {
	r.close()
	if err != nil || r.done == nil || r.form == progressJSON {
		return
	}
	// The migration is done, whether anybody reads this or not.
	_, _ = fmt.Fprintln(r.program.stderr, r.summary())
}

func (r *report) summary() string {
	e := *r.done
	text := "done: "
	if r.started.Source != "" {
		text += printableName(r.started.Source) + " " + r.program.arrow() + " " + printableName(r.started.Destination) + ": "
	}
	text += units.FormatBytes(e.BytesCopied) + " copied"
	if e.ElapsedSeconds != nil {
		text += " in " + formatElapsed(*e.ElapsedSeconds)
	}
	if e.BytesVerified > 0 {
		text += ", " + units.FormatBytes(e.BytesVerified) + " verified"
	}
	if e.SourceFreedBytes != nil && (*e.SourceFreedBytes > 0 || e.BytesDiscarded > 0) {
		text += ", " + units.FormatBytes(*e.SourceFreedBytes) + " freed"
	}
	return text + ", at most " + units.FormatBytes(e.PeakExtraBytes) + " of extra space taken"
}

// silentDisplay is --progress=none: it shows no events.
type silentDisplay struct{ out io.Writer }

func (d silentDisplay) event(service.Event) {}
func (d silentDisplay) note(line string)    { writeLine(d.out, line) }
func (d silentDisplay) close()              {}

// patientWriter writes until that fails and from then on drops everything: a
// migration goes on without anybody who watches.
type patientWriter struct {
	to   io.Writer
	gone bool
}

func (w *patientWriter) Write(text []byte) (int, error) {
	if !w.gone {
		_, err := w.to.Write(text)
		w.gone = err != nil
	}
	return len(text), nil
}

// writeLine writes to a patientWriter, which returns no error.
func writeLine(to io.Writer, line string) {
	_, _ = io.WriteString(to, line+"\n")
}

// pauseReminder is the time after which a pause with the same reason is told again.
const pauseReminder = time.Minute

// lastPause keeps the pauses of a full pool, which may come with every transaction,
// from filling the screen.
type lastPause struct {
	message string
	told    time.Time
}

// isNews says whether people should be told of a pause now.
func (l *lastPause) isNews(message string) bool {
	if message == l.message && time.Since(l.told) < pauseReminder {
		return false
	}
	l.message, l.told = message, time.Now()
	return true
}

// position is how far a run has come, in bytes. A verification of what was copied
// before has a way of its own to go.
func position(e service.Event) (current, total int64) {
	current, total = e.BytesCopied, e.BytesData
	if e.Phase == "verifying" {
		current = e.BytesVerified
	}
	return max(0, min(current, total)), total
}

// positionPercent is position as a whole percentage.
func positionPercent(e service.Event) int {
	current, total := position(e)
	return percent(float64(current), float64(total))
}

// startLine says what begins, for people.
func startLine(e service.Event, arrow string) string {
	if e.Source == "" { // it has no two ends: a verification
		return fmt.Sprintf("%s %s: %s", escapeControls(e.Phase), escapeControls(e.ID), units.FormatBytes(e.BytesData))
	}
	ends := fmt.Sprintf("%s %s %s", printableName(e.Source), arrow, printableName(e.Destination))
	size := fmt.Sprintf("%s of %s to copy", units.FormatBytes(e.BytesData), units.FormatBytes(e.BytesTotal))
	if e.Resumed {
		return fmt.Sprintf("resuming %s: %s, %s, %s done", escapeControls(e.ID), ends, size, units.FormatBytes(e.BytesCopied))
	}
	return fmt.Sprintf("starting %s: %s, %s", escapeControls(e.ID), ends, size)
}

// exportLine says how the volume can be used.
func exportLine(e service.Event) string {
	if e.Device != "" {
		return "usable as " + escapeControls(e.Device)
	}
	return "exported at " + escapeControls(e.Export)
}

// amounts, speed and freed are the parts of a line of progress.
func amounts(e service.Event) string {
	current, total := position(e)
	return units.FormatBytes(current) + " of " + units.FormatBytes(total)
}

func speed(e service.Event) string {
	text := units.FormatBytes(e.RateBytesPerSecond) + "/s"
	if e.ETASeconds != nil {
		text += ", " + formatSeconds(*e.ETASeconds) + " left"
	}
	return text
}

func freed(e service.Event) string {
	return units.FormatBytes(e.BytesDiscarded) + " freed"
}

// joinParts joins those of the parts that are not empty.
func joinParts(parts ...string) string {
	kept := parts[:0]
	for _, part := range parts {
		if part != "" {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, ", ")
}
