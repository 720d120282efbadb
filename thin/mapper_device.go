package thin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"decant/dm"
)

// Devices of this program are known by their UUIDs, which nobody else gives and
// which stay when somebody renames one. All of a pool's end in the pool's own UUID,
// and those of its volumes in the thin id behind that.
const (
	poolUUIDPrefix    = "DECANT-pool-"
	catalogUUIDPrefix = "DECANT-catalog-"
	volumeUUIDPrefix  = "DECANT-vol-"
	peekUUIDPrefix    = "DECANT-peek-"
	probeUUIDPrefix   = "DECANT-probe-"
)

// catalogDeviceName is the name of a catalog's device, which no pool and no volume
// can have: their names have no colon.
func catalogDeviceName(pool string) string { return pool + ":catalog" }

// peekDeviceName is that of a device which is never resumed.
func peekDeviceName(pool string) string { return pool + ":peek" }

// volumeDeviceName is the name of a volume's device.
func volumeDeviceName(pool, volume string) string { return pool + "-" + volume }

// quietRules keep udev from looking into what is a guest's, or this program's own.
var quietRules = []dm.UdevRules{dm.NoSubsystemRules, dm.NoDiskRules, dm.NoOtherRules}

// removePatience is how long a device may be kept busy by programs that look at
// every new one.
const removePatience = 2 * time.Second

// mapperDevices are the kernel's devices of one pool. Changes are made under the
// pool's lock only.
type mapperDevices struct {
	control *dm.Control
	uuid    string // of the pool
}

// volumeUUID goes by the volume's own id, which is never used again: so a device with
// it is that volume, and none that came to have its name or its thin id.
func (d mapperDevices) volumeUUID(id uint64) string {
	return fmt.Sprintf("%s%s-%d", volumeUUIDPrefix, d.uuid, id)
}

// find is the device with that UUID, if there is one.
func find(control *dm.Control, uuid string) (info dm.Info, found bool, err error) {
	info, err = control.InfoByUUID(uuid)
	if errors.Is(err, unix.ENXIO) {
		return dm.Info{}, false, nil
	}
	return info, err == nil, err
}

// start makes a device of one target and lets it go. One that is there already stays
// as it is. It is ErrExists if a device of somebody else has the name, and leaves
// nothing behind if it fails.
func start(control *dm.Control, name, uuid string, target dm.Target) (dm.Info, error) {
	info, found, err := find(control, uuid)
	if err != nil || found && info.ActiveTable {
		return info, err
	}
	if found { // a crash came before it had a table
		if err := stop(control, info.Name); err != nil {
			return info, err
		}
	}
	if err := nameFree(control, name); err != nil {
		return info, err
	}
	if _, err = control.Create(name, uuid); err != nil {
		return info, err
	}
	if err = control.Load(name, []dm.Target{target}); err == nil {
		err = control.Resume(name, quietRules...)
	}
	if err != nil {
		return info, errors.Join(err, stop(control, name))
	}
	return control.Info(name)
}

// nameFree is ErrExists if there is a device of that name.
func nameFree(control *dm.Control, name string) error {
	if err := dm.CheckName(name); err != nil {
		return &Error{
			Op: "make device", Object: dm.Path(name), State: err.Error(), Err: errors.Join(ErrInvalid, err),
			Hint: fmt.Sprintf("take other names; that of the pool and that of the volume have %d bytes together at most", dm.MaxNameBytes-1),
		}
	}
	info, err := control.Info(name)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return err
	}
	return &Error{
		Op: "make device", Object: dm.Path(name), State: fmt.Sprintf("there is another device of that name (UUID %q)", info.UUID), Err: ErrExists,
		Hint: "names of pools and volumes are joined by a hyphen: take another name, or deactivate the other device first",
	}
}

// stop removes a device. It is ErrInUse if somebody has it open, and nil if it is
// gone already.
func stop(control *dm.Control, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), removePatience)
	defer cancel()
	err := control.RemoveRetry(ctx, name)
	switch {
	case errors.Is(err, unix.ENXIO):
		return nil
	case errors.Is(err, unix.EBUSY):
		return &Error{Op: "remove device", Object: dm.Path(name), State: "is open or mounted, or part of another device", Err: errors.Join(ErrInUse, err), Hint: "end that use first; see lsblk and fuser"}
	}
	return err
}

// ours is the devices whose UUID begins with the prefix.
func ours(control *dm.Control, prefix string) ([]dm.Info, error) {
	list, err := control.List()
	if err != nil {
		return nil, err
	}
	var found []dm.Info
	for _, entry := range list {
		if !strings.HasPrefix(entry.UUID, prefix) {
			continue
		}
		info, ok, err := find(control, entry.UUID)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, info)
		}
	}
	return found, nil
}

// volumes is the devices of the pool's volumes.
func (d mapperDevices) volumes() ([]dm.Info, error) {
	return ours(d.control, volumeUUIDPrefix+d.uuid+"-")
}

// settle puts right what a process left that died between two steps: a suspended
// device hangs everybody who touches it, a loaded table would take effect at the
// next occasion. The pool itself comes first, because its volumes wait for it.
func (d mapperDevices) settle() error {
	for _, prefix := range []string{poolUUIDPrefix + d.uuid, catalogUUIDPrefix + d.uuid, volumeUUIDPrefix + d.uuid + "-", peekUUIDPrefix + d.uuid} {
		infos, err := ours(d.control, prefix)
		if err != nil {
			return err
		}
		for _, info := range infos {
			if err := d.settleOne(info); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d mapperDevices) settleOne(info dm.Info) error {
	if !info.ActiveTable {
		return stop(d.control, info.Name)
	}
	if info.InactiveTable {
		if err := d.control.Clear(info.Name); err != nil {
			return err
		}
	}
	if info.Suspended {
		return d.control.Resume(info.Name, quietRules...)
	}
	return nil
}

// peek asks the pool for a thin device without making it usable: whether there is
// one of that id, and its status. sectors is its size, which must not be too small.
func (d mapperDevices) peek(pool dm.Info, thinID uint32, sectors uint64) (status VolumeStatus, found bool, err error) {
	name := peekDeviceName(pool.Name)
	if left, found, err := find(d.control, peekUUIDPrefix+d.uuid); err != nil {
		return status, false, err
	} else if found { // by a process that has died
		if err := stop(d.control, left.Name); err != nil {
			return status, false, err
		}
	}
	if _, err := d.control.Create(name, peekUUIDPrefix+d.uuid); err != nil {
		return status, false, err
	}
	defer func() { err = errors.Join(err, stop(d.control, name)) }()
	err = d.control.Load(name, []dm.Target{thinTargetOf(pool, thinID, sectors)})
	if errors.Is(err, unix.ENODATA) {
		return status, false, nil
	}
	if err != nil {
		return status, false, err
	}
	targets, err := d.control.InactiveStatus(name)
	if err != nil {
		return status, true, err
	}
	if len(targets) != 1 || targets[0].Type != thinTarget {
		return status, true, fmt.Errorf("thin device %d: %w", thinID, errStatus)
	}
	status, err = ParseVolumeStatus(targets[0].Params)
	return status, true, err
}

// thinTargetOf is the table of a thin device.
func thinTargetOf(pool dm.Info, thinID uint32, sectors uint64) dm.Target {
	return dm.Target{Length: sectors, Type: thinTarget, Params: VolumeTable{Pool: pool.Device.String(), ID: thinID}.String()}
}

// deactivate removes all devices of the pool. It is ErrInUse, and nothing is
// removed, if somebody uses one of its volumes. The catalog must not be open.
func (d mapperDevices) deactivate(op, object string) error {
	volumes, err := d.volumes()
	if err != nil {
		return err
	}
	for _, info := range volumes {
		if info.OpenCount > 0 {
			return &Error{Op: op, Object: object, State: fmt.Sprintf("its volume %s is in use", dm.Path(info.Name)), Err: ErrInUse, Hint: "end that use first; see lsblk and fuser"}
		}
	}
	for _, info := range volumes {
		if err := stop(d.control, info.Name); err != nil {
			return err
		}
	}
	for _, uuid := range []string{peekUUIDPrefix + d.uuid, catalogUUIDPrefix + d.uuid, poolUUIDPrefix + d.uuid} {
		info, found, err := find(d.control, uuid)
		if err != nil {
			return err
		}
		if found {
			if err := stop(d.control, info.Name); err != nil {
				return err
			}
		}
	}
	return nil
}
