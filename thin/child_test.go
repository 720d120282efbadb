package thin

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Some tests need a second process, to be killed or to compete with. It is this
// binary again, with its task in the environment.
const childTask = "THIN_TEST_CHILD"

func TestMain(m *testing.M) {
	if task := os.Getenv(childTask); task != "" {
		if err := runChild(strings.Fields(task)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child prepares a process that does a task with the pool.
func child(p *DirectoryPool, task ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childTask+"="+strings.Join(append([]string{p.registry.stateDir, p.name}, task...), " "))
	cmd.Stderr = os.Stderr
	return cmd
}

// mustDie runs a child and fails unless it killed itself.
func mustDie(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Fatalf("the child ended with %v, and should have killed itself", err)
	}
}

// runChild does a task: STATE-DIR POOL TASK ARGUMENT...
func runChild(args []string) error {
	p, err := NewRegistry(args[0]).openNamed(args[1])
	if err != nil {
		return err
	}
	switch task := args[2:]; task[0] {
	case "crash":
		err = crashIn(p, task[1], strings.ReplaceAll(task[2], "_", " "))
	case "fill":
		err = fill(p, task[1])
	case "hold":
		err = hold(p, task[1])
	}
	return errors.Join(err, p.Close())
}

// crashIn starts a change and kills the process after a step of it.
func crashIn(p *DirectoryPool, change, step string) error {
	p.crashPoint = func(s string) {
		if s == step {
			dieNow()
		}
	}
	switch change {
	case "create":
		_, err := p.CreateVolume("v", 1<<20, []byte("blob"))
		return err
	case "delete":
		return p.DeleteVolume("v")
	case "destroy":
		return p.Destroy()
	case "settle":
		return p.lock.with(func() error {
			if _, err := p.catalog.add(volumeRecord{name: "v", sizeBytes: 1 << 20}); err != nil {
				return err
			}
			if err := os.WriteFile(p.volumePath("v"), []byte("half"), 0o600); err != nil {
				return err
			}
			return p.settle()
		})
	}
	return fmt.Errorf("no such change: %s", change)
}

func dieNow() {
	// It cannot fail, and does not return.
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// fill writes to a volume until the pool is full. It says when it is ready, begins
// when its standard input ends, and says how much it has written.
func fill(p *DirectoryPool, name string) error {
	v, err := p.OpenVolume(name, true)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := os.Stdin.Read(make([]byte, 1)); err == nil {
		return errors.New("standard input says something")
	}
	const piece = 64 << 10
	data := make([]byte, piece)
	for i := range data {
		data[i] = byte(i) | 1
	}
	for off := int64(0); ; off += piece {
		_, err := v.WriteAt(data, off)
		if errors.Is(err, unix.ENOSPC) {
			fmt.Println(off)
			return v.Close()
		}
		if err != nil {
			return errors.Join(err, v.Close())
		}
	}
}

// hold opens a volume, writes a little, says so, and waits to be killed.
func hold(p *DirectoryPool, name string) error {
	v, err := p.OpenVolume(name, true)
	if err != nil {
		return err
	}
	if _, err := v.WriteAt(make([]byte, p.blockBytes), 0); err != nil {
		return errors.Join(err, v.Close())
	}
	fmt.Println("ready")
	time.Sleep(time.Minute)
	return errors.New("nobody killed it")
}
