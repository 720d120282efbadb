package thin

import (
	"cmp"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"decant/dm"
)

// Volumes is all volumes of the pool by name, also those that are being created
// or deleted at this moment.
func (p *MapperPool) Volumes() ([]VolumeInfo, error) {
	records, err := p.records()
	if err != nil {
		return nil, &Error{Op: "list volumes", Object: p.name, Err: err}
	}
	slices.SortFunc(records, func(a, b mapperRecord) int { return cmp.Compare(a.name, b.name) })
	infos := make([]VolumeInfo, len(records))
	for i, r := range records {
		if infos[i], err = p.info(r, records); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

// Volume is one volume of the pool. It is ErrNotFound if there is none of that
// name.
func (p *MapperPool) Volume(name string) (VolumeInfo, error) {
	const op = "show volume"
	if err := ValidateName(name); err != nil {
		return VolumeInfo{}, err
	}
	records, err := p.records()
	if err != nil {
		return VolumeInfo{}, &Error{Op: op, Object: p.name + "/" + name, Err: err}
	}
	r, found := byName(records, name)
	if !found {
		return VolumeInfo{}, p.noSuchVolume(op, name)
	}
	return p.info(r, records)
}

func (p *MapperPool) info(r mapperRecord, all []mapperRecord) (VolumeInfo, error) {
	mapped, err := p.mappedBytes(r)
	if err != nil {
		return VolumeInfo{}, &Error{Op: "show volume", Object: p.name + "/" + r.name, Err: err}
	}
	origin := ""
	if i := slices.IndexFunc(all, func(o mapperRecord) bool { return r.origin != noOrigin && o.id == r.origin }); i >= 0 {
		origin = all[i].name
	}
	return VolumeInfo{
		Pool: p.name, Name: r.name, ID: r.id, ThinID: uint64(r.thinID), Origin: origin, SizeBytes: r.sizeBytes,
		MappedBytes: mapped, ExclusiveBytes: mapped, Blob: r.blob, State: r.state, Created: r.created,
		Path: dm.Path(volumeDeviceName(p.name, r.name)),
	}, nil
}

// mappedBytes is what a volume takes of the pool, 0 if it has no thin device.
func (p *MapperPool) mappedBytes(r mapperRecord) (int64, error) {
	info, found, err := find(p.devices.control, p.devices.volumeUUID(r.id))
	if err != nil {
		return 0, err
	}
	if found && info.ActiveTable {
		status, err := volumeStatus(p.devices.control, info.Name)
		if !errors.Is(err, unix.ENXIO) { // else it was deactivated a moment ago
			return status.MappedBytes, err
		}
	}
	var status VolumeStatus
	err = p.lock.with(func() error {
		status, _, err = p.devices.peek(p.pool, r.thinID, p.sectors(r.sizeBytes))
		return err
	})
	return status.MappedBytes, err
}

func (p *MapperPool) noSuchVolume(op, name string) error {
	return &Error{Op: op, Object: p.name + "/" + name, State: "there is no such volume", Err: ErrNotFound, Hint: "see thinctl list " + p.name}
}

func byName(records []mapperRecord, name string) (mapperRecord, bool) {
	i := slices.IndexFunc(records, func(r mapperRecord) bool { return r.name == name })
	if i < 0 {
		return mapperRecord{}, false
	}
	return records[i], true
}
