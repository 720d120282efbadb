package service

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"decant/journal"
)

// Pause makes the process that works on a migration commit and stop, and returns
// when it has. The migration goes on with Resume, or with the same command again.
func (s *Service) Pause(ctx context.Context, id string) error {
	id, err := s.resolveID(id)
	if err != nil {
		return err
	}
	held, active := s.held(id)
	if !active {
		return refuse(id, "no process works on it", "it is paused already, or has ended; see: migrate show "+id, nil)
	}
	pid := held.PID
	if held.Holder == serviceHolder && pid != os.Getpid() {
		return refuse(id, fmt.Sprintf("the service (process %d) works on it, and would stop all of its migrations", pid),
			"pause it through the service: run migrate pause as root, or as a member of the group of the service's socket", nil)
	}
	if pid <= 0 || pid == os.Getpid() {
		return refuse(id, "the process that works on it has not said which it is", "try again", nil)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		return refuse(id, fmt.Sprintf("process %d, which works on it, cannot be told to stop", pid), "stop that process yourself", err)
	}
	const poll = 20 * time.Millisecond
	for {
		if _, active := s.held(id); !active {
			return s.notePause(id)
		}
		select {
		case <-ctx.Done():
			return &Error{Outcome: Stopped, Object: id, Problem: fmt.Sprintf("process %d was told to stop and has not ended yet", pid), Err: context.Cause(ctx)}
		case <-time.After(poll):
		}
	}
}

// notePause keeps a service that is started later from going on with the migration
// unasked. It is a failure to be told of, but the migration is paused all the same.
func (s *Service) notePause(id string) error {
	if k := s.look(id); k.err == nil && k.state.Phase != journal.Running {
		return nil // it has ended instead
	}
	return s.amend(id, func(r *record) { r.Paused = true })
}
