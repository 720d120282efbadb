package service

import (
	"context"
	"errors"
	"fmt"

	"decant/dm"
	"decant/loopdev"
	"decant/region"
)

// commit brings what the kernel has hydrated into the journal, and discards its source:
//
//	kernel    a commit, which flushes the destination first
//	read      what the metadata device has; durable when it was read
//	drain     no read of the source is in flight that began before it was so: the device
//	          was suspended, and what comes after goes to the destination          (I3)
//	adopt     the regions are Dirty
//	commit    flush, journal                                                       (I1, I2)
//	discard
func (k *kernelLive) commit(discard bool) error {
	hydrated, err := k.commitAndRead()
	if err != nil {
		return err
	}
	known, err := k.m.journal.Load()
	if err != nil {
		return err
	}
	fresh := hydrated
	fresh.Subtract(known.Hydrated)
	if fresh.Count() == 0 {
		return nil
	}
	if err := k.checkUnchanged(); err != nil {
		return err
	}
	if discard {
		if err := k.drain(); err != nil {
			return err
		}
	}
	bytes := k.copiedBytes(fresh)
	if err := k.r.clone.Adopt(fresh, bytes); err != nil {
		return err
	}
	if err := k.r.clone.Commit(); err != nil {
		return err
	}
	k.r.meter.Sample()
	k.r.Committed(bytes)
	if !discard {
		return nil
	}
	return k.discardCommitted()
}

// checkUnchanged refuses to record what the kernel has copied from a source that somebody
// else has changed: of a file that was truncated it may have read zeros.
func (k *kernelLive) checkUnchanged() error {
	changed, err := k.m.sourceChanged()
	if err == nil && changed {
		err = fmt.Errorf("%w; nothing of what was copied since the last commit is recorded or discarded", loopdev.ErrSourceChanged)
	}
	return err
}

// commitAndRead has the kernel commit and reads what it has committed.
func (k *kernelLive) commitAndRead() (*region.Set, error) {
	if _, err := k.status(); err != nil {
		return nil, fmt.Errorf("have the kernel commit: %w", err)
	}
	return k.readMetadata()
}

// drain returns when every read has ended that was in flight when it was called.
func (k *kernelLive) drain() error { return k.whileSuspended(func() error { return nil }) }

// whileSuspended does something while the device has no I/O in flight. Guests wait for it
// to return.
func (k *kernelLive) whileSuspended(do func() error) error {
	name, err := k.deviceName()
	if err != nil {
		return err
	}
	if err := k.device.control.Suspend(name, dm.SuspendOptions{NoLockFS: true}); err != nil {
		return fmt.Errorf("wait for reads of the source: %w", err)
	}
	err = do()
	return errors.Join(err, k.device.control.Resume(name, liveRules...))
}

// copiedBytes is what the kernel has copied for regions, or guests have written instead.
func (k *kernelLive) copiedBytes(regions *region.Set) int64 {
	copied := regions.Clone()
	copied.Subtract(k.empty)
	var bytes int64
	for run := range copied.Ranges() {
		_, n := k.geometry().Bytes(run)
		bytes += n
	}
	return bytes
}

// discardCommitted discards the source of what is committed, and waits until the media
// have given it back.
func (k *kernelLive) discardCommitted() error {
	done := k.r.clone.TakeCommitted()
	// Not cancellable: a half-known discard would only have to be repeated.
	if err := k.r.clone.DiscardSource(context.Background(), done); err != nil {
		return err
	}
	if done.Regions() > 0 {
		k.r.Discarded(done)
	}
	k.r.meter.Sample()
	_, err := k.r.meter.Settle(done.CopiedBytes())
	return err
}
