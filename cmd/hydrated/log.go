package main

import (
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
)

// mostLogLines may wait for a log that takes nothing; those after them are lost.
const mostLogLines = 1024

// patientWriter writes to a log in a goroutine of its own: one that takes nothing, as a
// full disk or a hung pipe, must not hold up a commit.
type patientWriter struct {
	to    io.Writer
	lines chan []byte
	ended chan struct{}

	mu   sync.Mutex
	lost int
}

func newPatientWriter(to io.Writer) *patientWriter {
	w := &patientWriter{to: to, lines: make(chan []byte, mostLogLines), ended: make(chan struct{})}
	go w.write()
	return w
}

// Write takes one line, and never waits.
func (w *patientWriter) Write(line []byte) (int, error) {
	select {
	case w.lines <- append([]byte(nil), line...):
	default:
		w.mu.Lock()
		w.lost++
		w.mu.Unlock()
	}
	return len(line), nil
}

func (w *patientWriter) write() {
	defer close(w.ended)
	for line := range w.lines {
		_, _ = w.to.Write(line) // a log that takes nothing cannot be told of that
		w.mu.Lock()
		lost := w.lost
		w.lost = 0
		w.mu.Unlock()
		if lost > 0 {
			_, _ = w.to.Write([]byte("level=WARN msg=\"lines of the log were lost\" lines=" + strconv.Itoa(lost) + "\n"))
		}
	}
}

// close writes what waits. Nothing may be written after it.
func (w *patientWriter) close() {
	close(w.lines)
	<-w.ended
}

// newLogger logs lines of key=value. Where the journal of systemd reads them it adds the
// time itself.
func newLogger(to io.Writer, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(to, o))
}
