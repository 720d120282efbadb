package thin

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"decant/dm"
	"decant/loopdev"
)

// GroupVolume is an open thin volume of LVM. It is the block device that it is, with
// what its pool tells about it. All methods may be called concurrently; ranges of
// concurrent writes must not overlap.
//
// Its key is that of the block device, so that it is known again when it is opened
// by its path: the UUIDs of group and volume, which stay the same under other names
// and on other hosts.
type GroupVolume struct {
	*deviceVolume
	pool      *GroupPool
	volume    logicalVolume // as it was when it was opened
	info      VolumeInfo
	activated bool // by this handle

	closing sync.Mutex
	closed  bool
}

// OpenVolume opens a volume of this pool for reading and writing. One that is
// inactive is active until it is closed. While it is open the volume cannot be
// deleted. An exclusive opening is the only one; it is ErrInUse if there is any
// other. It is ErrNotFound if there is no volume of that name, and ErrInvalid if it
// is not of this pool, or read-only.
func (p *GroupPool) OpenVolume(name string, exclusive bool) (Volume, error) {
	const op = "open volume"
	l, err := p.member(op, name)
	if err != nil {
		return nil, err
	}
	if l.readOnly() {
		return nil, &Error{
			Op: op, Object: l.fullName(), State: "is read-only", Err: ErrInvalid,
			Hint: "let it be written to: lvchange --permission rw " + l.fullName(),
		}
	}
	v := &GroupVolume{pool: p, volume: l}
	if !l.active() {
		if err := p.activate(l); err != nil {
			return nil, wrap(err, op, l.fullName())
		}
		v.activated = true
	}
	if err := v.open(exclusive); err != nil {
		v.deactivate()
		return nil, wrap(err, op, l.fullName())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.openVolumes++
	return v, nil
}

// open opens the device of an active volume.
func (v *GroupVolume) open(exclusive bool) error {
	poolDevice, err := v.pool.activeDevice()
	if err != nil {
		return err
	}
	own, err := v.pool.control.InfoByUUID(v.volume.deviceUUID())
	if err != nil {
		return err
	}
	device, err := loopdev.Open(dm.Path(own.Name), loopdev.Options{Write: true, Exclusive: exclusive})
	if errors.Is(err, loopdev.ErrInUse) {
		return inUse("open volume", v.volume, "the device is open or mounted, or part of another device", err)
	}
	if err != nil {
		return err
	}
	if device.Info().Dev != uint64(own.Device) {
		err = fmt.Errorf("%s is not the device of the volume: %w", dm.Path(own.Name), ErrForeign)
	}
	if err == nil {
		v.deviceVolume, err = newDeviceVolume(device, poolDevice, own.Name, device.Info().Key)
	}
	if err == nil {
		v.path = "/dev/" + v.volume.fullName()
		v.info, err = v.pool.describe(v.volume)
	}
	if err != nil {
		return errors.Join(err, device.Close())
	}
	return nil
}

// VolumeInfo describes the volume as it was when it was opened.
func (v *GroupVolume) VolumeInfo() VolumeInfo { return v.info }

// Fresh says whether CreateVolume has made the volume and Keep was not called for it:
// whoever wanted it has not come to the point of using it.
func (v *GroupVolume) Fresh() bool { return slices.Contains(v.volume.tags, groupTag) }

// Keep says that a volume which CreateVolume has made is for others to use from now
// on. It changes nothing else.
func (v *GroupVolume) Keep() error {
	if !v.Fresh() {
		return nil
	}
	_, err := v.pool.lvm.run("lvchange", "--deltag", groupTag, "--select", "lv_uuid="+v.volume.uuid, "--", v.volume.fullName())
	return wrap(err, "hand over volume", v.volume.fullName())
}

// Relatives are the volumes that may share blocks with this one: its snapshots and
// what it is a snapshot of. What they share is not given back by Discard.
func (v *GroupVolume) Relatives() ([]string, error) {
	volumes, err := v.pool.lvm.volumes(v.pool.group)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range v.pool.members(volumes) {
		if l.uuid != v.volume.uuid && (l.origin == v.volume.name || l.name == v.volume.origin) {
			names = append(names, l.name)
		}
	}
	return names, nil
}

// Close gives up locks and claims, and deactivates the volume if it was inactive
// before. It does not flush. Closing a second time does nothing.
func (v *GroupVolume) Close() error {
	v.closing.Lock()
	defer v.closing.Unlock()
	if v.closed {
		return nil
	}
	v.closed = true
	err := v.deviceVolume.Close()
	v.deactivate()
	v.pool.mu.Lock()
	defer v.pool.mu.Unlock()
	v.pool.openVolumes--
	return err
}

// deactivate leaves the volume as it was found.
func (v *GroupVolume) deactivate() {
	if v.activated {
		// An active volume harms nobody, and somebody may have begun to use it.
		_, _ = v.pool.lvm.run("lvchange", "--activate", "n", "--", v.volume.fullName())
	}
}
