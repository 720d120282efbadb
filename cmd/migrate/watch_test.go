package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"decant/service"
)

// onScreen is a model with migrations in several states.
func onScreen() *watchModel {
	eta := 75.0
	m := &watchModel{}
	m.learn(news{link: text(""), list: []service.Status{
		{Summary: service.Summary{ID: "dddd0000", Source: "/d", Destination: "p/d", Phase: "done", Regions: 8, Hydrated: 8, BytesTotal: 8 << 20}, State: service.StateDone},
		{
			Summary: service.Summary{ID: "aaaa0000", Source: "/images/a.raw", Destination: "pool/a", Phase: "running", Direction: "forward", Regions: 8, Hydrated: 2, Discarded: 1, BytesTotal: 8 << 20, Transaction: 7, PeakExtraBytes: 1 << 20},
			State:   service.StateRunning, Event: &service.Event{Event: service.Progress, ID: "aaaa0000", Phase: "hydrating", BytesData: 8 << 20, BytesCopied: 2 << 20, BytesDiscarded: 1 << 20, RateBytesPerSecond: 1 << 20, ETASeconds: &eta},
		},
		{Summary: service.Summary{ID: "bbbb0000", Source: "/evil\x1b[31m\n", Destination: "p/b", Phase: "running", Direction: "forward", Regions: 8}, State: service.StateStopped, Reason: "no space\x1b[2J", Hint: "free some"},
		{Summary: service.Summary{ID: "cccc0000", Source: "/c", Destination: "p/c", Phase: "running", Direction: "forward", Regions: 8}, State: service.StateQueued, Position: 2},
	}})
	m.learn(news{of: "aaaa0000", cells: []service.Cell{{State: "discarded"}, {State: "hydrated"}, {State: "partial"}, {State: "unhydrated"}, {State: "bad"}}})
	return m
}

func drawn(m *watchModel, columns, rows int) string {
	var b strings.Builder
	for _, line := range (watchView{unicode: true, arrow: "→"}).lines(m, screenSize{columns, rows}) {
		b.WriteString(strings.TrimRight(line.text, " ") + "\n")
	}
	return b.String()
}

func TestWatchScreen(t *testing.T) {
	m := onScreen()
	golden(t, "watch", drawn(m, 100, 26))
	m.move(1)
	m.move(1)
	m.learn(news{link: text("the service is gone, looking for it"), said: "paused aaaa0000"})
	golden(t, "watch-stopped", drawn(m, 100, 26))
	golden(t, "watch-empty", drawn(&watchModel{loaded: true}, 60, 10))
}

// On every size the screen is filled and not more, and nothing on it steers the terminal.
func TestWatchScreenFitsEverySize(t *testing.T) {
	many := onScreen()
	list := []service.Status{}
	for i := range 300 {
		list = append(list, service.Status{Summary: service.Summary{ID: fmt.Sprintf("%08d", i), Source: "/\x1b", Phase: "running"}, State: service.StateQueued})
	}
	many.learn(news{list: list})
	many.move(150)
	for _, m := range []*watchModel{{}, {loaded: true}, onScreen(), many} {
		for columns := 1; columns < 130; columns += 7 {
			for rows := 1; rows < 60; rows++ {
				lines := watchView{unicode: true, arrow: "→"}.lines(m, screenSize{columns, rows})
				if len(lines) > rows || rows >= watchLeastRows && len(lines) != rows {
					t.Fatalf("%d lines on %d rows", len(lines), rows)
				}
				isShown := false
				for _, line := range lines {
					if n := utf8.RuneCountInString(line.text); n > columns {
						t.Fatalf("a line of %d on %d columns", n, columns)
					}
					if strings.ContainsAny(line.text, "\x1b\n\r") {
						t.Fatalf("a line steers the terminal: %q", line.text)
					}
					isShown = isShown || strings.HasPrefix(line.text, ">")
				}
				if len(m.items) > 0 && rows >= watchLeastRows && !isShown {
					t.Fatalf("the selected one is not on %d rows", rows)
				}
			}
		}
	}
}

func TestWatchKeepsItsSelection(t *testing.T) {
	m := onScreen()
	order := func() (ids []string) {
		for _, item := range m.items {
			ids = append(ids, item.ID[:1])
		}
		return ids
	}
	if got := order(); !slices.Equal(got, []string{"a", "c", "b", "d"}) || m.selected != "aaaa0000" {
		t.Errorf("order %v, selected %s", got, m.selected)
	}
	m.move(-1)
	m.move(2)
	m.learn(news{list: []service.Status{{Summary: service.Summary{ID: "eeee0000"}, State: service.StateRunning}, {Summary: service.Summary{ID: "bbbb0000"}, State: service.StateDone}}})
	if m.selected != "bbbb0000" {
		t.Errorf("selected %s", m.selected)
	}
	m.learn(news{list: []service.Status{}})
	m.move(1)
	if _, ok := m.chosen(); ok {
		t.Error("something is selected where nothing is")
	}
}

func TestParseKeys(t *testing.T) {
	for input, want := range map[string][]key{
		"pq": {keyPause, keyQuit}, "\x1b[A\x1b[B": {keyUp, keyDown}, "\x1bOA": {keyUp}, "jk": {keyDown, keyUp}, "\x03": {keyQuit}, "\x1a": {keySuspend}, "\x0c": {keyRedraw},
		"\x1b[1;5A": nil, "\x1b[200~q": {keyQuit}, "xyz": nil, "\x1bq": {keyQuit}, "\x1b[" + strings.Repeat("1", 100) + "q": {keyQuit}, "\xff\x00r": {keyResume},
	} {
		var got []key
		var rest []byte
		for i := range len(input) { // one byte at a time, as a slow line sends them
			var keys []key
			keys, rest = parseKeys(append(rest, input[i]))
			got = append(got, keys...)
		}
		if !slices.Equal(got, want) || len(rest) > longestEscape {
			t.Errorf("%q: %v, rest %q, want %v", input, got, rest, want)
		}
	}
}

func TestWatchWritesLines(t *testing.T) {
	h := newHouse(t)
	content := h.image("image", 3<<20)
	id := h.detach(append(slow, h.path("image"), h.path("moved"))...)
	w := h.run(0, "watch", id)
	h.wantContent("moved", content)
	for _, want := range []string{"decant: connected to the service\n", id + ": " + h.path("image") + " → " + h.path("moved") + ": forward, ", id + ": done: 100%"} {
		if !strings.Contains(w.out.String(), want) {
			t.Errorf("the lines do not say %q: %s", want, w.out.String())
		}
	}
	// Of what has ended, the one line is all.
	if w := h.run(0, "watch", id[:5]); !strings.Contains(w.out.String(), "done, 100%") {
		t.Errorf("after the end: %s", w.out.String())
	}
	h.run(4, "watch", "nosuchid")
}

func TestWatchReadsJournalsWithoutAService(t *testing.T) {
	h := newHouse(t)
	h.image("image", 4<<20)
	id := h.detach(append(slow, h.path("image"), h.path("moved"))...)
	h.await(id, service.StateRunning)
	h.end()
	watcher, mover := h.command(), h.command()
	ended := make(chan int)
	go func() { ended <- watcher.run([]string{"--state-dir", h.state, "--service", "none", "watch", id}) }()
	if code := mover.run([]string{"--state-dir", h.state, "--service", "none", "resume", "--progress=none", id}); code != 0 {
		t.Errorf("resume: %d %s", code, mover.err.String())
	}
	if code := <-ended; code != 0 {
		t.Errorf("watch: %d %s", code, watcher.err.String())
	}
	for _, want := range []string{"no service runs, reading the journals", id + ": done"} {
		if !strings.Contains(watcher.out.String(), want) {
			t.Errorf("the lines do not say %q: %s", want, watcher.out.String())
		}
	}
}

// onTerminal is this binary as `migrate watch` on a terminal of its own.
type onTerminal struct {
	*testing.T
	cmd           *exec.Cmd
	master, slave *os.File
	before        *unix.Termios
	ended         chan struct{}

	mu   sync.Mutex
	seen bytes.Buffer
}

func (h *house) watchOnTerminal(args ...string) *onTerminal {
	h.Helper()
	master, slave := pseudoTerminal(h.T, 110)
	h.must(unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 110}))
	o := &onTerminal{T: h.T, master: master, slave: slave, ended: make(chan struct{})}
	var err error
	o.before, err = unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	h.must(err)
	o.cmd = exec.Command(os.Args[0], append([]string{"--service", h.socket, "watch"}, args...)...)
	o.cmd.Env = append(os.Environ(), "DECANT_MIGRATE_REAL=1", "TERM=xterm", "LANG=C.UTF-8")
	o.cmd.Stdin, o.cmd.Stdout, o.cmd.Stderr = slave, slave, slave
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	h.must(o.cmd.Start())
	go func() {
		defer close(o.ended)
		_ = o.cmd.Wait() // the tests look at its state
	}()
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			o.mu.Lock()
			o.seen.Write(buffer[:n])
			o.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	h.Cleanup(func() {
		_ = o.cmd.Process.Kill() // it may have ended
		<-o.ended
	})
	return o
}

func (o *onTerminal) output() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen.String()
}

// see waits until the terminal was sent a text, and forgets what came before its end.
func (o *onTerminal) see(want string) {
	o.Helper()
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		o.mu.Lock()
		text := o.seen.String()
		if i := strings.Index(text, want); i >= 0 {
			o.seen.Next(i + len(want))
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		if time.Since(begun) > 30*time.Second {
			o.Fatalf("the terminal was never sent %q: %q", want, text)
		}
	}
}

func (o *onTerminal) press(keys string) {
	o.Helper()
	if _, err := o.master.WriteString(keys); err != nil {
		o.Fatal(err)
	}
}

// isAsBefore waits for the end, and wants the code and the terminal as it was.
func (o *onTerminal) isAsBefore(code int) {
	o.Helper()
	select {
	case <-o.ended:
	case <-time.After(30 * time.Second):
		o.Fatalf("it does not end: %q", o.output())
	}
	o.see(leaveScreen)
	after, err := unix.IoctlGetTermios(int(o.slave.Fd()), unix.TCGETS)
	if err != nil || *after != *o.before {
		o.Errorf("the terminal is left as %+v, was %+v (%v)", after, o.before, err)
	}
	if got := o.cmd.ProcessState.ExitCode(); got != code {
		o.Errorf("exit code %d, want %d: %q", got, code, o.output())
	}
}

func TestWatchOnATerminal(t *testing.T) {
	h := newHouse(t)
	h.image("image", 8<<20)
	h.image("small", 1<<20)
	done := h.detach(h.path("small"), h.path("kept"))
	h.await(done, service.StateDone)
	id := h.detach(append(crawling, h.path("image"), h.path("moved"))...)
	o := h.watchOnTerminal()
	o.see(enterScreen)
	if term.IsTerminal(int(o.slave.Fd())) {
		raw, err := unix.IoctlGetTermios(int(o.slave.Fd()), unix.TCGETS)
		if err != nil || raw.Lflag&unix.ICANON != 0 {
			t.Errorf("the terminal is not raw: %+v, %v", raw, err)
		}
	}
	o.see("> " + id)
	o.see("░") // the map shows what was discarded
	o.press("p")
	o.see("paused " + id)
	h.await(id, service.StatePaused)
	// The service goes away, and comes back.
	h.end()
	o.see("the service is gone")
	h.open()
	o.see("decant: 2 migrations, 1 paused" + strings.Repeat(" ", 10))
	o.press("r")
	o.see("resumed " + id)
	h.await(id, service.StateRunning)
	o.press("\x1b[B")
	o.see("> " + done)
	h.must(unix.IoctlSetWinsize(int(o.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 12, Col: 40}))
	o.see("> " + done)
	o.press("q")
	o.isAsBefore(0)
}

func TestWatchEndsWithWhatItWatches(t *testing.T) {
	h := newHouse(t)
	content := h.image("image", 3<<20)
	id := h.detach(append(slow, h.path("image"), h.path("moved"))...)
	h.watchOnTerminal(id).isAsBefore(0)
	h.wantContent("moved", content)
}

func TestWatchLeavesTheTerminalAsItWas(t *testing.T) {
	h := newHouse(t)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGINT} {
		o := h.watchOnTerminal()
		o.see("there are no migrations")
		h.must(o.cmd.Process.Signal(signal))
		want := 3
		if signal == unix.SIGINT {
			want = 0
		}
		o.isAsBefore(want)
	}
	o := h.watchOnTerminal()
	o.see("there are no migrations")
	o.press("\x1a") // Ctrl-Z: stopped, with the terminal given back
	o.see(leaveScreen)
	h.must(o.cmd.Process.Signal(unix.SIGCONT))
	o.see(enterScreen)
	o.see("there are no migrations")
	o.press("\x03")
	o.isAsBefore(0)
}
