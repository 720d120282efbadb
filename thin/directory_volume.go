package thin

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"decant/loopdev"
)

// DirectoryVolume is an open volume of a directory pool. It is the device that its file is, except
// that it does not grow beyond the pool's limit. Only writing takes space: pools
// are where files can be punched, and so Zero gives space back. All methods may be
// called concurrently; ranges of concurrent writes must not overlap.
type DirectoryVolume struct {
	*loopdev.Device
	pool  *DirectoryPool
	info  VolumeInfo
	claim *os.File // holds the shared lock on the file; nil if the device holds the exclusive one

	closing sync.Mutex
	closed  bool
}

// OpenVolume opens a volume for reading and writing. While it is open the volume
// cannot be deleted. An exclusive opening is the only one; it is ErrInUse if there
// is any other, and so is any opening while there is an exclusive one. It is
// ErrNotFound if there is no volume of that name, and ErrForeign if its file is
// not the one that the pool made.
func (p *DirectoryPool) OpenVolume(name string, exclusive bool) (Volume, error) {
	const op = "open volume"
	if err := ValidateName(name); err != nil {
		return nil, err
	}
	var v *DirectoryVolume
	// Under the lock, so that the volume is not deleted before it is claimed.
	err := p.lock.with(func() error {
		if err := p.settle(); err != nil {
			return err
		}
		r, err := p.active(op, name)
		if err != nil {
			return err
		}
		v, err = p.openVolume(op, r, exclusive)
		return err
	})
	if err != nil {
		return nil, wrap(err, op, p.name+"/"+name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.openVolumes++
	return v, nil
}

// openVolume opens the file of an active volume. The caller holds the pool's lock.
func (p *DirectoryPool) openVolume(op string, r volumeRecord, exclusive bool) (*DirectoryVolume, error) {
	info, err := p.info(r)
	if err != nil {
		return nil, err
	}
	claim, err := p.openFile(op, r.name)
	if err != nil {
		return nil, err
	}
	v := &DirectoryVolume{pool: p, info: info, claim: claim}
	if !exclusive {
		if err := p.share(op, r.name, claim); err != nil {
			return nil, errors.Join(err, claim.Close())
		}
	}
	if v.Device, err = p.openDevice(op, r, claim, loopdev.Options{Write: true, Exclusive: exclusive}); err != nil {
		return nil, errors.Join(err, claim.Close())
	}
	if exclusive {
		v.claim = nil
		return v, claim.Close()
	}
	return v, nil
}

// unusedFile opens the file of a volume as its only user. It is ErrInUse if there
// is any other, and os.ErrNotExist if there is no file.
func (p *DirectoryPool) unusedFile(op string, r volumeRecord) (*loopdev.Device, error) {
	claim, err := p.openFile(op, r.name)
	if err != nil {
		return nil, err
	}
	device, err := p.openDevice(op, r, claim, loopdev.Options{Exclusive: true})
	// Closed before the search for users, of which it would be one.
	if err := errors.Join(err, claim.Close()); err != nil {
		return nil, err
	}
	uses, err := device.UsedBy()
	if err == nil && len(uses) > 0 {
		err = &Error{Op: op, Object: p.name + "/" + r.name, State: "is in use: " + uses[0].String(), Err: ErrInUse, Hint: "end that use first"}
	}
	if err != nil {
		return nil, errors.Join(err, device.Close())
	}
	return device, nil
}

// openDevice opens the file of a volume, which must be the one that was claimed.
func (p *DirectoryPool) openDevice(op string, r volumeRecord, claim *os.File, o loopdev.Options) (*loopdev.Device, error) {
	device, err := loopdev.Open(p.volumePath(r.name), o)
	if errors.Is(err, loopdev.ErrInUse) {
		return nil, p.inUse(op, r.name, claim)
	}
	if err != nil {
		return nil, err
	}
	if err := p.checkFile(op, r, claim, device.Info()); err != nil {
		return nil, errors.Join(err, device.Close())
	}
	return device, nil
}

// checkFile is ErrForeign unless the device is the regular file that was claimed,
// with the size on record.
func (p *DirectoryPool) checkFile(op string, r volumeRecord, claim *os.File, info loopdev.Info) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(claim.Fd()), &stat); err != nil {
		return err
	}
	switch {
	case info.Kind != loopdev.File || info.Dev != stat.Dev || info.Inode != stat.Ino:
		return p.foreign(op, r.name, "was replaced at this moment")
	case info.Bytes != r.sizeBytes:
		return p.foreign(op, r.name, fmt.Sprintf("has %d bytes and the volume has %d", info.Bytes, r.sizeBytes))
	}
	return nil
}

// Base is the file of the volume.
func (v *DirectoryVolume) Base() *loopdev.Device { return v.Device }

// VolumeInfo describes the volume as it was when it was opened.
func (v *DirectoryVolume) VolumeInfo() VolumeInfo { return v.info }

// WriteAt writes p at off. A write that would bring the pool above its limit is a
// *NoSpaceError, and nothing of it is written. It is durable after Flush.
func (v *DirectoryVolume) WriteAt(p []byte, off int64) (int, error) {
	if len(p) == 0 || off < 0 || off > v.Bytes()-int64(len(p)) {
		return v.Device.WriteAt(p, off) // writes nothing; the device says what is wrong
	}
	charged, err := v.charge(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer v.pool.account.settle(charged)
	return v.Device.WriteAt(p, off)
}

// charge accounts for a write of n bytes at off, which lie in the volume.
func (v *DirectoryVolume) charge(off, n int64) (int64, error) {
	block := v.pool.blockBytes
	start, end := off&^(block-1), roundUp(off+n, block)
	charged, err := v.pool.account.charge(end-start, func() (int64, error) { return v.holeBytes(start, end) })
	var full *NoSpaceError
	switch {
	case errors.As(err, &full):
		full.Pool, full.Volume = v.info.Pool, v.info.Name
		return 0, full
	case err != nil:
		return 0, &Error{Op: "account for a write", Object: v.info.Pool + "/" + v.info.Name, Err: err}
	}
	return charged, nil
}

// holeBytes is how much of [start, end) has nothing allocated, in whole blocks.
func (v *DirectoryVolume) holeBytes(start, end int64) (int64, error) {
	holes := int64(0)
	for at := start; at < end; {
		dataStart, dataEnd := end, end
		if at < v.Bytes() {
			var err error
			if dataStart, dataEnd, err = v.NextData(at); err != nil {
				return 0, err
			}
			if dataStart == v.Bytes() {
				dataStart, dataEnd = end, end // no data from here on
			}
		}
		holes += min(dataStart, end) - at
		at = roundUp(max(dataEnd, at+1), v.pool.blockBytes)
	}
	return holes, nil
}

// Flush makes what was written and zeroed before it began survive a power loss,
// and gives back what the pool had granted ahead. After an error nothing is known
// of what was written since the last good Flush, and Flush is never retried.
func (v *DirectoryVolume) Flush() error {
	if err := v.Device.Flush(); err != nil {
		return err
	}
	// A grant that cannot be given back concerns nobody's data: others may find
	// less free than there is, until the next look at the pool.
	_ = v.pool.account.release()
	return nil
}

// FreeBytes is that of the pool.
func (v *DirectoryVolume) FreeBytes() (int64, error) { return v.pool.FreeBytes() }

// Close gives up locks and what was granted ahead. It does not flush. Closing a
// second time does nothing.
func (v *DirectoryVolume) Close() error {
	v.closing.Lock()
	defer v.closing.Unlock()
	if v.closed {
		return nil
	}
	v.closed = true
	err := v.Device.Close()
	if v.claim != nil {
		err = errors.Join(err, v.claim.Close())
	}
	_ = v.pool.account.release() // as in Flush
	v.pool.mu.Lock()
	defer v.pool.mu.Unlock()
	v.pool.openVolumes--
	return err
}

// openFile opens the file of a volume to be locked, nothing else. It is
// ErrForeign if there is anything but a regular file.
func (p *DirectoryPool) openFile(op, name string) (*os.File, error) {
	file, err := os.OpenFile(p.volumePath(name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, p.foreign(op, name, "is a symbolic link")
	}
	if err != nil {
		return nil, err
	}
	stat, err := file.Stat()
	if err == nil && !stat.Mode().IsRegular() {
		err = p.foreign(op, name, "is not a regular file")
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// foreign says what is wrong with the file of a volume.
func (p *DirectoryPool) foreign(op, name, state string) error {
	return &Error{
		Op: op, Object: p.name + "/" + name, State: p.volumePath(name) + " " + state, Err: ErrForeign,
		Hint: "nobody but decant may change files in the directory of a pool",
	}
}

// share takes the shared lock on the file of a volume, until the file is closed.
// It is ErrInUse if somebody has the exclusive one.
func (p *DirectoryPool) share(op, name string, file *os.File) error {
	err := unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return p.inUse(op, name, file)
	}
	return err
}

// inUse says who holds the file of a volume.
func (p *DirectoryPool) inUse(op, name string, file *os.File) error {
	return &Error{Op: op, Object: p.name + "/" + name, State: "is in use by " + lockHolders(file), Err: ErrInUse, Hint: "end that process first"}
}
