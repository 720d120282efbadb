package thin

import (
	"errors"
	"fmt"
	"strings"

	"decant/dm"
	"decant/loopdev"
)

// sectors is the size of a volume's device: whole logical blocks, which are those of
// the data device.
func (p *MapperPool) sectors(bytes int64) uint64 {
	unit := p.device.Info().LogicalBlockBytes
	return uint64((bytes + unit - 1) / unit * unit / dm.SectorBytes)
}

// activateVolume makes the device of a volume, if there is none. It is never
// smaller than the volume: what lies beyond its end would be hidden, and lost to
// whoever copies it. The caller holds the pool's lock.
func (p *MapperPool) activateVolume(r mapperRecord) (dm.Info, error) {
	const op = "activate volume"
	sectors := p.sectors(r.sizeBytes)
	info, err := start(p.devices.control, volumeDeviceName(p.name, r.name), p.devices.volumeUUID(r.id), thinTargetOf(p.pool, r.thinID, sectors))
	if err != nil {
		return info, wrap(err, op, p.name+"/"+r.name)
	}
	targets, err := p.devices.control.Table(info.Name)
	if err != nil {
		return info, wrap(err, op, p.name+"/"+r.name)
	}
	if len(targets) == 1 && targets[0].Type == thinTarget && targets[0].Length >= sectors {
		if table, err := ParseVolumeTable(targets[0].Params); err == nil && table.ID == r.thinID {
			return info, nil
		}
	}
	return info, &Error{
		Op: op, Object: p.name + "/" + r.name, State: fmt.Sprintf("its device %s has another table than a thin volume of %d sectors", dm.Path(info.Name), sectors),
		Err: ErrForeign, Hint: "somebody else has changed it: deactivate it with thinctl deactivate, and activate it again",
	}
}

// stopVolume removes the device of a volume, if there is one. It is ErrInUse while
// somebody has it open. The caller holds the pool's lock.
func (p *MapperPool) stopVolume(op string, r mapperRecord) error {
	info, found, err := find(p.devices.control, p.devices.volumeUUID(r.id))
	if err != nil || !found {
		return err
	}
	err = stop(p.devices.control, info.Name)
	if errors.Is(err, ErrInUse) {
		return &Error{Op: op, Object: p.name + "/" + r.name, State: "is in use" + whoUses(dm.Path(info.Name)), Err: errors.Join(ErrInUse, err), Hint: "end that use first"}
	}
	return err
}

// whoUses says who uses a device, for messages only.
func whoUses(path string) string {
	device, err := loopdev.Open(path, loopdev.Options{})
	if err != nil {
		return ""
	}
	defer device.Close() //nolint:errcheck // only looked at
	uses, err := device.UsedBy()
	if err != nil || len(uses) == 0 {
		return ""
	}
	sentences := make([]string, len(uses))
	for i, use := range uses {
		sentences[i] = use.String()
	}
	return ": " + strings.Join(sentences, ", ")
}

// Activate makes the device of a volume, at /dev/mapper/POOL-VOLUME, until it is
// deactivated or the host is started anew. It may be active already.
func (p *MapperPool) Activate(name string) (VolumeInfo, error) {
	if err := p.withVolume("activate volume", name, func(r mapperRecord) error {
		_, err := p.activateVolume(r)
		return err
	}); err != nil {
		return VolumeInfo{}, err
	}
	return p.Volume(name)
}

// Deactivate removes the device of a volume, whose data stays. It is ErrInUse while
// somebody has it open.
func (p *MapperPool) Deactivate(name string) error {
	const op = "deactivate volume"
	return p.withVolume(op, name, func(r mapperRecord) error { return p.stopVolume(op, r) })
}
