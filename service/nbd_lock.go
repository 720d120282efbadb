package service

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"decant/loopdev"
	"decant/nbd"
)

// exportLock keeps other migrations of this host away from an export, as the lock on a
// file does: also those of another user, or with another state directory. It is a name
// in the kernel's table of Unix sockets, which is free again when the process has ended,
// and nothing is left of it. Other hosts, and other network namespaces, do not see it.
type exportLock struct{ fd int }

// lockExport takes the lock of an export. It is patient for a moment: a process that was
// killed may keep it until its last input or output has ended.
func lockExport(u nbd.URI) (*exportLock, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make the lock of %v: %w", u, err)
	}
	name := &unix.SockaddrUnix{Name: "@decant-" + exportKey(u)} // @ stands for a name that is no file
	const attempts, pause = 20, 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		err = unix.Bind(fd, name)
		if err == nil {
			return &exportLock{fd}, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) || attempt == attempts {
			break
		}
		time.Sleep(pause)
	}
	_ = unix.Close(fd) // it has no name
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("%w: another migration of this host reads it: %w", loopdev.ErrInUse, err)
	}
	return nil, fmt.Errorf("lock %v: %w", u, err)
}

func (l *exportLock) release() error { return unix.Close(l.fd) }

// exportKey is the same for the same export, in the form that wholeURI gives a URI. With
// TLS or without it is the same export.
func exportKey(u nbd.URI) string {
	sum := sha256.Sum256([]byte(u.Network + "\x00" + u.Address + "\x00" + u.Export))
	return fmt.Sprintf("nbd:%x", sum[:16])
}
