package thin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoLVM: the commands of lvm2 are not installed.
var ErrNoLVM = errors.New("LVM is not installed")

// lvm2 runs LVM's own commands. Nothing in this package changes what LVM owns in any
// other way. Every command is given the name of one volume group, and only that is
// activated or changed; whether LVM looks for groups inside volumes, which may be a
// guest's, is up to its own configuration, and by default it does not.
type lvm2 struct {
	dirs    []string // where the program lvm may be
	timeout time.Duration
}

// systemLVM is the one of this host.
func systemLVM() lvm2 {
	return lvm2{dirs: []string{"/sbin", "/usr/sbin", "/bin", "/usr/bin"}, timeout: 5 * time.Minute}
}

// program is the absolute path of LVM's one program, which has all of its commands.
func (l lvm2) program() (string, error) {
	for _, dir := range l.dirs {
		path := filepath.Join(dir, "lvm")
		if stat, err := os.Stat(path); err == nil && stat.Mode().IsRegular() && unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", &Error{
		Op: "find the commands of LVM", Object: "lvm", State: "is not in " + strings.Join(l.dirs, ", "), Err: ErrNoLVM,
		Hint: "install the package lvm2",
	}
}

// keptVariables come from the environment of this process to LVM's. All others stay
// out, because many of them change what LVM or its loader does. LVM_SYSTEM_DIR is
// where the configuration of LVM is, and with another one there would be other
// groups than the administrator's commands show; DM_DISABLE_UDEV says that nobody
// will answer on a host without udev, where LVM would wait for ever.
var keptVariables = []string{"LVM_SYSTEM_DIR", "DM_DISABLE_UDEV"}

// environment of LVM's commands.
func environment() []string {
	env := []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", // for the programs that LVM starts
		"LC_ALL=C",
		"LVM_SUPPRESS_FD_WARNINGS=1",
	}
	for _, name := range keptVariables {
		if value, set := os.LookupEnv(name); set {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// commandError is a command of LVM that failed.
type commandError struct {
	command string
	code    int // -1 if it was ended by a signal
	text    string
}

func (e *commandError) Error() string {
	text := strings.Join(strings.Fields(e.text), " ")
	if text == "" {
		text = fmt.Sprintf("it ended with code %d", e.code)
	}
	return "lvm " + e.command + ": " + text
}

// run runs a command of LVM and returns its standard output, also if it failed. The
// error has what it said.
func (l lvm2) run(command string, args ...string) ([]byte, error) {
	filter, err := l.passOver()
	if err != nil {
		return nil, err
	}
	return l.execute(command, withConfig(filter, args)...)
}

func (l lvm2) execute(command string, args ...string) ([]byte, error) {
	program, err := l.program()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{command}, args...)...)
	cmd.Env = environment()
	cmd.Dir = "/"
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// An interrupt at the terminal is for this program; LVM ends what it has begun.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	// LVM puts the signal off until what it changes is whole. The end comes by force
	// only where it does not answer at all.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = time.Minute
	err = cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("lvm %s did not end within %s: %w", command, l.timeout, ctx.Err())
	case errors.As(err, &exit):
		err = &commandError{command: command, code: exit.ExitCode(), text: stderr.String()}
	}
	return stdout.Bytes(), err
}
