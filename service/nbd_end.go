package service

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decant/loopdev"
	"decant/nbd"
)

// nbdKind is the kind of an end that is an export of an NBD server.
const nbdKind = "nbd"

// nbdEnd is an export of an NBD server as an end of a migration, and what it stands on.
// Its bytes are elsewhere: what a server does not say of them cannot be known.
//
// A discard is TRIM, rounded inward to whole blocks of the server. A server that is
// restarted may have lost those that no flush has covered; Flush repeats them.
type nbdEnd struct {
	*nbd.Client
	info  loopdev.Info
	lock  *exportLock
	image *loopdev.Device // the file of this host that the server has for the export; nil if not known

	mu        sync.Mutex
	samples   []sourceSample // what the export has to hold, whenever it is connected to anew
	discards  discards       // that no flush has covered
	lastWrite byteSpan       // of those since the last flush
	wrote     bool           // a write or zeroes was sent
	tried     bool           // it is known whether a discard frees anything
	keepsAll  bool           // it does not
	warned    bool           // and somebody was told
	isVague   bool           // the server says that all is allocated, also where it is not

	flushing  sync.Mutex
	measuring sync.Mutex
	allocated allocation
}

// allocation is what was counted last.
type allocation struct {
	sync.Mutex
	bytes int64
	until time.Time // when it has to be counted again
}

// Info implements device. An export has no file on this host, also where its server
// runs here.
func (n *nbdEnd) Info() loopdev.Info { return n.info }

// Close leaves the server. What no flush has covered may come true later or never.
func (n *nbdEnd) Close() error {
	err := errors.Join(n.Client.Close(), n.lock.release())
	if n.image != nil {
		err = errors.Join(err, n.image.Close())
	}
	return err
}

// CheckDiscard says why the export cannot be emptied, and what would help.
func (n *nbdEnd) CheckDiscard() error {
	switch {
	case n.ReadOnly():
		return &Error{
			Outcome: Refused, Problem: "the export is read-only",
			Hint: "start the server so that it may be written to (qemu-nbd and nbdkit: without --read-only), or leave off --discard-src",
		}
	case !n.CanDiscard():
		return &Error{
			Outcome: Refused, Problem: "the server takes no discards (TRIM)",
			Hint: "start the server so that it does (qemu-nbd: with --discard=unmap), or leave off --discard-src",
		}
	}
	return nil
}

// SyncFS makes the server give back what was discarded, and the file system below it.
func (n *nbdEnd) SyncFS() error {
	n.mu.Lock()
	none := len(n.discards.spans) == 0
	n.mu.Unlock()
	if !none {
		if err := n.Flush(); err != nil {
			return err
		}
	}
	if n.image == nil {
		return nil
	}
	return n.image.SyncFS()
}

// AllocatedBytes is what the server has space for. So that asking for it after each copy
// takes no more than a twentieth of the time, the last answer, less what was discarded
// since, is good for twenty times as long as it took to get, unless there was a flush.
func (n *nbdEnd) AllocatedBytes() (int64, error) {
	n.mu.Lock()
	isVague := n.isVague
	n.mu.Unlock()
	if isVague || !n.KnowsHoles() {
		return 0, fmt.Errorf("%v: %w", n.URI(), loopdev.ErrNotCountable)
	}
	if bytes, fresh := n.allocated.get(); fresh {
		return bytes, nil
	}
	n.measuring.Lock()
	defer n.measuring.Unlock()
	if bytes, fresh := n.allocated.get(); fresh {
		return bytes, nil // somebody else was first
	}
	const share = 20
	begun := time.Now()
	bytes, err := n.Client.AllocatedBytes(0, n.Bytes())
	if err != nil {
		return 0, err
	}
	n.allocated.keep(bytes, time.Now().Add(share*time.Since(begun)))
	return bytes, nil
}

func (a *allocation) get() (bytes int64, fresh bool) {
	a.Lock()
	defer a.Unlock()
	return a.bytes, time.Now().Before(a.until)
}

func (a *allocation) keep(bytes int64, until time.Time) {
	a.Lock()
	defer a.Unlock()
	a.bytes, a.until = bytes, until
}

// release notes that space was given back since it was counted.
func (a *allocation) release(bytes int64) {
	a.Lock()
	defer a.Unlock()
	a.bytes = max(0, a.bytes-bytes)
}

func (a *allocation) expire() {
	a.Lock()
	defer a.Unlock()
	a.until = time.Time{}
}

// SharedBytes implements device: a server does not tell, its file does.
func (n *nbdEnd) SharedBytes() (int64, error) {
	if n.image == nil {
		return 0, loopdev.ErrNotCountable
	}
	return n.image.SharedBytes()
}

// CompressedBytes implements device.
func (n *nbdEnd) CompressedBytes() (int64, error) {
	if n.image == nil {
		return 0, loopdev.ErrNotCountable
	}
	return n.image.CompressedBytes()
}

// FreeBytes implements device.
func (n *nbdEnd) FreeBytes() (int64, error) { return 0, loopdev.ErrNotCountable }

// HoldsData implements device.
func (n *nbdEnd) HoldsData() (bool, error) {
	start, _, err := n.NextData(0)
	return start < n.Bytes(), err
}

// ReadsZero implements device.
func (n *nbdEnd) ReadsZero(off, bytes int64) (bool, error) {
	start, _, err := n.NextData(off)
	return start >= off+bytes, err
}

// WriteMark implements device: the mark of an export is a record beside the journal.
func (n *nbdEnd) WriteMark(loopdev.Mark) error { return loopdev.ErrNoMark }

// ReadMark implements device.
func (n *nbdEnd) ReadMark() (loopdev.Mark, bool, error) { return loopdev.Mark{}, false, nil }

// RemoveMark implements device.
func (n *nbdEnd) RemoveMark() error { return nil }

// Place implements ground: that of the server's file, if it is known.
func (n *nbdEnd) Place() (*loopdev.Place, error) {
	if n.image == nil {
		return nil, nil //nolint:nilnil // as documented
	}
	return n.image.Place()
}

// Fragments implements ground.
func (n *nbdEnd) Fragments() (int64, error) {
	if n.image == nil {
		return 0, loopdev.ErrNotCountable
	}
	return n.image.Fragments()
}

// Trim implements ground.
func (n *nbdEnd) Trim(minBytes int64) (int64, error) {
	if n.image == nil {
		return 0, loopdev.ErrCannotPunch
	}
	return n.image.Trim(minBytes)
}

// Stacked implements ground.
func (n *nbdEnd) Stacked() ([]string, error) { return nil, nil }

// Share implements ground: no device of this host can lie on it.
func (n *nbdEnd) Share() error { return unix.EOPNOTSUPP }

// Resize implements ground.
func (n *nbdEnd) Resize(int64) error { return unix.EOPNOTSUPP }

// UnchangedSince implements ground: there is no time of modification that could tell.
func (n *nbdEnd) UnchangedSince(time.Time) (bool, error) { return true, nil }

// KeepModified implements ground.
func (n *nbdEnd) KeepModified(time.Time) {}

// SetModified implements ground.
func (n *nbdEnd) SetModified(time.Time) error { return nil }
