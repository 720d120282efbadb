package service

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"decant/loopdev"
)

// returner sees to it that what was discarded on the giving end comes back to the pool
// below it. A file system on a thin volume keeps what was punched until its own journal
// commits, and if it is not mounted with discard, until it is trimmed. That costs time,
// so it is done whenever about one transaction's worth has come together, and only
// where there is a pool.
type returner struct {
	giver        trimmed
	pool         *thinStore // nil: nobody needs any of this
	discardsSelf bool       // the file system is mounted with discard
	isFile       bool       // the giver lies on a file system
	isShared     bool       // the taker takes its space from the same pool
	portionBytes int64

	mu          sync.Mutex
	heldBytes   int64 // discarded since the last time
	mappedBytes int64 // by the volume, the last time
	isPending   bool  // there is something to give back
	cannot      error // the file system cannot be trimmed
}

// trimmed is what a returner asks of the giving end.
type trimmed interface {
	SyncFS() error
	Trim(minBytes int64) (int64, error)
}

// newReturner looks for a pool below the giver to which freed space can come back.
func newReturner(giver *end, gives, takes *chain, portionBytes int64) *returner {
	r := &returner{giver: endTrimmer{giver}, isFile: gives.place != nil, portionBytes: portionBytes}
	for _, l := range gives.links {
		p, isPool := l.store.(*thinStore)
		if !isPool || !l.freed {
			continue
		}
		r.pool, r.isShared = p, false
		for _, t := range takes.links {
			r.isShared = r.isShared || t.key() == p.key()
		}
		r.discardsSelf = r.isFile && gives.place.DiscardsFreed
		break
	}
	return r
}

// endTrimmer trims what lies below a volume as well.
type endTrimmer struct{ *end }

func (t endTrimmer) Trim(minBytes int64) (int64, error) { return t.base.Trim(minBytes) }

// settle is told what was discarded. It says whether none of it is held back.
func (r *returner) settle(copiedBytes int64) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pool == nil {
		return true, nil
	}
	if !r.isPending && r.mappedBytes == 0 {
		if err := r.note(); err != nil {
			return false, err
		}
	}
	r.isPending = true
	if !r.isShared {
		return true, nil // nobody waits for it: it comes back at the end
	}
	if r.heldBytes += copiedBytes; r.heldBytes < r.portionBytes && r.isFile {
		return r.heldBytes == 0, nil
	}
	err := r.giveBack()
	return err == nil, err
}

// finish gives back what is left.
func (r *returner) finish() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pool == nil || !r.isPending {
		return nil
	}
	return r.giveBack()
}

// giveBack leaves nothing pending. A file system that cannot be trimmed is no failure:
// its space comes back later, or never, and the governor sees that. The caller holds mu.
func (r *returner) giveBack() error {
	if r.isFile {
		if err := r.trim(); err != nil {
			return err
		}
	}
	r.heldBytes, r.isPending = 0, false
	// What was discarded counts as free when the pool has committed it.
	if _, err := r.pool.Status(true); err != nil {
		return fmt.Errorf("make %s commit: %w", r.pool.name(), err)
	}
	return nil
}

// trim makes the file system discard what it has freed. One that is mounted with
// discard has done so by itself with its commit, but for pieces that fill no block and
// what it may do later: it is trimmed only if less than half has come back.
func (r *returner) trim() error {
	if err := r.giver.SyncFS(); err != nil {
		return err
	}
	if done, err := r.discardedItself(); done || err != nil || r.cannot != nil {
		return err
	}
	_, err := r.giver.Trim(r.pool.blockBytes)
	if errors.Is(err, loopdev.ErrCannotPunch) || errors.Is(err, fs.ErrPermission) {
		r.cannot = err
		return nil
	}
	return errors.Join(err, r.note())
}

func (r *returner) discardedItself() (bool, error) {
	if !r.discardsSelf {
		return false, nil
	}
	before := r.mappedBytes
	err := r.note()
	return err == nil && before-r.mappedBytes >= r.heldBytes/2, err
}

// note keeps what the volume has mapped.
func (r *returner) note() (err error) {
	if r.mappedBytes, err = r.pool.MappedBytes(); err != nil {
		err = fmt.Errorf("look at %s: %w", r.pool.volume, err)
	}
	return err
}
