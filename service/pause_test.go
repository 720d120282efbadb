package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childRequest is the work of a process of its own.
type childRequest struct {
	StateDir string
	Request  Request
	Deaf     bool // to what tells it to stop
	Panics   bool // in the middle
}

// child moves until a signal stops it, tells on standard output when it has discarded
// something, and ends with the exit code of a program.
func child(text string) {
	var work childRequest
	err := json.Unmarshal([]byte(text), &work)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if work.Deaf {
		ctx = context.Background()
	}
	s, err := New(work.StateDir)
	if err == nil {
		err = work.run(ctx, s, func(e Event) {
			if e.BytesDiscarded > 0 {
				fmt.Println("discarded")
			}
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(int(OutcomeOf(err)))
}

func (w childRequest) run(ctx context.Context, s *Service, sink Sink) error {
	if !w.Panics {
		return s.Migrate(ctx, w.Request, sink)
	}
	a, err := s.prepare(w.Request)
	if err != nil {
		return err
	}
	m, err := a.begin()
	if err != nil {
		return err
	}
	m.source.device = &faulty{device: m.source.device, read: func(off int64) error {
		if off >= 3*mib {
			panic("a mistake of ours")
		}
		return nil
	}}
	return m.finishWith(m.run(ctx, sink))
}

// process starts a child and waits until it has discarded something.
func (s *site) process(request Request, deaf bool) *exec.Cmd {
	s.Helper()
	text, err := json.Marshal(childRequest{StateDir: s.stateDir, Request: request, Deaf: deaf})
	s.must(err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	s.must(err)
	s.must(cmd.Start())
	s.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if n, err := stdout.Read(make([]byte, 1)); n == 0 {
		s.Fatalf("the child has ended before it had begun: %v %s", err, stderr.String())
	}
	return cmd
}

func TestPauseStopsAnotherProcess(t *testing.T) {
	s := newSite(t)
	content := s.image("image", 4*mib)
	o := slowly()
	o.BytesPerSecond = 128 * kib
	cmd := s.process(s.request("image", "moved", o), false)
	id := s.only()
	list, err := s.List()
	s.must(err)
	if !list[0].Active || list[0].PID != cmd.Process.Pid || list[0].Phase != "running" {
		t.Errorf("%+v; want the process %d", list[0], cmd.Process.Pid)
	}
	// Meanwhile nobody else can have the migration, nor one of its ends.
	for name, do := range map[string]func() error{
		"the same command": func() error {
			return s.Migrate(context.Background(), s.request("image", "moved", moving()), nil)
		},
		"reverse": func() error { return s.Reverse(context.Background(), id, nil) },
		"elsewhere": func() error { // fault 6
			return s.Migrate(context.Background(), s.request("image", "other", copying()), nil)
		},
	} {
		if err := do(); OutcomeOf(err) != Refused {
			t.Errorf("%s beside another process: %v", name, err)
		}
	}
	s.must(s.Pause(context.Background(), id))
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != int(Stopped) {
		t.Errorf("the paused process ended with %v", err)
	}
	s.wantRefused("no process works on it", func() error { return s.Pause(context.Background(), id) })
	s.migrate("image", "moved", moving())
	s.wantContent("moved", content)
}

func TestPauseOfADeafProcess(t *testing.T) {
	s := newSite(t)
	s.image("image", 4*mib)
	cmd := s.process(s.request("image", "moved", slowly()), true)
	s.must(cmd.Process.Signal(unix.SIGSTOP)) // a signal to end waits for it to go on
	gaveUp := errors.New("no more patience")
	ctx, cancel := context.WithTimeoutCause(context.Background(), 100*time.Millisecond, gaveUp)
	defer cancel()
	err := s.Pause(ctx, s.only())
	if OutcomeOf(err) != Stopped || !errors.Is(err, gaveUp) || !strings.Contains(err.Error(), fmt.Sprint(cmd.Process.Pid)) {
		t.Errorf("%v", err)
	}
}

func TestPauseOfUnknownProcess(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", 4*mib)
	id := s.interrupt("image", "moved", slowly(), committed).last().ID
	lock, err := s.lock(id)
	s.must(err)
	s.must(os.WriteFile(s.lockPath(id), nil, 0o600))
	s.wantRefused("has not said which it is", func() error { return s.Pause(context.Background(), id) })
	s.must(lock.Unlock())
	s.wantRefused("no such migration", func() error { return s.Pause(context.Background(), "nobody") })
}

// fault 71: a mistake of ours ends the process, which is a crash like any other.
func TestFault71PanicInAWorker(t *testing.T) {
	s := newSite(t)
	content := s.image("image", 4*mib)
	text, err := json.Marshal(childRequest{StateDir: s.stateDir, Request: s.request("image", "moved", moving()), Panics: true})
	s.must(err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "panic: a mistake of ours") {
		t.Fatalf("%v: %s", err, out)
	}
	if sum := s.summary(s.look(s.only())); sum.Phase != "running" || sum.Hydrated == 0 {
		t.Errorf("%+v", sum)
	}
	s.migrate("image", "moved", moving())
	s.wantContent("moved", content)
}
