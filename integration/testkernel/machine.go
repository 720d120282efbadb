package testkernel

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const kernelProgram = "linux.uml"

// Config says what to boot. The zero value of every field but Command and Script,
// one of which must be there, is good.
type Config struct {
	MemoryBytes int64         // 1 GiB if 0
	Disks       []string      // files of the host; the first is /dev/ubda, at most 16
	Command     []string      // program and arguments to run inside
	Script      string        // shell script to run inside, in place of Command
	Dir         string        // working directory inside, read-only; a writable one if empty
	Env         []string      // KEY=VALUE, besides what the package itself sets
	Modules     []string      // nil means DefaultModules; those they need come along
	Timeout     time.Duration // from power on to verdict; 2 minutes if 0
}

// Verdict is what came out of a machine that ended by itself.
type Verdict struct {
	ExitCode int           // of the command or script; 128 and more means a signal
	Output   string        // its standard output and standard error
	Console  string        // of the kernel
	Boot     time.Duration // from power on to the start of the command
	Total    time.Duration // from power on to power off
}

// Machine is a running kernel. Its methods may be called by one goroutine at a time.
type Machine struct {
	t       testing.TB
	timeout time.Duration
	dir     string // files exchanged with the inside
	cmd     *exec.Cmd
	output  *recorder
	console *recorder
	start   time.Time
	ended   chan struct{} // closed when no process of the machine is left
	cut     sync.Once
	late    atomic.Bool // the cut was the timeout's
}

// Boot starts a machine, which is dead by the end of the test in any case. The test
// fails at once if the machine cannot be started.
func Boot(t testing.TB, c Config) *Machine {
	t.Helper()
	m := &Machine{
		t: t, timeout: cmp.Or(c.Timeout, 2*time.Minute), dir: exchangeDir(t),
		output: newRecorder(), console: newRecorder(), ended: make(chan struct{}),
	}
	if err := m.prepare(c); err != nil {
		t.Fatalf("prepare a test kernel: %v", err)
	}
	if err := m.powerOn(); err != nil {
		t.Fatalf("start %s: %v", kernelProgram, err)
	}
	alarm := time.AfterFunc(m.timeout, func() { m.kill(true) })
	t.Cleanup(func() {
		alarm.Stop()
		m.PowerCut()
		if t.Failed() {
			t.Logf("end of the test kernel's console:\n%s", tail(m.console.String()))
		}
	})
	return m
}

// exchangeDir is short and of harmless characters, because it is written on the
// kernel's command line.
func exchangeDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "testkernel") //nolint:usetesting // TempDir contains the test's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a temporary directory at worst stays
	return dir
}

// Wait returns when the machine has powered off by itself. A machine that ends in
// any other way, at the timeout or without a verdict, fails the test at once.
func (m *Machine) Wait() Verdict {
	m.t.Helper()
	v, err := m.wait()
	if err != nil {
		m.t.Fatalf("%v; end of its output:\n%s", err, tail(v.Output))
	}
	return v
}

// wait has an error for a machine that did not end by itself, and a Verdict with all
// but an exit code.
func (m *Machine) wait() (Verdict, error) {
	<-m.ended
	v := Verdict{Output: m.Output(), Console: m.console.String(), Boot: m.bootTime(), Total: time.Since(m.start)}
	if m.late.Load() {
		return v, fmt.Errorf("the test kernel did not end within %v", m.timeout)
	}
	var err error
	if v.ExitCode, err = m.verdict(); err != nil {
		return v, fmt.Errorf("the test kernel ended without a verdict: %w", err)
	}
	return v, nil
}

// WaitOutput returns when the output so far matches the regular expression, with the
// text of the first match. It fails the test at once if the machine ends without it.
func (m *Machine) WaitOutput(expression string) string {
	m.t.Helper()
	found, ok := m.output.wait(regexp.MustCompile(expression))
	if !ok {
		m.t.Fatalf("the test kernel ended, and its output never matched %q:\n%s", expression, tail(m.Output()))
	}
	return found
}

// Output is the standard output and standard error of the command so far.
func (m *Machine) Output() string { return m.output.String() }

// PowerCut ends the machine between two of its instructions. On return none of its
// processes is left, and its disks can be used again. A machine that has ended stays
// as it is.
func (m *Machine) PowerCut() { m.kill(false) }

func (m *Machine) kill(late bool) {
	m.cut.Do(func() {
		select {
		case <-m.ended:
			return
		default:
		}
		m.late.Store(late)
		_ = m.cmd.Process.Kill() // fails if it has ended meanwhile, which is as good
	})
	<-m.ended
}

// verdict is the exit code that the machine left behind as its last act.
func (m *Machine) verdict() (int, error) {
	b, err := os.ReadFile(filepath.Join(m.dir, verdictFile))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

func (m *Machine) bootTime() time.Duration {
	started, err := os.Stat(filepath.Join(m.dir, startedFile))
	if err != nil {
		return 0 // a figure for the log, no more
	}
	return started.ModTime().Sub(m.start)
}

// powerOn starts the kernel as the first process of a PID namespace. It consists of
// several processes, and when the first dies the host kills all others and waits for
// them: no helper of a machine without power goes on writing to its disks.
func (m *Machine) powerOn() error {
	outputRead, outputWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	consoleRead, consoleWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	m.cmd.Stdout, m.cmd.Stderr = consoleWrite, consoleWrite
	m.cmd.ExtraFiles = []*os.File{outputWrite} // descriptor 3, the kernel's con1
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL, // also when the test is killed
	}
	var readers sync.WaitGroup
	readers.Go(func() { m.output.readFrom(outputRead) })
	readers.Go(func() { m.console.readFrom(consoleRead) })

	started := make(chan error)
	go func() {
		// The signal at the parent's death comes when this thread ends.
		runtime.LockOSThread()
		m.start = time.Now()
		processors, err := holdOnOneProcessor()
		if err == nil {
			err = m.cmd.Start()
		}
		_ = outputWrite.Close() // the kernel has its own copies
		_ = consoleWrite.Close()
		started <- err
		if err == nil {
			readers.Go(func() { m.freeHelpers(processors) })
			go m.keepTime()
			_ = m.cmd.Wait() // its exit code means nothing, the verdict counts
		}
		readers.Wait()
		close(m.ended)
	}()
	return <-started
}

// recorder keeps a stream that is read while it grows.
type recorder struct {
	mu    sync.Mutex
	grown *sync.Cond
	bytes bytes.Buffer
	ended bool
}

func newRecorder() *recorder {
	r := &recorder{}
	r.grown = sync.NewCond(&r.mu)
	return r
}

func (r *recorder) readFrom(f *os.File) {
	defer func() { _ = f.Close() }() // only read
	chunk := make([]byte, 64<<10)
	for {
		n, err := f.Read(chunk)
		r.mu.Lock()
		r.bytes.Write(chunk[:n])
		r.ended = err != nil
		r.grown.Broadcast()
		r.mu.Unlock()
		if err != nil {
			return // the end of the machine
		}
	}
}

func (r *recorder) wait(want *regexp.Regexp) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if found := want.Find(r.bytes.Bytes()); found != nil {
			return string(found), true
		}
		if r.ended {
			return "", false
		}
		r.grown.Wait()
	}
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes.String()
}

// tail is the end of a long text, enough to see what went wrong.
func tail(s string) string {
	const lines = 30
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(all) > lines {
		all = append([]string{fmt.Sprintf("(%d lines before)", len(all)-lines)}, all[len(all)-lines:]...)
	}
	return strings.Join(all, "\n")
}

// NewDisk makes a disk of that size, sparse, which lives as long as the test. Boot it
// as often as you like.
func NewDisk(t testing.TB, bytes int64) string {
	t.Helper()
	return newDisk(t, t.TempDir(), bytes)
}

// NewMemoryDisk makes a disk in the memory of the host where all of it has room there,
// for measurements that are not of the host's disk; else it is NewDisk.
func NewMemoryDisk(t testing.TB, bytes int64) string {
	t.Helper()
	if !fitsIntoMemory(bytes) {
		return NewDisk(t, bytes)
	}
	disk := newDisk(t, memoryFiles, bytes)
	t.Cleanup(func() { _ = os.Remove(disk) }) // at worst it stays until the host restarts
	return disk
}

func newDisk(t testing.TB, dir string, bytes int64) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "disk")
	if err == nil {
		err = f.Truncate(bytes)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatalf("make a disk: %v", err)
	}
	return f.Name()
}
