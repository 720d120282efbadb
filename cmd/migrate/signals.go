package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"decant/service"
)

// sameSignal is the time in which a signal that comes twice is one signal. Some
// senders, such as timeout(1), signal the process and then its whole group.
const sameSignal = 100 * time.Millisecond

// interrupted is why a migration was told to stop.
type interrupted struct{ signal os.Signal }

func (i interrupted) Error() string {
	if number, ok := i.signal.(syscall.Signal); ok {
		return fmt.Sprintf("interrupted by %s", unix.SignalName(number))
	}
	return fmt.Sprintf("interrupted by %s", i.signal)
}

// interruptible is a context that the first SIGINT, SIGTERM or SIGHUP cancels, with
// the signal as its cause; announce is called after that. The second ends the
// process with the code for a stopped migration: whatever is half done is what a
// crash would leave, and the next run settles it. A SIGHUP that was ignored at the
// start (nohup) stays ignored, and none counts as the second signal, since the
// kernel and the shell may both send one when a terminal goes away. release gives
// the signals back; it is called once.
func (p *program) interruptible(parent context.Context, announce func()) (ctx context.Context, release func()) {
	wanted := []os.Signal{unix.SIGINT, unix.SIGTERM}
	if !signal.Ignored(unix.SIGHUP) {
		wanted = append(wanted, unix.SIGHUP)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, wanted...)
	ctx, cancel := context.WithCancelCause(parent)
	ended, announced, released := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		select {
		case <-ended:
			close(announced)
			return
		case first := <-signals:
			cancel(interrupted{first})
		}
		// Standard error may be a pipe that nobody reads; the second signal
		// has to work all the same.
		go func() {
			announce()
			close(announced)
		}()
		p.obeySecond(signals, released, time.Now())
	}()
	return ctx, func() {
		close(ended)
		<-announced // so that it does not come after the end
		close(released)
		signal.Stop(signals)
		cancel(context.Canceled)
	}
}

func (p *program) obeySecond(signals <-chan os.Signal, released <-chan struct{}, first time.Time) {
	for {
		select {
		case <-released:
			return
		case again := <-signals:
			if again != unix.SIGHUP && time.Since(first) >= sameSignal {
				p.exitAtOnce(int(service.Stopped))
				return
			}
		}
	}
}

// surviveClosedPipes turns writing into a pipe that nobody reads any more from
// death into EPIPE, until the process ends: nobody to show progress to is no
// reason to stop a migration. The signal is caught and not ignored, because
// programs that are started inherit what is ignored.
func surviveClosedPipes() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
}
