package main

import (
	"fmt"
	"io"
	"time"

	"decant/service"
)

// plainPeriod is the time between two lines of plain progress.
const plainPeriod = 5 * time.Second

// plainDisplay writes lines for a log: at the start, at every new phase, every
// plainPeriod and at the end. A phase that comes and goes, such as waiting for
// space, counts as new once in plainPeriod.
type plainDisplay struct {
	out       io.Writer
	arrow     string
	pause     lastPause
	phase     string               // of the last line
	lastLine  time.Time            // of progress
	lastPhase map[string]time.Time // the last line of each phase
}

func newPlainDisplay(out io.Writer, arrow string) *plainDisplay {
	return &plainDisplay{out: out, arrow: arrow, lastPhase: map[string]time.Time{}}
}

func (d *plainDisplay) event(e service.Event) {
	switch e.Event {
	case service.Started:
		writeLine(d.out, startLine(e, d.arrow))
		d.remember(e.Phase)
	case service.Exported:
		writeLine(d.out, exportLine(e))
	case service.Warning:
		writeLine(d.out, "warning: "+escapeControls(e.Message))
	case service.Paused:
		if d.pause.isNews(e.Message) {
			writeLine(d.out, "paused: "+escapeControls(e.Message))
		}
	case service.DoneEvent: // the summary is its line
	case service.StoppedRun, service.FailedEvent:
		d.line(e, string(e.Event))
	default:
		if d.isDue(e.Phase) {
			d.line(e, e.Phase)
		}
	}
}

func (d *plainDisplay) isDue(phase string) bool {
	last := d.lastLine
	if phase != d.phase {
		last = d.lastPhase[phase]
	}
	return time.Since(last) >= plainPeriod
}

func (d *plainDisplay) remember(phase string) {
	d.phase, d.lastLine = phase, time.Now()
	d.lastPhase[phase] = d.lastLine
}

func (d *plainDisplay) line(e service.Event, what string) {
	text := fmt.Sprintf("%s: %d%%, %s", escapeControls(what), positionPercent(e), amounts(e))
	if e.Event == service.Progress || e.Event == service.CommittedTx {
		text += ", " + speed(e)
	}
	if e.BytesDiscarded > 0 {
		text += ", " + freed(e)
	}
	writeLine(d.out, text)
	d.remember(e.Phase)
}

func (d *plainDisplay) note(line string) { writeLine(d.out, line) }
func (d *plainDisplay) close()           {}
