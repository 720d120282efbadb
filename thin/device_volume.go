package thin

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"decant/dm"
	"decant/loopdev"
)

// deviceVolume is an open volume that is a thin device of the kernel, whoever owns
// its pool: what the kinds of pools with such devices have in common. Everything
// goes through the block device; the pool is only looked at.
//
// A block of the pool that is unmapped reads as zeros (or as the external origin),
// and is mapped by the first write to it. The pool fills the rest of such a block
// with zeros, unless it was told to leave that out (skip_block_zeroing): then the
// rest holds what the block held before, for whomever. So here no write to a part
// of a block is sent to such a pool before the block is whole.
type deviceVolume struct {
	*loopdev.Device
	pool       poolDevice
	name       string // of the volume's own device in /dev/mapper
	key        string // of Info
	path       string // of Info, if it is not empty
	blockBytes int64
	sparse     bool // what is unmapped reads as zeros: there is no external origin
	skipsZeros bool // skip_block_zeroing
	noDiscards bool // ignore_discard
	mapping    mapping

	flushing sync.Mutex
	flushErr error // the first failure; nothing is known after it

	blocks sync.Mutex
	parts  discardedParts
	whole  blockSet // only if skipsZeros: blocks without a rest that was never written
	gone   blockSet // only if the kernel may cut blocks in two: those discarded and not written since
}

// newDeviceVolume makes a volume of its opened device. name is that of the thin
// device in /dev/mapper; key identifies the volume wherever the pool is carried to.
func newDeviceVolume(device *loopdev.Device, pool poolDevice, name, key string) (*deviceVolume, error) {
	table, err := pool.table()
	if err != nil {
		return nil, err
	}
	v := &deviceVolume{Device: device, pool: pool, name: name, key: key, blockBytes: table.BlockBytes}
	v.skipsZeros, v.noDiscards = table.SkipBlockZeroing, table.IgnoreDiscard
	targets, err := pool.control.Table(name)
	if err != nil {
		return nil, err
	}
	if len(targets) != 1 || targets[0].Type != thinTarget {
		return nil, fmt.Errorf("device %s %w", name, errNotThin)
	}
	own, err := ParseVolumeTable(targets[0].Params)
	if err != nil {
		return nil, err
	}
	v.sparse = own.ExternalOrigin == ""
	if v.mapping, err = newMetadataMapping(v, own.ID); err != nil {
		return nil, err
	}
	return v, nil
}

// errNotThin: the device is there, and is something else.
var errNotThin = errors.New("is not a thin volume")

// status is that of the thin device itself.
func (v *deviceVolume) status() (VolumeStatus, error) {
	s, err := volumeStatus(v.pool.control, v.name)
	if err == nil && s.Failed {
		err = v.failure("show volume", "its pool has failed or is gone", nil)
	}
	return s, err
}

// volumeStatus is that of an active thin device.
func volumeStatus(control *dm.Control, name string) (VolumeStatus, error) {
	targets, err := control.StatusNoFlush(name)
	if err != nil {
		return VolumeStatus{}, err
	}
	if len(targets) != 1 || targets[0].Type != thinTarget {
		return VolumeStatus{}, fmt.Errorf("device %s %w", name, errNotThin)
	}
	return ParseVolumeStatus(targets[0].Params)
}

// failure is an error about the volume.
func (v *deviceVolume) failure(op, state string, err error) error {
	return &Error{
		Op: op, Object: v.Info().Path, State: state, Err: err,
		Hint: "see the kernel's log, and repair the pool (thin_check, thin_repair) before it is used again",
	}
}

// Base is the block device that the volume is.
func (v *deviceVolume) Base() *loopdev.Device { return v.Device }

// Info describes the block device, with the volume's own key, and a path that stays
// the same over a reboot if it has one.
func (v *deviceVolume) Info() loopdev.Info {
	info := v.Device.Info()
	info.Key = v.key
	if v.path != "" {
		info.Path = v.path
	}
	return info
}

// BlockBytes is the unit in which the pool allocates space for the volume.
func (v *deviceVolume) BlockBytes() int64 { return v.blockBytes }

// LeavesRests says whether what is written next to an unmapped range of this
// alignment may make the range read as anything after a power loss: then a range
// must not be counted on to read zeros for being unmapped, but be zeroed by Zero.
// It is so in a pool that does not zero new blocks, where the range is not made of
// whole blocks.
func (v *deviceVolume) LeavesRests(alignBytes int64) bool {
	return v.skipsZeros && alignBytes%v.blockBytes != 0
}

// CheckDiscard is nil if discards give space back to the pool, and else says why
// not; the error is loopdev.ErrCannotPunch.
func (v *deviceVolume) CheckDiscard() error {
	if !v.noDiscards {
		return nil
	}
	return &Error{
		Op: "discard", Object: v.Info().Path, State: "its pool ignores discards", Err: loopdev.ErrCannotPunch,
		Hint: "let the pool take them, with LVM: lvchange --discards nopassdown GROUP/POOL",
	}
}

// Flush is that of the device, and then a look at the pool: one that has gone back
// to an earlier transaction, or is about to, has lost what was written. After the
// first failure it fails for ever.
func (v *deviceVolume) Flush() error {
	v.flushing.Lock()
	defer v.flushing.Unlock()
	if v.flushErr == nil {
		v.flushErr = v.flush()
	}
	return v.flushErr
}

func (v *deviceVolume) flush() error {
	if err := v.Device.Flush(); err != nil {
		return err
	}
	s, err := v.pool.status(false)
	if err != nil {
		return fmt.Errorf("look at the pool after a flush: %w", err)
	}
	if trouble := s.Trouble(); trouble != "" {
		return v.failure("flush", "the pool "+trouble+"; what was written since the flush before may be lost", nil)
	}
	return nil
}

// Trouble says why a pool is not to be relied on; it is empty if it is. One that is
// out of data space keeps what it was sent, it only takes no more.
func (s TargetStatus) Trouble() string {
	switch {
	case s.NeedsCheck:
		return "needs a check of its metadata (needs_check)"
	case s.Mode != ReadWrite && s.Mode != OutOfDataSpace:
		return fmt.Sprintf("is in mode %q", s.Mode)
	}
	return ""
}

// AllocatedBytes is what the volume has mapped, shared blocks included.
func (v *deviceVolume) AllocatedBytes() (int64, error) {
	s, err := v.status()
	return s.MappedBytes, err
}

// FreeBytes is what the pool has left.
func (v *deviceVolume) FreeBytes() (int64, error) {
	s, err := v.pool.currentStatus()
	return s.FreeBytes(v.blockBytes), err
}

// SyncFS makes the pool commit, so that what was discarded counts as free.
func (v *deviceVolume) SyncFS() error {
	_, err := v.pool.status(true)
	return err
}

// NextData is the first range that may hold data in [off, Bytes()). Without any,
// both are Bytes(). What lies outside reads as zeros.
func (v *deviceVolume) NextData(off int64) (start, end int64, err error) {
	if _, _, err := v.Device.NextData(off); err != nil || !v.sparse || off == v.Bytes() {
		return off, v.Bytes(), err
	}
	start, end, err = v.mapping.mapped(off)
	if err != nil {
		return 0, 0, &Error{Op: "look for data", Object: v.Info().Path, Err: err}
	}
	start = min(max(start, off), v.Bytes())
	return start, min(max(end, start), v.Bytes()), nil
}

// Close gives up locks and claims. It does not flush. Closing a second time fails with
// os.ErrClosed.
func (v *deviceVolume) Close() error { return errors.Join(v.Device.Close(), v.mapping.close()) }

// ReadsZero is true only if the range is known to read as zeros without reading it.
func (v *deviceVolume) ReadsZero(off, n int64) (bool, error) {
	start, _, err := v.NextData(off)
	return err == nil && start >= off+n, err
}

// HoldsData says whether a byte of the volume is not zero. All that may be mapped is
// read.
func (v *deviceVolume) HoldsData() (bool, error) {
	found := false
	for off := int64(0); off < v.Bytes() && !found; {
		start, end, err := v.NextData(off)
		if err != nil {
			return false, err
		}
		err = v.eachData(start, end, func(int64, int) (bool, error) {
			found = true
			return false, nil
		})
		if err != nil {
			return false, err
		}
		off = max(end, off+1)
	}
	return found, nil
}

// pieceBytes is how much is read or zeroed at once.
const pieceBytes = 1 << 20

// zeroPiece is what nobody writes to.
var zeroPiece = sync.OnceValue(func() []byte { return loopdev.AlignedBuffer(pieceBytes) })

// eachData reads the range and visits its pieces that are not all zeros, until visit
// wants no more.
func (v *deviceVolume) eachData(off, end int64, visit func(off int64, n int) (more bool, err error)) error {
	if off >= end {
		return nil
	}
	buffer := loopdev.AlignedBuffer(int(min(pieceBytes, end-off)))
	for off < end {
		// Pieces end at multiples of their size, so that edges are not aligned at most.
		piece := buffer[:min(int64(len(buffer)), end-off, pieceBytes-off%pieceBytes)]
		if _, err := v.ReadAt(piece, off); err != nil {
			return err
		}
		if !bytes.Equal(piece, zeroPiece()[:len(piece)]) {
			if more, err := visit(off, len(piece)); err != nil || !more {
				return err
			}
		}
		off += int64(len(piece))
	}
	return nil
}

// WriteAt writes p at off. Where the pool has no space for it, the result is ENOSPC.
// It is durable after Flush.
func (v *deviceVolume) WriteAt(p []byte, off int64) (int, error) {
	if v.inside(off, int64(len(p))) { // else the device says what is wrong
		v.mapping.forget()
		if err := v.prepare(off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	return v.Device.WriteAt(p, off)
}

func (v *deviceVolume) inside(off, n int64) bool {
	return n > 0 && off >= 0 && off <= v.Bytes()-n
}

// prepare comes before a write: what is written counts as discarded no longer, and a
// block of which a part is left out is made whole.
func (v *deviceVolume) prepare(off, n int64) error {
	first, end := alignDown(off, v.blockBytes), alignUp(off+n, v.blockBytes)
	v.blocks.Lock()
	defer v.blocks.Unlock()
	v.parts.forget(first/v.blockBytes, end/v.blockBytes)
	v.gone.remove(first/v.blockBytes, end/v.blockBytes)
	if !v.skipsZeros {
		return nil
	}
	if first < off {
		if err := v.makeWhole(first / v.blockBytes); err != nil {
			return err
		}
	}
	if last := end - v.blockBytes; off+n < min(end, v.Bytes()) {
		return v.makeWhole(last / v.blockBytes)
	}
	return nil
}

// makeWhole sees to it that a write to a part of a block leaves zeros in the rest, if
// zeros are what it reads as: then it may be unmapped, and zeros are written to all
// of it. A block with data is mapped. The caller holds v.blocks.
func (v *deviceVolume) makeWhole(block int64) error {
	if v.whole.has(block) {
		return nil
	}
	first := block * v.blockBytes
	end, mapped := min(first+v.blockBytes, v.Bytes()), false
	err := v.eachData(first, end, func(int64, int) (bool, error) {
		mapped = true
		return false, nil
	})
	for off := first; err == nil && !mapped && off < end; off += pieceBytes {
		_, err = v.Device.WriteAt(zeroPiece()[:min(pieceBytes, end-off)], off)
	}
	if err == nil {
		v.whole.add(block)
	}
	return err
}

// Zero makes the range read as zeros. Whole blocks are unmapped if that does it;
// elsewhere zeros are written over what is not zero. It is durable after Flush.
func (v *deviceVolume) Zero(off, n int64) error {
	if !v.inside(off, n) {
		return v.Device.Zero(off, n) // does nothing; the device says what is wrong
	}
	first, end := alignUp(off, v.blockBytes), alignDown(off+n, v.blockBytes)
	unmapped, err := v.unmap(first, end)
	switch {
	case err != nil:
		return err
	case !unmapped:
		return v.overwrite(off, off+n)
	}
	return errors.Join(v.overwrite(off, first), v.overwrite(end, off+n))
}

// unmap discards whole blocks and says whether they read as zeros now. It cannot be
// relied on where the kernel may cut a block in two.
func (v *deviceVolume) unmap(first, end int64) (bool, error) {
	if first >= end || v.noDiscards {
		return false, nil
	}
	err := v.discardBlocks(first, end)
	if errors.Is(err, loopdev.ErrCannotPunch) {
		return false, nil
	}
	v.mapping.forget()
	return v.sparse && !v.cutsBlocks(), err
}

// overwrite writes zeros where the range does not read as zeros.
func (v *deviceVolume) overwrite(off, end int64) error {
	if off >= end {
		return nil
	}
	v.mapping.forget()
	if err := v.prepare(off, end-off); err != nil {
		return err
	}
	return v.eachData(off, end, func(off int64, n int) (bool, error) {
		_, err := v.Device.WriteAt(zeroPiece()[:n], off)
		return true, err
	})
}

// Discard gives the space of the range back to the pool: of whole blocks, which may
// have been discarded in parts one after the other. What was given back reads as
// anything. It is durable after Flush.
func (v *deviceVolume) Discard(off, n int64) error {
	if !v.inside(off, n) {
		return v.Device.Discard(off, n) // does nothing; the device says what is wrong
	}
	v.blocks.Lock()
	first, end := v.parts.complete(off, off+n, v.blockBytes)
	v.blocks.Unlock()
	if first >= end {
		return v.CheckDiscard()
	}
	return v.discardBlocks(first, end)
}

// discardBlocks discards whole blocks.
func (v *deviceVolume) discardBlocks(first, end int64) error {
	if v.cutsBlocks() {
		return v.discardUncut(first, end)
	}
	if err := v.Device.Discard(first, end-first); err != nil {
		return err
	}
	v.blocks.Lock()
	defer v.blocks.Unlock()
	v.noteDiscarded(first, end)
	return nil
}

// noteDiscarded is for a caller that holds v.blocks.
func (v *deviceVolume) noteDiscarded(first, end int64) {
	v.whole.remove(first/v.blockBytes, end/v.blockBytes)
	v.parts.forget(first/v.blockBytes, end/v.blockBytes)
}

// cutsBlocks says whether the kernel may cut a discard into pieces that end inside a
// block, which then stays mapped. It does so with blocks that are no power of two,
// because it looks for their multiples with an operation for powers of two.
func (v *deviceVolume) cutsBlocks() bool { return v.blockBytes&(v.blockBytes-1) != 0 }

// discardUncut discards whole blocks where the kernel may cut them in two. There is no
// cut behind a start that the kernel takes for aligned, so the discard begins there
// if nothing but blocks that were discarded before lies in between. No write may come
// to those meanwhile.
func (v *deviceVolume) discardUncut(first, end int64) error {
	v.blocks.Lock()
	defer v.blocks.Unlock()
	from := first
	for !v.startsUncut(from) && v.gone.has(from/v.blockBytes-1) {
		from -= v.blockBytes
	}
	if !v.startsUncut(from) {
		from = first
	}
	if err := v.Device.Discard(from, end-from); err != nil {
		return err
	}
	v.noteDiscarded(first, end)
	for block := first / v.blockBytes; block < end/v.blockBytes; block++ {
		v.gone.add(block)
	}
	return nil
}

// startsUncut is the kernel's round_up of a sector to the block, which leaves it as it
// is.
func (v *deviceVolume) startsUncut(at int64) bool {
	sector, mask := at/dm.SectorBytes, v.blockBytes/dm.SectorBytes-1
	return ((sector-1)|mask)+1 == sector
}
