package thin

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/loopdev"
)

// mappedRanges says which parts of a volume have blocks of the pool.
type mappedRanges interface {
	// mapped is the first range in [off, end of the device) that may have blocks.
	// Without any, both are the end.
	mapped(off int64) (start, end int64, err error)
}

// wholeDevice takes a volume for mapped as a whole as soon as it has a block at all,
// which is what its status tells.
type wholeDevice struct {
	control *dm.Control
	name    string
	bytes   int64
}

func (w wholeDevice) mapped(off int64) (start, end int64, err error) {
	status, err := thinStatus(w.control, w.name)
	switch {
	case err != nil:
		return 0, 0, err
	case status.Failed || status.MappedBytes > 0:
		return off, w.bytes, nil
	}
	return w.bytes, w.bytes, nil
}

// MapperVolume is an open volume of a dm-thin pool: the block device that it is,
// which knows what it maps. All methods may be called concurrently; ranges of
// concurrent writes must not overlap.
type MapperVolume struct {
	*loopdev.Device
	pool   *MapperPool
	info   VolumeInfo
	key    string
	name   string   // of the device in /dev/mapper
	claim  *os.File // holds the shared lock on the node; nil if the device holds the exclusive one
	ranges mappedRanges
	// zeros: what is not mapped reads as zeros, and so does what is discarded.
	zeros bool

	flushing sync.Mutex
	flushErr error // the first failure; nothing is known after it

	closing sync.Mutex
	closed  bool
}

// OpenVolume opens a volume for reading and writing, and activates it if it is not.
// While it is open the volume cannot be deleted or deactivated. An exclusive opening
// is the only one, also among the users of its device; it is ErrInUse if there is any
// other. It is ErrNotFound if there is no volume of that name, and ErrForeign if its
// device has a table that is not the pool's making.
func (p *MapperPool) OpenVolume(name string, exclusive bool) (Volume, error) {
	const op = "open volume"
	var v *MapperVolume
	err := p.withVolume(op, name, func(r mapperRecord) error {
		device, err := p.activateVolume(r)
		if err != nil {
			return err
		}
		v, err = p.openVolume(op, r, device, exclusive)
		return err
	})
	if err != nil {
		return nil, err
	}
	if v.info, err = p.Volume(name); err != nil {
		return nil, errors.Join(err, v.closeDevices())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.openVolumes++
	return v, nil
}

// openVolume opens the device of a volume. The caller holds the pool's lock.
func (p *MapperPool) openVolume(op string, r mapperRecord, device dm.Info, exclusive bool) (v *MapperVolume, err error) {
	path, object := dm.Path(device.Name), p.name+"/"+r.name
	v = &MapperVolume{pool: p, name: device.Name, key: fmt.Sprintf("thin:%s:%d", p.header.uuid, r.id)}
	if !exclusive {
		if v.claim, err = share(path); err != nil {
			return nil, p.openRefusal(op, object, path, err)
		}
	}
	if v.Device, err = loopdev.Open(path, loopdev.Options{Write: true, Exclusive: exclusive}); err != nil {
		return nil, errors.Join(p.openRefusal(op, object, path, err), v.closeDevices())
	}
	if v.Device.Info().Dev != uint64(device.Device) {
		foreign := &Error{Op: op, Object: object, State: path + " leads to another device", Err: ErrForeign, Hint: "remove that node, or have udev make it anew"}
		return nil, errors.Join(foreign, v.closeDevices())
	}
	v.ranges = wholeDevice{control: p.devices.control, name: device.Name, bytes: v.Device.Bytes()}
	if v.zeros, err = p.readsZeros(device); err != nil {
		return nil, errors.Join(err, v.closeDevices())
	}
	return v, nil
}

// share takes the shared lock on a device's node, until the file is closed.
func share(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%w: %s holds a lock on it", ErrInUse, lockHolders(file))
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// openRefusal says why a volume cannot be opened.
func (p *MapperPool) openRefusal(op, object, path string, err error) error {
	if !errors.Is(err, loopdev.ErrInUse) && !errors.Is(err, ErrInUse) {
		return err
	}
	return &Error{Op: op, Object: object, State: "is in use" + whoUses(path), Err: errors.Join(ErrInUse, err), Hint: "end that use first"}
}

// readsZeros says whether what a volume does not map reads as zeros, and goes on to
// do so when a part of it is written.
func (p *MapperPool) readsZeros(device dm.Info) (bool, error) {
	pool, err := p.poolDevice().table()
	if err != nil {
		return false, err
	}
	targets, err := p.devices.control.Table(device.Name)
	if err != nil {
		return false, err
	}
	for _, target := range targets {
		table, err := ParseThinTable(target.Params)
		if err != nil || table.ExternalOrigin != "" {
			return false, err
		}
	}
	return !pool.SkipBlockZeroing && !pool.IgnoreDiscard, nil
}

// Base is the block device of the volume.
func (v *MapperVolume) Base() *loopdev.Device { return v.Device }

// VolumeInfo describes the volume as it was when it was opened.
func (v *MapperVolume) VolumeInfo() VolumeInfo { return v.info }

// Info describes the device. Its Key is the volume's own, the same on every host and
// under every name.
func (v *MapperVolume) Info() loopdev.Info {
	info := v.Device.Info()
	info.Key = v.key
	return info
}

// NextData is the first range that may hold data in [off, Bytes()). Without any,
// both are Bytes(). What lies outside reads as zeros.
func (v *MapperVolume) NextData(off int64) (start, end int64, err error) {
	if off < 0 || off >= v.Bytes() || !v.zeros {
		return v.Device.NextData(off)
	}
	start, end, err = v.ranges.mapped(off)
	if err != nil {
		return 0, 0, v.failure("look for data in volume", err)
	}
	start = min(max(start, off), v.Bytes())
	return start, min(max(end, start), v.Bytes()), nil
}

// ReadsZero is true only if the range is known to hold no data, without reading it.
func (v *MapperVolume) ReadsZero(off, n int64) (bool, error) {
	if off < 0 || n < 0 || off > v.Bytes()-n || !v.zeros {
		return v.Device.ReadsZero(off, n)
	}
	start, _, err := v.NextData(off)
	return err == nil && start >= off+n, err
}

// HoldsData says whether a byte of the volume is not zero. Where it has blocks, its
// ends and samples are looked at, so that no may be wrong there.
func (v *MapperVolume) HoldsData() (bool, error) {
	if zero, err := v.ReadsZero(0, v.Bytes()); zero || err != nil {
		return false, err
	}
	return v.Device.HoldsData()
}

// AllocatedBytes is what the volume takes of its pool, in whole blocks.
func (v *MapperVolume) AllocatedBytes() (int64, error) {
	status, err := thinStatus(v.pool.devices.control, v.name)
	if err == nil && status.Failed {
		err = fmt.Errorf("the pool has failed: %w", unix.EIO)
	}
	return status.MappedBytes, v.failure("count the space of volume", err)
}

// FreeBytes is that of the pool.
func (v *MapperVolume) FreeBytes() (int64, error) { return v.pool.FreeBytes() }

// SyncFS makes the pool count discarded blocks as free: it does when it commits.
func (v *MapperVolume) SyncFS() error {
	_, err := v.pool.poolDevice().status(true)
	return v.failure("commit the pool of volume", err)
}

// wholeBlocks are the blocks of the pool inside the range. The last block of a volume
// may be one that the device does not fill, and cannot be unmapped.
func (v *MapperVolume) wholeBlocks(off, n int64) (first, end int64) {
	block := v.pool.header.blockBytes
	return (off + block - 1) / block * block, (off + n) / block * block
}

// Discard gives the space of the range back to the pool, as far as the range covers
// whole blocks of it. It is idempotent, and not durable before the next Flush. What
// was given back reads as anything.
func (v *MapperVolume) Discard(off, n int64) error {
	if off < 0 || n < 0 || off > v.Bytes()-n {
		return v.Device.Discard(off, n) // which says what is wrong
	}
	first, end := v.wholeBlocks(off, n)
	if first >= end {
		return nil
	}
	return v.Device.Discard(first, end-first)
}

// Zero makes the range read as zeros. Whole blocks are unmapped where that has this
// effect; the rest is written, unless it is not mapped anyway.
func (v *MapperVolume) Zero(off, n int64) error {
	if off < 0 || n < 0 || off > v.Bytes()-n || !v.zeros {
		return v.Device.Zero(off, n)
	}
	first, end := v.wholeBlocks(off, n)
	if first >= end {
		return v.zeroPart(off, n)
	}
	if err := v.zeroPart(off, first-off); err != nil {
		return err
	}
	if err := v.Device.Discard(first, end-first); errors.Is(err, loopdev.ErrCannotPunch) {
		err = v.Device.Zero(first, end-first)
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return v.zeroPart(end, off+n-end)
}

func (v *MapperVolume) zeroPart(off, n int64) error {
	if zero, err := v.ReadsZero(off, n); zero || err != nil {
		return err
	}
	return v.Device.Zero(off, n)
}

// Flush returns nil only if everything written and zeroed before it began survives a
// power loss, the pool's metadata included, which the kernel commits for it. A pool
// that has met an error may have gone back to an older state of its metadata, and says
// so in its status: then it fails. After the first failure it fails for ever.
func (v *MapperVolume) Flush() error {
	if err := v.Device.Flush(); err != nil {
		return err // and remembers it
	}
	v.flushing.Lock()
	defer v.flushing.Unlock()
	if v.flushErr == nil {
		status, err := v.pool.poolDevice().status(false)
		if err == nil {
			err = status.refusal("flush volume", v.pool.name+"/"+v.info.Name)
		}
		v.flushErr = v.failure("flush volume", err)
	}
	return v.flushErr
}

func (v *MapperVolume) failure(op string, err error) error {
	return wrap(err, op, v.pool.name+"/"+v.info.Name)
}

// Close gives up locks and claims. It does not flush, and the volume stays active.
// Closing a second time does nothing.
func (v *MapperVolume) Close() error {
	v.closing.Lock()
	defer v.closing.Unlock()
	if v.closed {
		return nil
	}
	v.closed = true
	err := v.closeDevices()
	v.pool.mu.Lock()
	defer v.pool.mu.Unlock()
	v.pool.openVolumes--
	return err
}

func (v *MapperVolume) closeDevices() error {
	var err error
	if v.Device != nil {
		err = v.Device.Close()
	}
	if v.claim != nil {
		err = errors.Join(err, v.claim.Close())
	}
	return err
}
