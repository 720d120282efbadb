package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a started program may take for anything.
const patience = 10 * time.Second

// started is this program in a process of its own, with a fake service.
type started struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr *bufio.Reader
	all    bytes.Buffer // of standard error, as far as it was read
}

// start starts the program with a fake service that behaves so; wrap, if any, is a
// shell line that starts it as "$@".
func start(t *testing.T, behaviour, wrap string, args ...string) *started {
	t.Helper()
	words := append([]string{os.Args[0]}, args...)
	if wrap != "" {
		words = append([]string{"/bin/sh", "-c", wrap, "sh"}, words...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	s := &started{t: t, cmd: exec.CommandContext(ctx, words[0], words[1:]...)}
	s.cmd.Env = append(os.Environ(), "DECANT_MIGRATE_FAKE="+behaviour, "DECANT_MIGRATE_FILE="+filepath.Join(t.TempDir(), "file"))
	pipe, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stderr = bufio.NewReader(io.TeeReader(pipe, &s.all))
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.cmd.Process.Kill() }) // it has mostly ended by then
	return s
}

func (s *started) file() string {
	for _, variable := range s.cmd.Env {
		if path, ok := strings.CutPrefix(variable, "DECANT_MIGRATE_FILE="); ok {
			return path
		}
	}
	return ""
}

// tell makes the file that a run may wait for.
func (s *started) tell() {
	s.t.Helper()
	if err := os.WriteFile(s.file(), nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// waitFor reads standard error up to a line that holds text.
func (s *started) waitFor(text string) {
	s.t.Helper()
	for {
		line, err := s.stderr.ReadString('\n')
		if strings.Contains(line, text) {
			return
		}
		if err != nil {
			s.t.Fatalf("no %q on standard error, but %q (%v)", text, s.all.String(), err)
		}
	}
}

func (s *started) signal(signal unix.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
}

// exitCode waits for the end; a death by signal is -1.
func (s *started) exitCode() int {
	s.t.Helper()
	_, _ = io.Copy(io.Discard, s.stderr) // ends with the process
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return s.cmd.ProcessState.ExitCode()
}

const stopping = "stopping: committing what was copied (press again to stop at once)"

// fault 64: SIGTERM; fault 66: SIGHUP
func TestFirstSignalStopsInOrder(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		for _, args := range []string{"/a pool/v", "resume m1", "reverse m1"} {
			t.Run(fmt.Sprintf("%s, %s", signal, args), func(t *testing.T) {
				t.Parallel()
				s := start(t, "until-stopped", "", strings.Fields(args)...)
				s.waitFor("starting m1")
				s.signal(signal)
				if code := s.exitCode(); code != 3 {
					t.Errorf("exit code %d, want 3: %s", code, s.all.String())
				}
				want := stopping + "\nstopped: 10%, 102 MiB of 1.0 GiB, 51 MiB freed\nmigrate: m1: stopped: interrupted by " +
					unix.SignalName(signal) + "\nhint: the same command goes on\n"
				if !strings.HasSuffix(s.all.String(), want) {
					t.Errorf("standard error\n%swant at its end\n%s", s.all.String(), want)
				}
			})
		}
	}
}

// fault 64: second SIGTERM
func TestSecondSignalStopsAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t, "stuck", "", "/a", "pool/v")
	s.waitFor("starting m1")
	s.signal(unix.SIGTERM)
	s.waitFor(stopping)
	time.Sleep(2 * sameSignal)
	s.signal(unix.SIGINT)
	if code := s.exitCode(); code != 3 {
		t.Errorf("exit code %d, want 3: %s", code, s.all.String())
	}
}

// The reader of standard error is stopped, too: the pipe is full, and the message
// of the first signal cannot be written.
func TestSecondSignalWorksWhenNobodyReads(t *testing.T) {
	t.Parallel()
	s := start(t, "chatter", "", "/a", "pool/v")
	s.waitFor("warning")
	time.Sleep(300 * time.Millisecond) // 64 KiB of warnings fill the pipe
	s.signal(unix.SIGINT)
	time.Sleep(2 * sameSignal)
	s.signal(unix.SIGINT)
	state := make(chan int, 1)
	go func() {
		state <- s.exitCodeUnread()
	}()
	select {
	case code := <-state:
		if code != 3 {
			t.Errorf("exit code %d, want 3", code)
		}
	case <-time.After(patience / 2):
		t.Error("it does not end")
	}
}

// exitCodeUnread is exitCode without reading what is left.
func (s *started) exitCodeUnread() int {
	state, err := s.cmd.Process.Wait()
	if err != nil {
		return -2
	}
	return state.ExitCode()
}

// timeout(1) and some supervisors signal the process and its group: that is once.
func TestASignalThatComesTwiceAtOnceIsOneSignal(t *testing.T) {
	t.Parallel()
	s := start(t, "until-stopped", "", "/a", "pool/v")
	s.waitFor("starting m1")
	s.signal(unix.SIGTERM)
	s.waitFor(stopping)
	s.signal(unix.SIGTERM)
	if code := s.exitCode(); code != 3 || !strings.Contains(s.all.String(), "hint: the same command goes on") {
		t.Errorf("exit code %d, standard error %s", code, s.all.String())
	}
}

// fault 66: SIGHUP under nohup
func TestIgnoredHangupStaysIgnored(t *testing.T) {
	t.Parallel()
	s := start(t, "until-told", `trap "" HUP; exec "$@"`, "/a", "pool/v")
	s.waitFor("starting m1")
	s.signal(unix.SIGHUP)
	time.Sleep(100 * time.Millisecond)
	s.tell()
	if code := s.exitCode(); code != 0 || strings.Contains(s.all.String(), stopping) {
		t.Errorf("exit code %d, want 0 and no stop: %s", code, s.all.String())
	}
}

// fault 66: SIGHUP
func TestHangupsAfterTheFirstDoNotHurry(t *testing.T) {
	t.Parallel()
	s := start(t, "until-told", "", "/a", "pool/v")
	s.waitFor("starting m1")
	s.signal(unix.SIGHUP)
	s.waitFor(stopping)
	time.Sleep(2 * sameSignal)
	s.signal(unix.SIGHUP)
	time.Sleep(2 * sameSignal)
	s.tell()
	if code := s.exitCode(); code != 0 {
		t.Errorf("exit code %d, want that of a run that came to its end: %s", code, s.all.String())
	}
}

// fault 66: SIGPIPE
func TestMigrationOutlivesTheReadersOfItsProgress(t *testing.T) {
	for _, form := range []string{"json", "plain", "none"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			s := start(t, "chatter", `"$@" 2>&1 | head -n 1 >&2; exit 0`, "--progress", form, "/a", "pool/v")
			s.exitCode()
			deadline := time.Now().Add(patience)
			for {
				content, err := os.ReadFile(s.file())
				if err == nil && string(content) == "whole" {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("the migration has not ended: %v; %s", err, s.all.String())
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
}

// fault 66: SIGPIPE; the code is 0 although the summary found no reader
func TestClosedStandardErrorDoesNotChangeTheExitCode(t *testing.T) {
	t.Parallel()
	s := start(t, "short", `code=$( { { "$@"; echo $? >&3; } 2>&1 >/dev/null | true; } 3>&1 ); echo "code $code" >&2`, "/a", "pool/v")
	s.waitFor("code 0")
}

func TestTheAnnouncementOfAStopComesBeforeTheEnd(t *testing.T) {
	announced := false
	p := newWorld(&fakeService{}).program
	ctx, release := p.interruptible(context.Background(), func() {
		time.Sleep(20 * time.Millisecond)
		announced = true
	})
	if err := unix.Kill(unix.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	release()
	if !announced {
		t.Error("released before the announcement was made")
	}
	if got := context.Cause(ctx); !errors.Is(got, interrupted{unix.SIGTERM}) {
		t.Errorf("the cause is %v", got)
	}
}

// fault 66: SIGXFSZ, which the Go runtime catches as long as nobody asks for it
func TestFileSizeLimitIsAnErrorAndNotDeath(t *testing.T) {
	t.Parallel()
	s := start(t, "file-limit", "", "/a", "pool/v")
	if code := s.exitCode(); code != 3 || !strings.Contains(s.all.String(), "file too large") {
		t.Errorf("exit code %d, standard error %s", code, s.all.String())
	}
}

// pseudoTerminal opens both ends of a terminal of this many columns.
func pseudoTerminal(t *testing.T, columns uint16) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(master.Close(), terminal.Close()) }) // nothing is left in them
	return master, terminal
}

func TestBarOnARealTerminalAndPlainOnADumbOne(t *testing.T) {
	for name, want := range map[string]string{"xterm": "100% |████", "dumb": "of 2.0 GiB to copy\r\ndone: "} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			master, terminal := pseudoTerminal(t, 90)
			cmd := exec.Command(os.Args[0], "/a", "pool/v")
			cmd.Env = append(os.Environ(), "DECANT_MIGRATE_FAKE=short", "TERM="+name, "LC_ALL=C.UTF-8")
			cmd.Stderr = terminal
			var text bytes.Buffer
			read := make(chan struct{})
			go func() {
				defer close(read)
				_, _ = io.Copy(&text, master) // ends with an error when the terminal is closed
			}()
			out, err := cmd.Output()
			if err := terminal.Close(); err != nil {
				t.Fatal(err)
			}
			<-read
			if err != nil || len(out) > 0 {
				t.Errorf("%v; standard output %q", err, out)
			}
			if !strings.Contains(text.String(), want) || !strings.HasSuffix(text.String(), "of extra space taken\r\n") {
				t.Errorf("the terminal shows %q", text.String())
			}
			screenLines(t, text.String(), 90)
		})
	}
}
