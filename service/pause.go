package service

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Pause makes the process that works on a migration commit and stop, and returns
// when it has. The migration goes on with Resume, or with the same command again.
func (s *Service) Pause(ctx context.Context, id string) error {
	id, err := s.resolveID(id)
	if err != nil {
		return err
	}
	pid, active := s.worker(id)
	if !active {
		return refuse(id, "no process works on it", "it is paused already, or has ended; see: migrate show "+id, nil)
	}
	if pid <= 0 {
		return refuse(id, "the process that works on it has not said which it is", "try again", nil)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		return refuse(id, fmt.Sprintf("process %d, which works on it, cannot be told to stop", pid), "stop that process yourself", err)
	}
	const poll = 20 * time.Millisecond
	for {
		if _, active := s.worker(id); !active {
			return nil
		}
		select {
		case <-ctx.Done():
			return &Error{Outcome: Stopped, Object: id, Problem: fmt.Sprintf("process %d was told to stop and has not ended yet", pid), Err: context.Cause(ctx)}
		case <-time.After(poll):
		}
	}
}
