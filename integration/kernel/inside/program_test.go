//go:build testkernel

package inside

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// programsVariable names the directory with the programs under test.
const programsVariable = "DECANT_TEST_BINARIES"

// patience is how long a program may take in all. What takes longer hangs.
const patience = 3 * time.Minute

// event is one line of --progress=json.
type event struct {
	Event          string `json:"event"`
	ID             string `json:"id"`
	BytesTotal     int64  `json:"bytes_total"`
	BytesData      int64  `json:"bytes_data"`
	BytesCopied    int64  `json:"bytes_copied"`
	BytesCommitted int64  `json:"bytes_committed"`
	BytesDiscarded int64  `json:"bytes_discarded"`
	BytesVerified  int64  `json:"bytes_verified"`
	Transaction    uint64 `json:"transaction"`
	PeakExtraBytes int64  `json:"peak_extra_bytes"`
	Reason         string `json:"reason"`
	Hint           string `json:"hint"`
}

// outcome is how a program ended.
type outcome struct {
	code   int // -1 if a signal ended it
	events []event
	stdout string
	stderr string
}

// last is the last event, or an empty one.
func (o outcome) last() event {
	if len(o.events) == 0 {
		return event{}
	}
	return o.events[len(o.events)-1]
}

func (o outcome) String() string {
	return fmt.Sprintf("exit code %d, last event %+v, standard error:\n%s", o.code, o.last(), o.stderr)
}

// running is a program that was started and has perhaps not ended.
type running struct {
	s     *site
	cmd   *exec.Cmd
	begun time.Time
	ended chan struct{}

	mu      sync.Mutex
	changed *sync.Cond
	result  outcome
	out     bytes.Buffer
	errors  bytes.Buffer
}

// start runs a program with the state directory of the site.
func (s *site) start(program string, args ...string) *running {
	s.Helper()
	path := filepath.Join(os.Getenv(programsVariable), program)
	r := &running{
		s: s, cmd: exec.Command(path, append([]string{"--state-dir", s.state}, args...)...),
		begun: time.Now(), ended: make(chan struct{}),
	}
	r.changed = sync.NewCond(&r.mu)
	r.cmd.Env = append(os.Environ(), "GOTRACEBACK=all") // a hang is ended with SIGQUIT
	r.cmd.Stderr = lockedWriter{r}
	stdout, err := r.cmd.StdoutPipe()
	s.must(err)
	s.must(r.cmd.Start())
	go r.read(stdout)
	s.Cleanup(func() {
		_ = r.cmd.Process.Kill() // it has ended unless the test failed
		<-r.ended
	})
	return r
}

// lockedWriter collects standard error.
type lockedWriter struct{ r *running }

func (w lockedWriter) Write(p []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.r.errors.Write(p)
}

func (r *running) read(stdout io.Reader) {
	for lines := bufio.NewReader(stdout); ; {
		line, err := lines.ReadBytes('\n')
		r.mu.Lock()
		r.out.Write(line)
		var e event
		if json.Unmarshal(line, &e) == nil && e.Event != "" {
			r.result.events = append(r.result.events, e)
		}
		r.changed.Broadcast()
		r.mu.Unlock()
		if err != nil {
			break
		}
	}
	_ = r.cmd.Wait() // its result is in ProcessState
	r.mu.Lock()
	r.result.code = r.cmd.ProcessState.ExitCode()
	r.result.stdout, r.result.stderr = r.out.String(), r.errors.String()
	close(r.ended)
	r.changed.Broadcast()
	r.mu.Unlock()
}

// wait waits for the end. A program that does not end fails the test.
func (r *running) wait() outcome {
	r.s.Helper()
	select {
	case <-r.ended:
	case <-time.After(time.Until(r.begun.Add(patience))):
		_ = r.cmd.Process.Signal(syscall.SIGQUIT) // to see where it hangs
		select {
		case <-r.ended:
		case <-time.After(10 * time.Second):
		}
		r.mu.Lock()
		text := r.errors.String()
		r.mu.Unlock()
		r.s.Fatalf("%v hangs:\n%s", r.cmd.Args, text)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.result
}

// await waits for the first event that satisfies the condition, and fails the test
// if the program ends without one.
func (r *running) await(what string, condition func(event) bool) event {
	r.s.Helper()
	deadline := r.begun.Add(patience)
	timer := time.AfterFunc(time.Until(deadline), r.changed.Broadcast)
	defer timer.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for next := 0; ; r.changed.Wait() {
		for ; next < len(r.result.events); next++ {
			if condition(r.result.events[next]) {
				return r.result.events[next]
			}
		}
		select {
		case <-r.ended:
			r.s.Fatalf("ended before %s: %v", what, r.result)
		default:
		}
		if !time.Now().Before(deadline) {
			r.s.Fatalf("no event with %s: %v", what, r.result)
		}
	}
}

// awaitCommitted waits until this many transactions are committed.
func (r *running) awaitCommitted(transactions uint64) event {
	r.s.Helper()
	return r.await(fmt.Sprintf("transaction %d", transactions), func(e event) bool {
		return e.Event == "committed" && e.Transaction >= transactions
	})
}

// move starts migrate with JSON events.
func (s *site) startMove(source, destination string, flags ...string) *running {
	s.Helper()
	return s.start("migrate", append(append([]string{"--progress=json"}, flags...), source, destination)...)
}

// move migrates, waits for the end, and fails the test if the exit code is another.
func (s *site) move(wantCode int, source, destination string, flags ...string) outcome {
	s.Helper()
	return s.want(wantCode, s.startMove(source, destination, flags...).wait())
}

// run runs a program that must end with code 0.
func (s *site) run(program string, args ...string) outcome {
	s.Helper()
	return s.want(0, s.start(program, args...).wait())
}

// want fails the test if a program ended with another code.
func (s *site) want(code int, o outcome) outcome {
	s.Helper()
	if o.code != code {
		s.Fatalf("want exit code %d: %v", code, o)
	}
	return o
}

// wantReason fails the test unless the last event gives a reason with one of these
// words in it.
func (s *site) wantReason(o outcome, words ...string) {
	s.Helper()
	reason := o.last().Reason
	if !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(reason, w) }) || o.last().Hint == "" {
		s.Errorf("reason %q (hint %q), want one of %q", reason, o.last().Hint, words)
	}
}

// shown is the part of show --json that tests look at.
type shown struct {
	Phase     string
	Hydrated  uint64 `json:"regions_hydrated"`
	Discarded uint64 `json:"regions_discarded"`
	Journal   string
	Bad       []struct {
		Offset, Bytes int64
		Error         string
	}
}

func (s *site) show(id string) shown {
	s.Helper()
	var d shown
	s.must(json.Unmarshal([]byte(s.run("migrate", "show", "--json", id).stdout), &d))
	return d
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
