package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"decant/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stuck is a log that takes nothing until it is released.
type stuck struct {
	release chan struct{}
	mu      sync.Mutex
	text    bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

// fault 97: a log that takes nothing holds nobody up, and what is lost is said.
func TestFault97LogThatTakesNothing(t *testing.T) {
	to := &stuck{release: make(chan struct{})}
	lines := newPatientWriter(to)
	log := newLogger(lines, slog.LevelInfo)
	for i := range 3 * mostLogLines {
		log.Info("a line", "number", i)
	}
	close(to.release)
	lines.close()
	text := to.text.String()
	if !strings.Contains(text, "lines of the log were lost") || !strings.Contains(text, "number=0") {
		t.Errorf("%.300s", text)
	}
	if n := strings.Count(text, "a line"); n < mostLogLines || n > mostLogLines+2 {
		t.Errorf("%d lines of %d", n, 3*mostLogLines)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestLogThatFails(*testing.T) {
	lines := newPatientWriter(broken{})
	newLogger(lines, slog.LevelInfo).Info("x")
	lines.close()
}

// fault 89: names are the users' own, and make no line of the log but one.
func TestFault89NamesInTheLog(t *testing.T) {
	var b bytes.Buffer
	newLogger(&b, slog.LevelInfo).Warn("migration stopped", "source", "/images/x\ntime=2026 level=ERROR msg=forged \x1b[31m")
	if text := b.String(); strings.Count(text, "\n") != 1 || strings.Contains(text, "\x1b") {
		t.Errorf("%q", text)
	}
}

func TestTheJournalGetsNoTime(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "8:1")
	var b bytes.Buffer
	newLogger(&b, slog.LevelInfo).Info("x")
	if strings.Contains(b.String(), "time=") {
		t.Error(b.String())
	}
}

func TestStatusForSystemd(t *testing.T) {
	text := summary(service.Metrics{States: map[service.State]int{service.StateRunning: 2, service.StateFailed: 1, service.StateStopped: 3}})
	if text != "2 running, 0 queued, 0 paused, 4 stopped or failed" {
		t.Error(text)
	}
}
