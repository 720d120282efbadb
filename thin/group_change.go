package thin

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"decant/dm"
	"decant/loopdev"
)

// groupTag is on every volume that this program has made, from the moment it exists:
// LVM writes a volume and its tags in one step. Keep takes it off.
const groupTag = "decant"

// CreateVolume makes a volume that reads as zeros and takes no space, and activates
// it. LVM rounds its size up to a multiple of the group's extents. It is ErrExists
// if the group has a volume of that name, and ErrInvalid if the arguments will not
// do: a volume of LVM keeps no blob. After a crash there is the whole volume or none.
func (p *GroupPool) CreateVolume(name string, bytes int64, blob []byte) (VolumeInfo, error) {
	const op = "create volume"
	object := p.group + "/" + name
	if err := validateNewVolumeName(name); err != nil {
		return VolumeInfo{}, err
	}
	extent := p.pool.extentBytes
	switch {
	case len(blob) > 0:
		return VolumeInfo{}, &Error{Op: op, Object: object, State: "a volume of LVM keeps no blob", Err: ErrInvalid, Hint: "make it in a pool of thinctl"}
	case bytes <= 0 || bytes > math.MaxInt64-extent:
		return VolumeInfo{}, &Error{Op: op, Object: object, State: fmt.Sprintf("a size of %d bytes", bytes), Err: ErrInvalid, Hint: "give it at least one byte"}
	}
	volumes, err := p.volumes()
	if err != nil {
		return VolumeInfo{}, err
	}
	if slices.ContainsFunc(volumes, func(l logicalVolume) bool { return l.name == name }) {
		return VolumeInfo{}, &Error{Op: op, Object: object, State: "exists already", Err: ErrExists, Hint: "take another name, or delete it first"}
	}
	_, err = p.lvm.run("lvcreate", "--type", thinSegment, "--virtualsize", fmt.Sprintf("%db", alignUp(bytes, extent)),
		"--name", name, "--thinpool", p.pool.name, "--addtag", groupTag, "--setactivationskip", "n", "--", p.group)
	if err != nil {
		return VolumeInfo{}, wrap(err, op, object)
	}
	info, err := p.created(name)
	return info, wrap(err, op, object)
}

// created looks at a volume that was made a moment ago: what is configured may have
// kept LVM from activating it.
func (p *GroupPool) created(name string) (VolumeInfo, error) {
	l, err := p.member("create volume", name)
	if err != nil {
		return VolumeInfo{}, err
	}
	if !l.active() {
		if err := p.activate(l); err != nil {
			return VolumeInfo{}, err
		}
	}
	return p.describe(l)
}

// activate makes the device of a volume, also of one that is to be left out when the
// group is activated, such as a snapshot.
func (p *GroupPool) activate(l logicalVolume) error {
	_, err := p.lvm.run("lvchange", "--activate", "y", "--ignoreactivationskip", "--", l.fullName())
	return err
}

// DeleteVolume removes a volume of this pool and gives its space back. It is
// ErrNotFound if there is none of that name, and ErrInUse while anybody uses it.
// After a crash the volume is whole or gone.
func (p *GroupPool) DeleteVolume(name string) error {
	const op = "delete volume"
	l, err := p.member(op, name)
	if err != nil {
		return err
	}
	if err := p.unused(op, l); err != nil {
		return err
	}
	// The name could lead to another volume by now. What LVM removes has both, and
	// LVM refuses what is open.
	_, err = p.lvm.run("lvremove", "--force", "--select", "lv_uuid="+l.uuid, "--", l.fullName())
	if err != nil {
		return wrap(err, op, l.fullName())
	}
	volumes, err := p.lvm.volumes(p.group)
	if err == nil && slices.ContainsFunc(volumes, func(other logicalVolume) bool { return other.uuid == l.uuid }) {
		err = errors.New("LVM says that it has removed the volume, and it is still there")
	}
	return wrap(err, op, l.fullName())
}

// unused is ErrInUse if anybody uses a volume.
func (p *GroupPool) unused(op string, l logicalVolume) error {
	if l.open() {
		return inUse(op, l, "the device is open or mounted, or part of another device", ErrInUse)
	}
	if !l.active() {
		return nil
	}
	info, err := p.control.InfoByUUID(l.deviceUUID())
	if err != nil {
		return wrap(err, op, l.fullName())
	}
	device, err := loopdev.Open(dm.Path(info.Name), loopdev.Options{Exclusive: true})
	if errors.Is(err, loopdev.ErrInUse) {
		return inUse(op, l, err.Error(), err)
	}
	if err != nil {
		return wrap(err, op, l.fullName())
	}
	return wrap(device.Close(), op, l.fullName())
}

func inUse(op string, l logicalVolume, state string, err error) error {
	return &Error{Op: op, Object: l.fullName(), State: "is in use: " + state, Err: errors.Join(ErrInUse, err), Hint: "end that use first"}
}
