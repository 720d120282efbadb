package persistent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Consistently reads what was committed last to metadata in use, without a message to
// its target: it calls walk with the superblock and with a reader for all that hangs on
// it, and calls it again with others if there was a commit in the meantime, up to that
// many attempts; then it fails with ErrChanging. When it returns nil or an error of
// walk, that walk has seen one committed state. What walk has gathered in an earlier
// call is worthless, and an error that it returned there is forgotten.
//
// r reads the metadata device itself, past caches, and counts gives the counts of that
// same device, the one that the target's table names: see DeviceIOCounts. ErrNotCounted
// if they do not show what was read through r: then they would not show a commit either.
//
// The state was committed when it was read, but the flush that makes it survive power
// loss may not have returned yet. Who needs that flushes the device after the call.
//
// # Why this is consistent
//
// Between two commits, the kernel writes no block that can be reached from the
// superblock on disk. A node is changed by writing its new form to a free block
// (dm_tm_shadow_block in the kernel's source), and a block is free only if it was so in
// the space map of the last commit (old_ll in sm_metadata_new_block_): what a
// transaction frees is not given out before the next one. A commit writes everything
// else first, waits until that is durable, and then writes the superblock. So a walk
// has seen one state if no superblock was written between its start and its end.
//
// That does not show in the superblock alone. The search for free blocks comes back to
// where it was, with each commit in older kernels, and in newer ones when it has been
// through all of them, which takes a few dozen commits where the metadata device is
// small or nearly full. So do the trees, and then a superblock is the same as an earlier
// one, byte for byte, with other contents behind it.
//
// But one commit alone changes the superblock, because a changed tree has its root
// elsewhere. And with two, the write of the first superblock has ended before the second
// begins, and the kernel has counted it. Hence both are compared: the superblock, and
// the counts of the device, taken before the first and after the last read.
func Consistently(f *Format, r io.ReaderAt, counts func() (IOCounts, error), attempts int, walk func(r io.ReaderAt, superblock []byte) error) error {
	if counts == nil {
		return fmt.Errorf("read %s that is in use: %w", f.Name, ErrNotCounted)
	}
	var last error
	for range attempts {
		a := attempt{format: f, r: r}
		final, err := a.run(counts, walk)
		if final {
			return err
		}
		last = err
	}
	err := fmt.Errorf("read %s that is in use: %w, in each of %d attempts; try again when less is written to it", f.Name, ErrChanging, attempts)
	if last != nil {
		err = fmt.Errorf("%w (the last one met: %w)", err, last)
	}
	return err
}

// attempt counts what it reads.
type attempt struct {
	format      *Format
	r           io.ReaderAt
	readSectors uint64
}

// ReadAt is for the walk of the attempt.
func (a *attempt) ReadAt(b []byte, off int64) (int, error) {
	n, err := a.r.ReadAt(b, off)
	a.readSectors += uint64(n) / sectorBytes
	return n, err
}

// run says with final that err, or that there is none, is the answer: there was no
// commit in the meantime, or it cannot be known. The counts enclose all reads.
func (a *attempt) run(counts func() (IOCounts, error), walk func(io.ReaderAt, []byte) error) (final bool, err error) {
	before, err := counts()
	if err != nil {
		return true, err
	}
	superblock, err := a.format.Read(a, SuperblockNumber)
	if err != nil {
		return true, err
	}
	walkErr := walk(a, superblock)
	again, err := a.format.Read(a, SuperblockNumber)
	if err != nil {
		return true, errors.Join(err, walkErr)
	}
	after, err := counts()
	if err != nil {
		return true, errors.Join(err, walkErr)
	}
	if counted := after.ReadSectors - before.ReadSectors; counted < a.readSectors {
		return true, fmt.Errorf("read %s that is in use: %w: %d sectors of it were read, and %d were counted; "+
			"read through the device whose counts these are, past the cache, and set its attribute queue/iostats to 1",
			a.format.Name, ErrNotCounted, a.readSectors, counted)
	}
	committed := after.WriteRequests != before.WriteRequests || after.WriteSectors != before.WriteSectors || !bytes.Equal(again, superblock)
	return !committed, walkErr
}
