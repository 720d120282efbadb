package dm

import (
	"context"
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// WaitEvent blocks until the device has had more events than the number says, which
// comes from an Info, a List or the last wait, and returns how many it has had. What
// an event is depends on the target: a thin pool has one when it falls below its low
// water mark or changes its mode. Events may be missed in between, never at the end.
//
// Nothing but an event ends this wait. Removing the device is one: the wait returns,
// and the next call says ENXIO. Renaming it is one, too.
func (c *Control) WaitEvent(name string, after uint32) (uint32, error) {
	if err := checkExisting(name); err != nil {
		return 0, failure("wait for an event of", name, err)
	}
	// Without NOFLUSH a thin pool would commit for the status that comes with it.
	a, err := c.call(&request{command: unix.DM_DEV_WAIT, name: name, flags: unix.DM_NOFLUSH_FLAG, event: after})
	if err != nil {
		return 0, failure("wait for an event of", name, err)
	}
	return a.header.Event_nr, nil
}

// WaitEventContext is WaitEvent that ends with the context's error when the context
// does, and with ENXIO when the device is removed.
func (c *Control) WaitEventContext(ctx context.Context, name string, after uint32) (uint32, error) {
	if err := checkExisting(name); err != nil {
		return 0, failure("wait for an event of", name, err)
	}
	w, err := c.Watch()
	if err != nil {
		return 0, err
	}
	defer func() { _ = w.Close() }() // nothing is written to it
	for {
		if err := w.Arm(); err != nil {
			return 0, err
		}
		info, err := c.info("wait for an event of", name, "")
		if err != nil {
			return 0, err
		}
		// Event numbers wrap around; any other number is a newer one.
		if info.EventNumber != after {
			return info.EventNumber, nil
		}
		if err := w.Wait(ctx); err != nil {
			return 0, failure("wait for an event of", name, err)
		}
	}
}

// Watch waits for events of all devices at once. The loop of its user is: Arm, look
// at the event numbers (List) and act on those that have changed, Wait. An event
// between Arm and Wait ends the Wait, so none is lost. For one goroutine at a time.
type Watch struct {
	control *Control // a descriptor of its own: what is armed is a state of it
	wake    *os.File // an eventfd
}

// Watch makes a Watch. It is independent of c, but for the kernel.
func (c *Control) Watch() (*Watch, error) {
	file, err := c.nodes.openControl()
	if err != nil {
		return nil, failure("watch", "", err)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		_ = file.Close() // nothing was done with it
		return nil, failure("watch", "", err)
	}
	return &Watch{
		control: &Control{file: file, version: c.version, nodes: c.nodes},
		wake:    os.NewFile(uintptr(fd), "eventfd"),
	}, nil
}

// Close gives back the descriptors. No other method may be running.
func (w *Watch) Close() error {
	return failure("watch", "", errors.Join(w.control.file.Close(), w.wake.Close()))
}

// Arm makes Wait return on events from now on.
func (w *Watch) Arm() error {
	_, err := w.control.call(&request{command: unix.DM_DEV_ARM_POLL})
	return failure("watch", "", err)
}

// Wait blocks until there has been an event of any device since the last Arm, or
// until the context ends, whose error it returns.
func (w *Watch) Wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, w.interrupt)
	defer stop()
	fds := []unix.PollFd{
		{Fd: int32(w.control.file.Fd()), Events: unix.POLLIN},
		{Fd: int32(w.wake.Fd()), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case fds[0].Revents != 0:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		default:
			w.drain() // from a context that ended at the end of an earlier Wait
		}
	}
}

// interrupt ends the Wait that is running, or the next one's first round.
func (w *Watch) interrupt() {
	// It fails after Close only, when there is no Wait to end.
	_, _ = w.wake.Write(binary.NativeEndian.AppendUint64(nil, 1))
}

func (w *Watch) drain() {
	// Poll has just said that there is something to read, and nobody else reads.
	_, _ = w.wake.Read(make([]byte, 8))
}
