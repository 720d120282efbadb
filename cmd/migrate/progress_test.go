package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"decant/service"
)

// timed is an event at a time after the start of its run.
type timed struct {
	after time.Duration
	event service.Event
}

// play runs args with a service that sends events at their times.
func play(t *testing.T, w *world, events []timed, end error, args ...string) int {
	t.Helper()
	code := -1
	synctest.Test(t, func(*testing.T) {
		begun := time.Now()
		w.fake.run = func(_ context.Context, sink service.Sink) error {
			for _, e := range events {
				time.Sleep(e.after - time.Since(begun))
				sink(e.event)
			}
			return end
		}
		// Signals come from outside of the bubble, so the run is without them.
		code = w.runWithoutSignals(args[0], progressForm(args[1]))
	})
	return code
}

// runWithoutSignals is what the command does, less the signals.
func (w *world) runWithoutSignals(id string, form progressForm) int {
	show := w.newReport(form)
	err := w.fake.Resume(context.Background(), id, show.event)
	show.end(err)
	if err != nil {
		w.complain(err, "migrate resume")
	}
	return int(service.OutcomeOf(err))
}

// everyPercent is a whole run of a second for each percent.
func everyPercent(start service.Event, from int) []timed {
	events := []timed{{0, start}}
	for percent := from; percent <= 100; percent++ {
		events = append(events, timed{time.Duration(percent-from) * time.Second, scripted(service.Progress, percent)})
	}
	return append(events, timed{101 * time.Second, scripted(service.DoneEvent, 100)})
}

func TestPlainProgressEveryFiveSeconds(t *testing.T) {
	w := newWorld(&fakeService{})
	if code := play(t, w, everyPercent(scripted(service.Started, 0), 0), nil, "m1", "plain"); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if w.out.Len() > 0 {
		t.Errorf("standard output %q", w.out.String())
	}
	golden(t, "progress-plain", w.err.String())
}

func TestPlainProgressOfAResumedRunStartsAtItsPosition(t *testing.T) {
	w := newWorld(&fakeService{})
	play(t, w, everyPercent(resumed(80), 80), nil, "m1", "plain")
	golden(t, "progress-plain-resumed", w.err.String())
}

func TestPlainProgressTellsEveryNewPhaseAtOnce(t *testing.T) {
	discarding := scripted(service.Progress, 50)
	discarding.Phase = "discarding"
	w := newWorld(&fakeService{})
	play(t, w, []timed{
		{0, scripted(service.Started, 0)},
		{time.Second, scripted(service.Progress, 49)},
		{2 * time.Second, discarding},
		{3 * time.Second, discarding},
	}, nil, "m1", "plain")
	want := "starting m1: /images/a.raw → pool/a, 1.0 GiB of 2.0 GiB to copy\n" +
		"discarding: 50%, 512 MiB of 1.0 GiB, 64 MiB/s, 8s left, 256 MiB freed\n"
	if w.err.String() != want {
		t.Errorf("got\n%swant\n%s", w.err.String(), want)
	}
}

// A nearly full pool makes a migration wait at every transaction; the log must not
// become as long as the journal.
func TestPlainProgressOfWaitsStaysShort(t *testing.T) {
	events := []timed{{0, scripted(service.Started, 0)}}
	for i := range 600 {
		e := scripted(service.Progress, 10)
		if i%2 == 1 {
			e.Event, e.Phase, e.Message = service.Paused, "waiting for space", "the pool is full"
		}
		events = append(events, timed{time.Duration(i) * 100 * time.Millisecond, e})
	}
	w := newWorld(&fakeService{})
	play(t, w, events, nil, "m1", "plain")
	if n := strings.Count(w.err.String(), "paused: the pool is full\n"); n != 1 {
		t.Errorf("told %d times of the same pause in a minute", n)
	}
	if n := strings.Count(w.err.String(), "\n"); n > 15 {
		t.Errorf("%d lines in a minute:\n%s", n, w.err.String())
	}
}

func TestPlainProgressTellsOfStops(t *testing.T) {
	w := newWorld(&fakeService{})
	end := &service.Error{Outcome: service.Stopped, Object: "m1", Problem: "no space", Hint: "make room"}
	code := play(t, w, []timed{{0, scripted(service.Started, 0)}, {time.Second, scripted(service.StoppedRun, 30)}}, end, "m1", "plain")
	want := "stopped: 30%, 307 MiB of 1.0 GiB, 154 MiB freed\nmigrate: m1: no space\nhint: make room\n"
	if code != 3 || !strings.HasSuffix(w.err.String(), want) {
		t.Errorf("exit code %d, standard error\n%swant at its end\n%s", code, w.err.String(), want)
	}
}

func TestProgressTellsPeopleWhereTheVolumeIs(t *testing.T) {
	for form, columns := range map[string]int{"plain": 0, "bar": 80} {
		exported := scripted(service.Exported, 0)
		exported.Export = "nbd+unix:///?socket=/run/vm.sock"
		w := newWorld(&fakeService{})
		w.stderrColumns = func() int { return columns }
		play(t, w, []timed{{0, scripted(service.Started, 0)}, {0, exported}}, nil, "m1", form)
		if want := "exported at nbd+unix:///?socket=/run/vm.sock\n"; strings.Count(w.err.String(), want) != 1 {
			t.Errorf("%s: %q", form, w.err.String())
		}
	}
}

func TestProgressWithUnknownTimeLeft(t *testing.T) {
	e := scripted(service.Progress, 10)
	e.Phase, e.ETASeconds, e.RateBytesPerSecond = "reversing", nil, 0
	w := newWorld(&fakeService{})
	play(t, w, []timed{{0, scripted(service.Started, 0)}, {0, e}}, nil, "m1", "plain")
	if want := "reversing: 10%, 102 MiB of 1.0 GiB, 0 B/s, 51 MiB freed\n"; !strings.HasSuffix(w.err.String(), want) {
		t.Errorf("got %q, want %q at its end", w.err.String(), want)
	}
}

func TestProgressWithNothingToCopy(t *testing.T) {
	for _, form := range []string{"plain", "bar"} {
		e := scripted(service.Progress, 0)
		e.BytesData, e.BytesDiscarded = 0, 0
		w := newWorld(&fakeService{})
		w.stderrColumns = func() int { return 80 }
		play(t, w, []timed{{0, e}}, nil, "m1", form)
		if form == "plain" {
			w.err.Reset()
			newPlainDisplay(&w.err, "→").line(e, e.Phase)
		}
		if !strings.Contains(w.err.String(), "100%") {
			t.Errorf("%s: %q", form, w.err.String())
		}
	}
}

// fault 89: names with control characters
func TestProgressForPeopleHoldsNoControlCharactersOfOthers(t *testing.T) {
	start, warning, pause, working := resumed(0), scripted(service.Warning, 1), scripted(service.Paused, 2), scripted(service.Progress, 3)
	exported := scripted(service.Exported, 0)
	for _, text := range []*string{&start.Source, &start.Destination, &start.ID, &start.Phase, &exported.Export, &warning.Message, &pause.Message, &working.Phase} {
		*text = "a\x1b[31mb\rc\nd\u009be"
	}
	for _, form := range []string{"plain", "none", "bar"} {
		w := newWorld(&fakeService{})
		w.stderrColumns = func() int { return 200 }
		if form == "plain" {
			w.stderrColumns = func() int { return 0 }
		}
		play(t, w, []timed{{0, start}, {0, exported}, {time.Second, warning}, {2 * time.Second, pause}, {3 * time.Second, working}, {9 * time.Second, scripted(service.DoneEvent, 100)}}, nil, "m1", form)
		text := strings.NewReplacer("\r", "", eraseLine, "", "\x1b[K", "", "\n", "").Replace(w.err.String())
		if escapeControls(text) != text {
			t.Errorf("%s: control characters in %q", form, text)
		}
		if form == "plain" && strings.ContainsAny(w.err.String(), "\r\x1b") {
			t.Errorf("control characters in a log: %q", w.err.String())
		}
	}
}

func TestJSONProgressIsEveryEventOnALine(t *testing.T) {
	warning, paused := scripted(service.Warning, 30), scripted(service.Paused, 31)
	warning.Message, paused.Message = "a < b & c\n", "no space"
	unknown := scripted(service.Progress, 32)
	unknown.ETASeconds = nil
	exported := scripted(service.Exported, 30)
	exported.Export = "nbd+unix:///?socket=/run/vm.sock"
	events := []timed{
		{0, resumed(30)},
		{0, exported},
		{0, warning},
		{0, paused},
		{0, unknown},
		{0, scripted(service.CommittedTx, 33)},
		{0, scripted(service.HydratedAll, 100)},
		{0, scripted(service.DoneEvent, 100)},
		{0, scripted(service.StoppedRun, 40)},
		{0, scripted(service.FailedEvent, 41)},
	}
	w := newWorld(&fakeService{})
	play(t, w, events, nil, "m1", "json")
	if w.err.Len() > 0 {
		t.Errorf("standard error %q", w.err.String())
	}
	golden(t, "progress-json", w.out.String())
}

// writes keeps what each write wrote.
type writes struct{ texts []string }

func (w *writes) Write(text []byte) (int, error) {
	w.texts = append(w.texts, string(text))
	return len(text), nil
}

func TestJSONProgressKeepsNothingBack(t *testing.T) {
	w, kept := newWorld(&fakeService{}), &writes{}
	w.stdout = kept
	show := w.newReport(progressJSON)
	for percent := range 100 {
		show.event(scripted(service.Progress, percent))
		if len(kept.texts) != percent+1 || !strings.HasSuffix(kept.texts[percent], "}\n") {
			t.Fatalf("after event %d: %q", percent, kept.texts)
		}
	}
}

func TestNoProgressIsTheSummaryOnly(t *testing.T) {
	w := newWorld(&fakeService{})
	play(t, w, everyPercent(scripted(service.Started, 0), 0), nil, "m1", "none")
	want := "done: /images/a.raw → pool/a: 1.0 GiB copied in 16s, 1.0 GiB freed, at most 128 MiB of extra space taken\n"
	if w.err.String() != want || w.out.Len() > 0 {
		t.Errorf("standard error %q, want %q; standard output %q", w.err.String(), want, w.out.String())
	}
}

func TestWhichFormIsTaken(t *testing.T) {
	tests := []struct {
		asked   progressForm
		columns int
		want    progressForm
	}{
		{progressAuto, 80, progressBar},
		{progressAuto, 0, progressPlain},
		{progressBar, 80, progressBar},
		{progressBar, 0, progressPlain},
		{progressPlain, 80, progressPlain},
		{progressJSON, 80, progressJSON},
		{progressNone, 80, progressNone},
	}
	for _, test := range tests {
		w := newWorld(&fakeService{})
		w.stderrColumns = func() int { return test.columns }
		if got := w.newReport(test.asked).form; got != test.want {
			t.Errorf("%s on %d columns: %s, want %s", test.asked, test.columns, got, test.want)
		}
	}
}

// fault 66: closed pipes
func TestProgressThatNobodyTakesIsDropped(t *testing.T) {
	for _, form := range progressForms {
		w := newWorld(&fakeService{})
		w.stderrColumns = func() int { return 80 }
		w.stdout, w.stderr = fullDisk{}, fullDisk{}
		if code := play(t, w, everyPercent(scripted(service.Started, 0), 0), nil, "m1", form); code != 0 {
			t.Errorf("%s: exit code %d", form, code)
		}
	}
}

func TestAGoneReaderIsNotTriedAgain(t *testing.T) {
	tries := 0
	w := &patientWriter{to: writerFunc(func([]byte) (int, error) {
		tries++
		return 0, errors.New("gone")
	})}
	for range 3 {
		if n, err := io.WriteString(w, "text"); n != 4 || err != nil {
			t.Errorf("wrote %d: %v", n, err)
		}
	}
	if tries != 1 {
		t.Errorf("tried %d times", tries)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(text []byte) (int, error) { return f(text) }

// screenLines is what a terminal of this width shows after text: every line, each
// with what was drawn last in it. A line that wrapped is an error.
func screenLines(t *testing.T, text string, columns int) []string {
	t.Helper()
	lines, cursor := []string{""}, 0
	for i := 0; i < len(text); {
		last := &lines[len(lines)-1]
		switch {
		case strings.HasPrefix(text[i:], "\x1b[K"):
			*last = string([]rune(*last)[:cursor])
			i += len("\x1b[K")
			continue
		case text[i] == '\r':
			cursor = 0
		case text[i] == '\n':
			lines, cursor = append(lines, ""), 0
		default:
			r, size := utf8.DecodeRuneInString(text[i:])
			row := []rune(*last)
			row = append(row[:cursor], append([]rune{r}, row[min(len(row), cursor+1):]...)...)
			*last = string(row)
			cursor++
			i += size
			continue
		}
		i++
	}
	for _, line := range lines {
		if strings.Contains(line, "%") && utf8.RuneCountInString(line) >= columns && columns > 0 {
			t.Errorf("%q fills %d columns", line, columns)
		}
	}
	return lines
}

func TestBarOnATerminal(t *testing.T) {
	w := newWorld(&fakeService{})
	w.stderrColumns = func() int { return 100 }
	warning := scripted(service.Warning, 50)
	warning.Message = "the source is reflinked"
	events := everyPercent(scripted(service.Started, 0), 0)
	events = slices.Insert(events, 50, timed{49 * time.Second, warning})
	play(t, w, events, nil, "m1", "bar")
	golden(t, "progress-bar", strings.Join(screenLines(t, w.err.String(), 100), "\n"))
}

// The rate and the time left are those of the events, and not what the bar makes
// of a position that an earlier run had reached.
func TestBarOfAResumedRunStartsAtItsPosition(t *testing.T) {
	w := newWorld(&fakeService{})
	w.stderrColumns = func() int { return 100 }
	show := w.newReport(progressBar)
	last := func() string {
		lines := screenLines(t, w.err.String(), 100)
		return lines[len(lines)-1]
	}
	show.event(resumed(80))
	if got := last(); !strings.HasPrefix(got, "  80% |██") || !strings.HasSuffix(got, "| hydrating, 819 MiB of 1.0 GiB, 410 MiB freed") {
		t.Errorf("at the start: %q", got)
	}
	time.Sleep(barPeriod)
	show.event(scripted(service.Progress, 81))
	if got := last(); !strings.HasPrefix(got, "  81% |██") || !strings.HasSuffix(got, "| hydrating, 829 MiB of 1.0 GiB, 64 MiB/s, 3s left, 415 MiB freed") {
		t.Errorf("later: %q", got)
	}
	filled := strings.Count(last(), "█")
	if all := filled + strings.Count(last()[:strings.LastIndex(last(), "|")], "  "); filled < all/2 {
		t.Errorf("%d cells are filled: %q", filled, last())
	}
}

func TestBarIsDrawnTenTimesASecondAtMost(t *testing.T) {
	w, kept := newWorld(&fakeService{}), &writes{}
	w.stderr, w.stderrColumns = kept, func() int { return 80 }
	var events []timed
	for i := range 5000 {
		events = append(events, timed{time.Duration(i) * time.Millisecond, scripted(service.Progress, i/50)})
	}
	play(t, w, events, nil, "m1", "bar")
	if n := len(kept.texts); n < 45 || n > 52 {
		t.Errorf("%d writes in 5 seconds, want about 50", n)
	}
}

func TestBarGoesOnAfterEverythingIsCopied(t *testing.T) {
	w := newWorld(&fakeService{})
	w.stderrColumns = func() int { return 100 }
	discarding := scripted(service.Progress, 100)
	discarding.Phase = "discarding"
	later := discarding
	later.BytesDiscarded = gib
	play(t, w, []timed{{0, scripted(service.Progress, 100)}, {time.Second, discarding}, {2 * time.Second, later}}, nil, "m1", "bar")
	lines := screenLines(t, w.err.String(), 100)
	if !strings.Contains(lines[0], "100%") || !strings.Contains(lines[0], "discarding") || !strings.Contains(lines[0], "1.0 GiB freed") {
		t.Errorf("%q", lines)
	}
}

func TestBarFitsEveryTerminal(t *testing.T) {
	for columns := 1; columns <= 250; columns++ {
		w := newWorld(&fakeService{})
		w.stderrColumns = func() int { return columns }
		var events []timed
		for percent := 0; percent <= 100; percent += 20 {
			events = append(events, timed{time.Duration(percent) * time.Second, scripted(service.Progress, percent)})
		}
		play(t, w, events, nil, "m1", "bar")
		for _, line := range screenLines(t, w.err.String(), columns) {
			if utf8.RuneCountInString(line) >= columns {
				t.Fatalf("%q does not fit into %d columns", line, columns)
			}
			if columns >= 30 && line != "" && !strings.Contains(line, "|") {
				t.Fatalf("no bar in %q at %d columns", line, columns)
			}
		}
		if columns > 5 && !strings.Contains(w.err.String(), "100%") {
			t.Fatalf("no percentage at %d columns: %q", columns, w.err.String())
		}
	}
}

func TestBarWithoutUnicode(t *testing.T) {
	w := newWorld(&fakeService{})
	w.unicode, w.stderrColumns = false, func() int { return 80 }
	play(t, w, everyPercent(scripted(service.Started, 0), 0), nil, "m1", "bar")
	for _, r := range w.err.String() {
		if r > 127 {
			t.Fatalf("%q is not ASCII", r)
		}
	}
	if !strings.Contains(w.err.String(), "[===") {
		t.Errorf("no bar in %q", w.err.String())
	}
}

func TestErrorStandsOnALineOfItsOwnBelowTheBar(t *testing.T) {
	w := newWorld(&fakeService{})
	w.stderrColumns = func() int { return 100 }
	end := &service.Error{Outcome: service.Stopped, Problem: "no space", Hint: "make room"}
	play(t, w, []timed{{0, scripted(service.Progress, 30)}, {time.Second, scripted(service.StoppedRun, 31)}}, end, "m1", "bar")
	lines := screenLines(t, w.err.String(), 100)
	if len(lines) != 4 || !strings.Contains(lines[0], "31%") || !strings.Contains(lines[0], "stopped") || lines[1] != "migrate: no space" || lines[2] != "hint: make room" {
		t.Errorf("%s", strings.Join(lines, "\n"))
	}
}

func TestStartOfAVerificationNamesNoEnds(t *testing.T) {
	got := startLine(service.Event{Event: service.Started, ID: "m1", Phase: "verifying", BytesData: gib}, "→")
	if got != "verifying m1: 1.0 GiB" {
		t.Errorf("got %q", got)
	}
}

func TestPositionOfAVerificationIsItsOwn(t *testing.T) {
	e := scripted(service.Progress, 100)
	e.Phase, e.BytesVerified = "verifying", gib/4
	if got := fmt.Sprint(positionPercent(e), " ", amounts(e)); got != "25 256 MiB of 1.0 GiB" {
		t.Errorf("got %s", got)
	}
}
