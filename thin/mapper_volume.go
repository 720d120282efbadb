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

// MapperVolume is an open volume of a dm-thin pool: the block device that it is, with
// what its pool tells about it. All methods may be called concurrently; ranges of
// concurrent writes must not overlap.
type MapperVolume struct {
	*deviceVolume
	pool  *MapperPool
	info  VolumeInfo
	claim *os.File // holds the shared lock on the node; nil if the device holds the exclusive one

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
		if err == nil {
			v, err = p.openVolume(op, r, device, exclusive)
		}
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
func (p *MapperPool) openVolume(op string, r mapperRecord, device dm.Info, exclusive bool) (*MapperVolume, error) {
	path, object := dm.Path(device.Name), p.name+"/"+r.name
	v := &MapperVolume{pool: p}
	if !exclusive {
		var err error
		if v.claim, err = share(path); err != nil {
			return nil, p.openRefusal(op, object, path, err)
		}
	}
	opened, err := loopdev.Open(path, loopdev.Options{Write: true, Exclusive: exclusive})
	if err != nil {
		return nil, errors.Join(p.openRefusal(op, object, path, err), v.closeDevices())
	}
	if opened.Info().Dev != uint64(device.Device) {
		err = &Error{Op: op, Object: object, State: path + " leads to another device", Err: ErrForeign, Hint: "remove that node, or have udev make it anew"}
	}
	if err == nil {
		v.deviceVolume, err = newDeviceVolume(opened, p.poolDevice(), device.Name, opened.Info().Key)
	}
	if err != nil {
		return nil, errors.Join(err, opened.Close(), v.closeDevices())
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

// FreeBytes is that of the pool.
func (v *MapperVolume) FreeBytes() (int64, error) { return v.pool.FreeBytes() }

// VolumeInfo describes the volume as it was when it was opened.
func (v *MapperVolume) VolumeInfo() VolumeInfo { return v.info }

// Info describes the device. Its Key is the volume's own, the same on every host and
// under every name, and its Path stays the same over a reboot.
func (v *MapperVolume) Info() loopdev.Info {
	info := v.deviceVolume.Info()
	info.Path = dm.Path(v.name)
	return info
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
	if v.deviceVolume != nil {
		err = v.deviceVolume.Close()
	}
	if v.claim != nil {
		err = errors.Join(err, v.claim.Close())
	}
	return err
}
