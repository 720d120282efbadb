package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"decant/service"
	"decant/units"
)

// watchLines writes what a watch learns as lines, each with the ID of its migration.
type watchLines struct {
	out   *patientWriter
	arrow string
	known map[string]*watchedLine
	link  *string // nil: nothing was said of it
}

// watchedLine is one migration as it was written of last.
type watchedLine struct {
	status  service.Status
	phase   string // as described
	display *plainDisplay
	buffer  bytes.Buffer
	polled  time.Time
}

func newWatchLines(p *program) *watchLines {
	return &watchLines{out: &patientWriter{to: p.stdout}, arrow: p.arrow(), known: map[string]*watchedLine{}}
}

func (l *watchLines) write(n news) {
	if n.link != nil && (l.link == nil || *n.link != *l.link) {
		if l.link = n.link; *l.link != "" {
			writeLine(l.out, "decant: "+escapeControls(*l.link))
		} else {
			writeLine(l.out, "decant: connected to the service")
		}
	}
	for _, s := range n.list {
		l.status(s)
	}
	if n.event != nil {
		l.event(*n.event)
	}
}

func (l *watchLines) of(id string) *watchedLine {
	k := l.known[id]
	if k == nil {
		k = &watchedLine{}
		k.display = newPlainDisplay(&k.buffer, l.arrow)
		l.known[id] = k
	}
	return k
}

// status writes where a migration stands, if that is another place than before.
func (l *watchLines) status(s service.Status) {
	k := l.of(s.ID)
	k.status = s
	phase := describeStatus(s)
	if s.Reason != "" && s.State != service.StateRunning {
		phase += ": " + escapeControls(s.Reason)
	}
	item := watched{Status: s, event: s.Event}
	isPolled := s.Event != nil && s.Event.BytesData == 0 // from a journal
	switch {
	case phase != k.phase && k.phase == "":
		l.line(s.ID, fmt.Sprintf("%s %s %s: %s, %d%%", printableName(s.Source), l.arrow, printableName(s.Destination), phase, percent(item.progress(), 1)))
	case phase != k.phase:
		l.line(s.ID, phase)
	case isPolled && item.isMoving() && time.Since(k.polled) >= plainPeriod:
		l.line(s.ID, fmt.Sprintf("%s: %d%%, %s copied, %s/s", phase, percent(item.progress(), 1), units.FormatBytes(s.BytesCopied), units.FormatBytes(s.Event.RateBytesPerSecond)))
	default:
		return
	}
	k.phase, k.polled = phase, time.Now()
}

// event writes what the lines of a log would say of it.
func (l *watchLines) event(e service.Event) {
	k := l.of(e.ID)
	k.display.event(e)
	if e.Event == service.DoneEvent {
		k.display.line(e, string(e.Event))
	}
	for line := range strings.Lines(k.buffer.String()) {
		l.line(e.ID, strings.TrimSuffix(line, "\n"))
	}
	k.buffer.Reset()
}

func (l *watchLines) line(id, text string) {
	writeLine(l.out, escapeControls(id)+": "+text)
}

// verdict says whether the one migration that is watched has ended, and how.
func (l *watchLines) verdict(id string) (isOver bool, err error) {
	k := l.known[id]
	if id == "" || k == nil {
		return false, nil
	}
	return watched{Status: k.status}.verdict()
}
