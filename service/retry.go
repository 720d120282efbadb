package service

import (
	"errors"
	"io/fs"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"decant/clone"
	"decant/hydrate"
	"decant/journal"
	"decant/loopdev"
)

// The pauses before a migration is tried again grow from the first to the longest.
const (
	firstRetryPause   = 5 * time.Second
	longestRetryPause = 10 * time.Minute
)

// retryPause is how long to wait before a migration is tried again that has stopped
// that many times without getting any further.
func retryPause(tries int) time.Duration {
	pause := firstRetryPause
	for ; tries > 1 && pause < longestRetryPause; tries-- {
		pause *= 2
	}
	return min(pause, longestRetryPause)
}

// lasting are causes that only a person can judge or mend.
var lasting = []error{
	loopdev.ErrSourceChanged, loopdev.ErrSourceShrunk, loopdev.ErrWrongType, loopdev.ErrMarked,
	loopdev.ErrCannotPunch, loopdev.ErrReadOnly,
	clone.ErrMismatch,
	journal.ErrDamaged, journal.ErrNotJournal, journal.ErrNewer, journal.ErrOlder, journal.ErrLeftover, journal.ErrInvalid,
	ErrOutside,
}

// passing are causes that go away when space is freed, a device comes back, somebody
// else has finished, or a pool was mended.
var passing = []error{
	hydrate.ErrNoSpace, loopdev.ErrInUse, journal.ErrLocked, journal.ErrFull, journal.ErrUnknownOutcome,
	journal.ErrOtherWriter, fs.ErrNotExist,
}

// passingErrnos likewise.
var passingErrnos = []syscall.Errno{
	unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.ENXIO, unix.ENODEV, unix.EBUSY,
	unix.EAGAIN, unix.ETIMEDOUT, unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE, unix.ENOMEDIUM, unix.EREMOTEIO,
	unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ESHUTDOWN,
}

// passes judges by the causes of an error. What is not known stays for a person.
func passes(err error) bool {
	var lost *clone.LostError
	if errors.As(err, &lost) {
		return false
	}
	for _, cause := range lasting {
		if errors.Is(err, cause) {
			return false
		}
	}
	for _, cause := range passing {
		if errors.Is(err, cause) {
			return true
		}
	}
	for _, errno := range passingErrnos {
		if errors.Is(err, errno) {
			return true
		}
	}
	var pool *poolError
	return errors.As(err, &pool)
}
