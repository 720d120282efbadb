package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a program may take in all. What takes longer hangs.
const patience = 90 * time.Second

// site is what one test works in: a directory on a disk, and a state directory of
// its own for the programs.
type site struct {
	testing.TB
	dir, state string
	socketDir  string // of the volume while it hydrates; made when it is first needed
}

func newSite(t testing.TB) *site {
	t.Helper()
	dir := t.TempDir()
	return &site{TB: t, dir: dir, state: filepath.Join(dir, "state")}
}

// path is a path in the directory of the test.
func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// at is the same site with another state directory.
func (s *site) at(stateDir string) *site {
	other := *s
	other.state = stateDir
	return &other
}

// event is one line of --progress=json, read as a user's script would read it.
type event struct {
	Event              string   `json:"event"`
	ID                 string   `json:"id"`
	Time               string   `json:"time"`
	Phase              string   `json:"phase"`
	BytesTotal         int64    `json:"bytes_total"`
	BytesData          int64    `json:"bytes_data"`
	BytesCopied        int64    `json:"bytes_copied"`
	BytesCommitted     int64    `json:"bytes_committed"`
	BytesDiscarded     int64    `json:"bytes_discarded"`
	BytesVerified      int64    `json:"bytes_verified"`
	RateBytesPerSecond int64    `json:"rate_bytes_per_second"`
	ETASeconds         *float64 `json:"eta_seconds"`
	Transaction        uint64   `json:"transaction"`
	PeakExtraBytes     int64    `json:"peak_extra_bytes"`
	ElapsedSeconds     *float64 `json:"elapsed_seconds"`
	SourceFreedBytes   *int64   `json:"source_freed_bytes"`
	Export             string   `json:"export"`
	Reason             string   `json:"reason"`
	Hint               string   `json:"hint"`

	fields map[string]json.RawMessage
}

func (e event) String() string {
	text := map[string]string{}
	for name, value := range e.fields {
		text[name] = string(value)
	}
	return fmt.Sprint(text)
}

// outcome is how a program ended.
type outcome struct {
	code         int // -1 if a signal ended it
	events       []event
	stdout       string
	stderr       string
	elapsed      time.Duration
	peakRSSBytes int64
}

// last is the last event, or an empty one.
func (o outcome) last() event {
	if len(o.events) == 0 {
		return event{}
	}
	return o.events[len(o.events)-1]
}

func (o outcome) String() string {
	return fmt.Sprintf("exit code %d after %v\nlast event: %v\nstandard error:\n%s", o.code, o.elapsed.Round(time.Millisecond), o.last(), o.stderr)
}

// running is a program that was started and has perhaps not ended.
type running struct {
	site  *site
	cmd   *exec.Cmd
	begun time.Time

	mu      sync.Mutex
	changed *sync.Cond
	result  outcome
	stdout  bytes.Buffer
	stderr  bytes.Buffer
	ended   chan struct{}
	read    sync.WaitGroup
}

// moveArguments are those of a migration with JSON events.
func moveArguments(source, destination string, flags []string) []string {
	return append(append([]string{"--progress=json"}, flags...), source, destination)
}

// move migrates and waits for the end.
func (s *site) move(source, destination string, flags ...string) outcome {
	s.Helper()
	return s.run(moveArguments(source, destination, flags)...)
}

// startMove begins to migrate.
func (s *site) startMove(source, destination string, flags ...string) *running {
	s.Helper()
	return s.start(moveArguments(source, destination, flags)...)
}

// run runs migrate and waits for the end.
func (s *site) run(args ...string) outcome {
	s.Helper()
	return s.start(args...).wait()
}

// start runs migrate.
func (s *site) start(args ...string) *running {
	s.Helper()
	return s.launch(exec.Command(migratePath, append([]string{"--state-dir", s.state}, args...)...))
}

// under runs migrate by another program, which is given its command line.
func (s *site) under(wrapper []string, args ...string) *running {
	s.Helper()
	line := append(append([]string{}, wrapper...), migratePath, "--state-dir", s.state)
	line = append(line, args...)
	return s.launch(exec.Command(line[0], line[1:]...))
}

// thinctl runs thinctl, which must succeed, and returns its answer.
func (s *site) thinctl(args ...string) string {
	s.Helper()
	o := s.launch(exec.Command(thinctlPath, append([]string{"--state-dir", s.state}, args...)...)).wait()
	if o.code != 0 {
		s.Fatalf("thinctl %s: %v", strings.Join(args, " "), o)
	}
	return o.stdout
}

// launch starts a program and reads what it says.
func (s *site) launch(cmd *exec.Cmd) *running {
	s.Helper()
	r := &running{site: s, cmd: cmd, begun: time.Now(), ended: make(chan struct{})}
	r.changed = sync.NewCond(&r.mu)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		s.Fatal(err)
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "GOTRACEBACK=all") // a hang is ended with SIGQUIT
	// A group of its own, so that a wrapper is not killed alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	r.read.Go(func() { r.readEvents(stdout) })
	r.read.Go(func() {
		_, _ = io.Copy(lockedWriter{r}, stderr) // ends with the program
	})
	go r.watch()
	go r.reap()
	s.Cleanup(func() {
		if !r.hasEnded() { // the test has failed
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may end this moment
		}
		<-r.ended
	})
	return r
}

// lockedWriter collects standard error.
type lockedWriter struct{ r *running }

func (w lockedWriter) Write(p []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.r.stderr.Write(p)
}

func (r *running) readEvents(stdout io.Reader) {
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadBytes('\n')
		r.mu.Lock()
		r.stdout.Write(line)
		var e event
		if json.Unmarshal(line, &e) == nil && e.Event != "" {
			_ = json.Unmarshal(line, &e.fields) // it was just found to be an object
			r.result.events = append(r.result.events, e)
		}
		r.changed.Broadcast()
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// watch notes the highest use of memory. What wait4 says of it is no help: it
// contains the memory of the process that forked, which is this one.
func (r *running) watch() {
	for {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
		if _, rest, found := strings.Cut(string(status), "VmHWM:"); err == nil && found {
			var kib int64
			if _, err := fmt.Sscan(rest, &kib); err == nil {
				r.mu.Lock()
				r.result.peakRSSBytes = max(r.result.peakRSSBytes, kib<<10)
				r.mu.Unlock()
			}
		}
		select {
		case <-r.ended:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (r *running) reap() {
	r.read.Wait()
	_ = r.cmd.Wait() // its result is in ProcessState
	r.mu.Lock()
	r.result.code = r.cmd.ProcessState.ExitCode()
	r.result.elapsed = time.Since(r.begun)
	r.result.stdout, r.result.stderr = r.stdout.String(), r.stderr.String()
	close(r.ended)
	r.changed.Broadcast()
	r.mu.Unlock()
}

// wait waits for the end. A program that does not end fails the test.
func (r *running) wait() outcome {
	r.site.Helper()
	select {
	case <-r.ended:
	case <-time.After(time.Until(r.begun.Add(patience))):
		_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGQUIT) // to see where it hangs
		select {
		case <-r.ended:
		case <-time.After(10 * time.Second):
		}
		r.mu.Lock()
		text := r.stderr.String()
		r.mu.Unlock()
		r.site.Fatalf("%v hangs:\n%s", r.cmd.Args, text)
	}
	return r.outcome()
}

// outcome is how the program ended, once it has.
func (r *running) outcome() outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.result
}

func (r *running) hasEnded() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// await waits for the first event that satisfies the condition, and fails the test
// if the program ends without one.
func (r *running) await(what string, condition func(event) bool) event {
	r.site.Helper()
	timer := time.AfterFunc(patience, r.changed.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(patience)
	r.mu.Lock()
	defer r.mu.Unlock()
	for next := 0; ; r.changed.Wait() {
		for ; next < len(r.result.events); next++ {
			if condition(r.result.events[next]) {
				return r.result.events[next]
			}
		}
		if r.hasEnded() || time.Now().After(deadline) {
			r.site.Fatalf("no event with %s: %v", what, r.result)
		}
	}
}

func (r *running) awaitStarted() event {
	r.site.Helper()
	return r.await("the start", func(e event) bool { return e.Event == "started" })
}

// awaitCommitted waits until this many transactions are committed.
func (r *running) awaitCommitted(transactions uint64) event {
	r.site.Helper()
	return r.await(fmt.Sprintf("transaction %d", transactions), func(e event) bool {
		return e.Event == "committed" && e.Transaction >= transactions
	})
}

// awaitDiscarded waits until something was discarded.
func (r *running) awaitDiscarded() event {
	r.site.Helper()
	return r.await("a discard", func(e event) bool { return e.BytesDiscarded > 0 })
}

func (r *running) signal(signal syscall.Signal) {
	r.site.Helper()
	if err := r.cmd.Process.Signal(signal); err != nil {
		r.site.Fatalf("send %v: %v", signal, err)
	}
}

// awaitSaid waits until standard error has these words, or the program has ended: a
// signal that is sent before an earlier one of its kind was taken is lost.
func (r *running) awaitSaid(words string) {
	r.site.Helper()
	for deadline := time.Now().Add(20 * time.Second); !r.hasEnded(); time.Sleep(10 * time.Millisecond) {
		r.mu.Lock()
		said := strings.Contains(r.stderr.String(), words)
		r.mu.Unlock()
		if said {
			return
		}
		if time.Now().After(deadline) {
			r.site.Fatalf("%v never said %q", r.cmd.Args, words)
		}
	}
}

// kill ends the program as a crash would.
func (r *running) kill() outcome {
	r.site.Helper()
	_ = r.cmd.Process.Kill() // it may have ended by itself
	return r.wait()
}

// want fails the test if a program ended with another code.
func (s *site) want(code int, o outcome) outcome {
	s.Helper()
	if o.code != code {
		s.Fatalf("want exit code %d: %v", code, o)
	}
	return o
}
