package loopdev

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// punchBytes is the most that is punched at once, so that the time between the
// new mark and the end of the punch stays short (see UnchangedSince).
const punchBytes = 64 << 20

// Discard gives the space of the range back, as far as the range covers whole
// blocks of the file system or device; at the end of a file its last block goes
// too. It is idempotent and not durable. What was not given back keeps its data,
// what was reads as anything.
//
// Nothing is discarded if the file has been truncated (ErrSourceShrunk), or after
// KeepModified if somebody else has modified it (ErrSourceChanged) or may do so now
// (ErrInUse). Where somebody had it open for writing while parts of it were given
// back, Discard stops as well, leaves the modification time as it is, and is
// ErrSourceChanged from then on, also in later runs. Readers stop nothing.
//
// Unseen is who writes from another host or where UsedBy cannot find him, and who
// within one Discard truncates the file by its name and makes it as long as before.
// Where inotify is missing or at its limits, every Discard asks who has the file
// open, and whoever opens and closes it within one is unseen as well. A medium that
// cannot give back is ErrCannotPunch.
func (d *Device) Discard(off, n int64) error {
	return d.failure("discard", off, n, d.discard(off, n))
}

func (d *Device) discard(off, n int64) error {
	if err := d.writable(off, n); err != nil {
		return err
	}
	if d.info.Kind == Block {
		return d.discardBlocks(off, n)
	}
	d.discarding.Lock()
	defer d.discarding.Unlock()
	if n == 0 {
		return nil
	}
	if err := d.checkAlone(); err != nil {
		return err
	}
	st, err := d.checkUntouched()
	if err != nil {
		return err
	}
	d.step("checked")
	first, end := d.wholeBlocks(off, n, st.Size)
	if first >= end {
		return nil
	}
	if !d.own.IsZero() { // of a killed Discard: as long as its mark tells so
		if err := d.restoreModified(); err != nil {
			return err
		}
	}
	err = d.punchInPieces(first, end)
	if errors.Is(err, ErrSourceChanged) {
		return errors.Join(err, d.disownModified())
	}
	d.step("punched")
	// Whether or not it failed, the time is ours to put back.
	return errors.Join(err, d.restoreModified())
}

// wholeBlocks are the blocks of the file system that lie inside the range.
func (d *Device) wholeBlocks(off, n, fileBytes int64) (first, end int64) {
	first, end = roundUp(d.info.Offset+off, d.blockBytes), d.info.Offset+off+n
	if end == fileBytes { // what follows in the last block is nobody's
		return first, roundUp(end, d.blockBytes)
	}
	return first, roundDown(end, d.blockBytes)
}

// checkUntouched compares the file with what it was. It cannot see a write between
// here and restoreModified; checkStillAlone can.
func (d *Device) checkUntouched() (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := onFD(d.main, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return nil, err
	}
	if err := d.whole(&st); err != nil {
		return nil, err
	}
	if d.keep && d.grown(&st) {
		return nil, fmt.Errorf("%w: it has grown to %d bytes; nothing more is discarded, its data is whole", ErrSourceChanged, st.Size)
	}
	modified := time.Unix(st.Mtim.Unix())
	if d.keep && !modified.Equal(d.kept) && (d.own.IsZero() || !modified.Equal(d.own)) {
		return nil, fmt.Errorf("%w: at %s, when it should not have changed since %s; nothing more is discarded, its data is whole",
			ErrSourceChanged, modified.Format(time.RFC3339Nano), d.kept.Format(time.RFC3339Nano))
	}
	return &st, nil
}

// grown says whether the file is longer than when it was opened. That shows also
// where a Discard has put back the modification time over it.
func (d *Device) grown(st *unix.Stat_t) bool {
	return d.info.Kind == File && st.Size > d.info.Bytes
}

func (d *Device) punchInPieces(first, end int64) error {
	for first < end {
		n := min(punchBytes, end-first)
		if err := d.noteDiscarding(true); err != nil {
			return err
		}
		// As late as can be: what has changed is not punched.
		if err := d.checkStillAlone(); err != nil {
			return err
		}
		err := onFD(d.main, func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, first, n)
		})
		if unsupported(err) {
			return because(ErrCannotPunch, err)
		}
		if err != nil {
			return err
		}
		first += n
	}
	return nil
}

// KeepModified makes t, which a migration has recorded at its start, the
// modification time that every Discard expects and restores, and has others who open
// the file for writing seen. Without it any time is taken, and punching changes it.
// Block devices have none, and of devices that were opened for reading nothing is
// watched.
func (d *Device) KeepModified(t time.Time) {
	d.discarding.Lock()
	defer d.discarding.Unlock()
	d.keep, d.kept = true, t
	d.startWatch()
}

// restoreModified puts the modification time back, unless that would hide what
// somebody else has written.
func (d *Device) restoreModified() error {
	if !d.keep {
		return nil
	}
	if err := d.checkStillAlone(); err != nil {
		return errors.Join(err, d.disownModified())
	}
	d.step("looked")
	err := d.setModified(d.kept)
	if err != nil {
		err = fmt.Errorf("restore the modification time: %w", err)
	}
	d.own = time.Time{}
	if err != nil {
		// The time there is now is of our own making, the next Discard may go on.
		var st unix.Stat_t
		if onFD(d.main, func(fd int) error { return unix.Fstat(fd, &st) }) == nil {
			d.own = time.Unix(st.Mtim.Unix())
		}
	}
	d.step("restored")
	if changed := d.checkStillAlone(); changed != nil { // too late, it is hidden already
		if err == nil {
			err = d.setModified(time.Now())
		}
		return errors.Join(changed, err, d.disownModified())
	}
	if err != nil {
		return err
	}
	return d.noteDiscarding(false) // after the time, in this order also on the medium
}

// disownModified leaves the modification time, and takes from the mark that it could
// be our own, so that also a later run sees that somebody else has changed the file.
func (d *Device) disownModified() error {
	d.own = time.Time{}
	if err := d.noteDiscarding(false); err != nil {
		return err
	}
	return d.sync(unix.Fsync)
}

// A punch that was killed before it put the modification time back has left a
// time after the mark's, which was written just before it. The kernel's clock for
// files lags behind, and another machine's may be a bit off; the punch itself
// begins at once and sets the time when it ends.
const (
	beforeMark = time.Second
	afterMark  = 100 * time.Millisecond
)

// UnchangedSince says whether nobody has written to the file since its
// modification time was kept. Where the time is another one, but the mark tells of
// a Discard that was killed, at a moment as near as that leaves it, the change is
// our own: Discard accepts it, and restores the kept time. A Discard that was not
// killed and has seen somebody else leaves no such mark. What somebody else wrote in
// the very moment of a kill is taken for our own. A block device has no modification
// time, for it the answer is always yes.
func (d *Device) UnchangedSince(kept time.Time) (bool, error) {
	if d.info.Kind == Block {
		return true, nil
	}
	d.discarding.Lock()
	defer d.discarding.Unlock()
	var st unix.Stat_t
	if err := onFD(d.main, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return false, d.failure("look at", 0, 0, err)
	}
	if d.grown(&st) {
		return false, nil
	}
	modified := time.Unix(st.Mtim.Unix())
	if modified.Equal(kept) {
		return true, nil
	}
	mark, marked, err := d.readMark()
	if err != nil || !marked {
		return false, d.failure("read the mark of", 0, 0, err)
	}
	if !mark.Discarding || modified.Before(mark.Since.Add(-beforeMark)) || modified.After(mark.Since.Add(afterMark)) {
		return false, nil
	}
	d.own = modified
	return true, nil
}

// discardBlocks rounds to logical blocks only: what of a larger unit can be given
// back, the device knows best.
func (d *Device) discardBlocks(off, n int64) error {
	first, end := roundUp(off, d.blockBytes), roundDown(off+n, d.blockBytes)
	if first >= end {
		return nil
	}
	extent := [2]uint64{uint64(first), uint64(end - first)}
	err := onFD(d.main, func(fd int) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&extent)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if unsupported(err) {
		return because(ErrCannotPunch, err)
	}
	return err
}

// Zero makes the range read as zeros. It gives space back where the medium can do
// that and still promise zeros, and writes them where it can not. It is durable
// after the next Flush.
func (d *Device) Zero(off, n int64) error {
	return d.failure("zero", off, n, d.zero(off, n))
}

func (d *Device) zero(off, n int64) error {
	if err := d.writable(off, n); err != nil || n == 0 {
		return err
	}
	at, end := d.info.Offset+off, d.info.Offset+off+n
	first, last := at, end
	if d.info.Kind == Block { // of a file the kernel zeroes parts of blocks as well
		first, last = roundUp(at, d.blockBytes), roundDown(end, d.blockBytes)
	}
	if first >= last {
		return d.writeZeros(at, n)
	}
	if err := d.writeZeros(at, first-at); err != nil {
		return err
	}
	if err := d.zeroByKernel(first, last-first); err != nil {
		return err
	}
	return d.writeZeros(last, end-last)
}

func (d *Device) zeroByKernel(at, n int64) error {
	for _, way := range []uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE} {
		err := onFD(d.main, func(fd int) error { return unix.Fallocate(fd, way|unix.FALLOC_FL_KEEP_SIZE, at, n) })
		if !unsupported(err) {
			return err
		}
	}
	return d.writeZeros(at, n)
}

func (d *Device) writeZeros(at, n int64) error {
	for n > 0 {
		// Pieces end at multiples of their size, so that only the first and the
		// last can be unaligned.
		piece := min(n, pieceBytes-at%pieceBytes)
		if _, err := d.writeFull(zeros()[:piece], at); err != nil {
			return err
		}
		at, n = at+piece, n-piece
	}
	return nil
}

// ProbePunch finds out on a small file of its own whether files in dir can be
// punched and give space back by it. If they can not, the error is ErrCannotPunch
// with the errno behind it, if there was one.
func ProbePunch(dir string) error {
	f, err := os.CreateTemp(dir, ".decant-probe-*")
	if err != nil {
		return failure("try to punch a file in", dir, 0, 0, err)
	}
	defer f.Close() //nolint:errcheck // it is removed already
	err = os.Remove(f.Name())
	if err == nil {
		err = probe(f)
	}
	return failure("try to punch a file in", dir, 0, 0, err)
}

func probe(f *os.File) error {
	const probeBytes = 64 << 10
	pattern := make([]byte, probeBytes)
	for i := range pattern { // nothing that a file system could compress away
		pattern[i] = byte(uint64(i) * 0x9e3779b97f4a7c15 >> 56)
	}
	if _, err := f.WriteAt(pattern, 0); err != nil {
		return err
	}
	before, err := syncedBlocks(f)
	if err != nil {
		return err
	}
	err = onFD(f, func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, probeBytes)
	})
	if err != nil {
		return because(ErrCannotPunch, err)
	}
	after, err := syncedBlocks(f)
	if err == nil && after >= before {
		err = fmt.Errorf("%w: a punched file has %d blocks of 512 bytes, and had %d before", ErrCannotPunch, after, before)
	}
	return err
}

// syncedBlocks is the number of 512-byte blocks of a file, when the file system
// has settled what it takes.
func syncedBlocks(f *os.File) (int64, error) {
	if err := f.Sync(); err != nil {
		return 0, bare(err)
	}
	var st unix.Stat_t
	err := onFD(f, func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Blocks, err
}
