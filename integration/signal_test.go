package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fault 64: the first signal commits what was copied, so that nothing is copied
// again; the code is 3, and the message says how to go on.
func TestFault64SignalsCommitFirst(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			source, destination := s.path("image"), s.path("moved")
			made := makeImage(t, source, 48*mib, 60, mixed)
			r := s.startMove(source, destination, slowly...)
			r.awaitCommitted(2)
			time.Sleep(30 * time.Millisecond) // into a transaction
			r.signal(signal)
			begun := time.Now()
			o := s.want(3, r.wait())
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("it took %v to stop", took)
			}
			wantEvents(t, o, "stopped")
			e := o.last()
			if e.BytesCommitted != e.BytesCopied || e.BytesDiscarded != e.BytesCommitted {
				t.Errorf("copied, but not committed and discarded: %+v", e)
			}
			if e.BytesCopied >= e.BytesData {
				t.Fatalf("nothing was left to do: %+v", e)
			}
			s.wantMessage(o, "resume")
			next := s.want(0, s.move(source, destination, "--discard-src"))
			wantEvents(t, next, "done")
			if got := next.events[0].BytesCopied; got != e.BytesCopied {
				t.Errorf("%d bytes were copied, the next run began at %d", e.BytesCopied, got)
			}
			wantWhole(t, destination, made)
			wantEmptied(t, source, made)
		})
	}
}

// fault 66: nohup takes SIGHUP away.
func TestFault66NoHup(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 24*mib, 61, mixed)
	r := s.under([]string{"nohup"}, moveArguments(source, destination, slowly)...)
	r.awaitCommitted(1)
	r.signal(syscall.SIGHUP)
	s.want(0, r.wait())
	wantWhole(t, destination, made)
}

// fault 66: a reader of standard output that goes away does not stop a migration.
func TestFault66ClosedPipes(t *testing.T) {
	for _, form := range []string{"json", "plain", "bar"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			source, destination := s.path("image"), s.path("moved")
			made := makeImage(t, source, 24*mib, 62, mixed)
			line := append([]string{"--state-dir", s.state, "--progress=" + form}, slowly...)
			cmd := exec.Command(migratePath, append(line, source, destination)...)
			read, write, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdout, cmd.Stderr = write, write
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			write.Close()
			if _, err := read.Read(make([]byte, 10)); err != nil {
				t.Errorf("nothing was written: %v", err)
			}
			read.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("without a reader: %v", err)
			}
			wantWhole(t, destination, made)
			wantEmptied(t, source, made)
		})
	}
}

// fault 66: a limit on the size of files costs a migration its end, not its life in
// the middle of a commit, and not a byte.
func TestFault66FileSizeLimit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 1*mib, 63, solid)
	// Many small transactions make the journal larger than the destination.
	flags := []string{"--discard-src", "--region-size=4KiB", "--commit-bytes=4KiB", "--batch=1"}
	limit := []string{"prlimit", fmt.Sprintf("--fsize=%d", made.bytes)}
	o := s.under(limit, moveArguments(source, destination, flags)...).wait()
	if o.code == 0 {
		t.Fatalf("the limit was not reached: %v", o)
	}
	s.want(3, o)
	wantEvents(t, o, "stopped")
	s.want(0, s.move(source, destination, flags...))
	wantWhole(t, destination, made)
}

// fault 66: a limit that leaves no room for the destination.
func TestFault66FileSizeLimitBelowTheDestination(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	makeImage(t, source, 1*mib, 63, solid)
	before := treeOf(t, source)
	o := s.under([]string{"prlimit", "--fsize=65536"}, moveArguments(source, destination, []string{"--discard-src"})...).wait()
	if o.code != 4 {
		t.Errorf("want code 4: %v", o)
	}
	if exists(destination) {
		t.Error("there is a destination now")
	}
	if diff := before.difference(treeOf(t, source)); diff != "" {
		t.Error(diff)
	}
}

// fault 65: a stopped process goes on where it was.
func TestFault65StoppedAndContinued(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 24*mib, 64, mixed)
	r := s.startMove(source, destination, slowly...)
	r.awaitCommitted(1)
	r.signal(syscall.SIGSTOP)
	time.Sleep(1500 * time.Millisecond)
	r.signal(syscall.SIGCONT)
	o := s.want(0, r.wait())
	wantEvents(t, o, "done")
	wantWhole(t, destination, made)
	wantEmptied(t, source, made)
}

// fault 65, fault 5: what somebody writes to the source while the process is stopped
// is seen before anything more is discarded.
func TestFault65SourceWrittenWhileStopped(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	makeImage(t, source, 48*mib, 65, solid)
	r := s.startMove(source, destination, slowly...)
	r.awaitCommitted(2)
	r.signal(syscall.SIGSTOP)
	waitStopped(t, r)
	time.Sleep(200 * time.Millisecond)
	overwrite(t, source, 40*mib, []byte("written by somebody else"))
	taken := allocated(t, source)
	r.signal(syscall.SIGCONT)
	o := s.want(3, r.wait())
	wantEvents(t, o, "stopped")
	if now := allocated(t, source); now < taken {
		t.Errorf("%d bytes were discarded afterwards", taken-now)
	}
	s.wantMessage(o, "changed")
	s.wantMessage(s.wantMoveRefused(source, destination, slowly...), "modified")
}

// waitStopped waits until the kernel has stopped every thread of the program.
func waitStopped(t *testing.T, r *running) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
		if err == nil && strings.Contains(string(status), "State:\tT") {
			return
		}
	}
	t.Fatal("the program does not stop")
}

// fault 1: a source that is cut off in the middle of a run.
func TestFault1SourceTruncatedMidRun(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 48*mib, 66, solid)
	copyFile(t, source, s.path("as it was"))
	r := s.startMove(source, destination, slowly...)
	r.awaitCommitted(2)
	r.signal(syscall.SIGSTOP)
	waitStopped(t, r)
	if err := os.Truncate(source, 40*mib); err != nil {
		t.Fatal(err)
	}
	taken := allocated(t, source)
	r.signal(syscall.SIGCONT)
	o := s.want(3, r.wait())
	if now := allocated(t, source); now < taken {
		t.Errorf("%d bytes were discarded afterwards", taken-now)
	}
	// What was committed is right, and no zeros were made up for the rest.
	was, is, committed := readFile(t, s.path("as it was")), readFile(t, destination), o.last().BytesCommitted
	if int64(len(is)) != made.bytes || is[:committed] != was[:committed] {
		t.Errorf("the first %d bytes are committed and not what they were", committed)
	}
	if show := s.want(0, s.run("show", o.last().ID, "--json")); !strings.Contains(show.stdout, `"phase":"running"`) && !strings.Contains(show.stdout, `"phase": "running"`) {
		t.Errorf("the migration counts as ended: %s", show.stdout)
	}
	s.wantMoveRefused(source, destination, slowly...)
}

// fault 2: a source that grows in the middle of a run keeps its recorded size, and
// the end is refused.
func TestFault2SourceGrowsMidRun(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	makeImage(t, source, 24*mib, 67, solid)
	r := s.startMove(source, destination, slowly...)
	r.awaitCommitted(2)
	if err := os.Truncate(source, 25*mib); err != nil {
		t.Fatal(err)
	}
	s.want(3, r.wait())
	s.wantMoveRefused(source, destination, slowly...)
}
