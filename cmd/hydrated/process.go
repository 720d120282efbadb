package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"

	"decant/service"
)

// harden makes this process one that leaves nothing behind: no image of its memory, which
// holds bytes of disk images, and no file that others can read. It does not die of a
// closed pipe or of a limit on the size of files: writing fails then, and what fails is
// handled where it is written. The signals are caught and not ignored, because programs
// that are started inherit what is ignored.
func harden() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	unix.Umask(0o077)
	// What the caller has left open is none of the programs' that are started here. A
	// kernel before 5.11 does not know how, and then only the caller can see to it.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE, unix.SIGXFSZ)
	return os.Chdir("/") // so that no directory stays in use
}

// errTerminated is why everything ends.
var errTerminated = errors.New("told to end")

// signals obeys signals until done is closed: the first SIGTERM or SIGINT calls stop, the
// second one ends the process, as a crash would, and the next start settles it. SIGHUP
// calls reload.
func obeySignals(done <-chan struct{}, log *slog.Logger, stop func(error), reload func()) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)
	told := false
	for {
		select {
		case <-done:
			return
		case s := <-signals:
			switch {
			case s == unix.SIGHUP:
				reload()
			case told:
				os.Exit(exitAtOnce)
			default:
				told = true
				log.Info("ending; again to end at once", "signal", s.String())
				stop(errTerminated)
			}
		}
	}
}

// exitAtOnce is the code for stopped migrations: nothing is lost, they go on.
const exitAtOnce = 3

// serveSafely starts this program anew as one that the kernel never makes wait for writes
// to a device that it serves. It returns if that has been done, or cannot be; the service
// then warns of it where it matters. Descriptors and the environment, and so what systemd
// hands over, stay.
func serveSafely() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if news, err := service.BecomeFlusher(); !news || err != nil {
		return
	}
	path, err := os.Executable()
	if err != nil {
		return
	}
	// It returns only if it fails, and then nothing has changed.
	_ = unix.Exec(path, os.Args, os.Environ())
}
