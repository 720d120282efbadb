package thin

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/loopdev"
)

// MapperPool is an open handle of a dm-thin pool: one of the kernel's, which this
// program owns, with its catalog on thin device 0. Its methods may be called
// concurrently, and several processes may have handles of one pool. A change that a
// method returned nil for survives a power loss.
type MapperPool struct {
	registry Registry
	entry    mapperEntry
	name     string
	header   mapperHeader // as it was at the opening
	devices  mapperDevices
	pool     dm.Info // of the pool's device
	device   *loopdev.Device
	catalog  mapperCatalog
	lock     *lock
	handle   handleFile

	mu          sync.Mutex
	openVolumes int

	// crashPoint is called between the steps of every change with the name of the
	// step that has just ended. Tests end the change there.
	crashPoint func(step string)
}

// openMapper opens a registered pool, makes it active if it is not, and settles what
// a crash left of its devices and in its catalog.
func openMapper(r Registry, e mapperEntry) (*MapperPool, error) {
	const op = "open pool"
	object := e.Data + ", " + e.Metadata
	control, err := dm.Open()
	if err != nil {
		return nil, &Error{Op: op, Object: object, Err: err}
	}
	l, err := newMapperLock(e.UUID)
	if err != nil {
		return nil, errors.Join(&Error{Op: op, Object: object, Err: err}, control.Close())
	}
	p := &MapperPool{
		registry: r, entry: e, devices: mapperDevices{control: control, uuid: e.UUID}, lock: l, crashPoint: func(string) {},
	}
	if err := l.with(p.start); err != nil {
		return nil, errors.Join(wrap(err, op, object), l.Close(), control.Close())
	}
	return p, nil
}

// start activates the pool, reads its record, settles it, and enrols the handle. The
// caller holds the pool's lock.
func (p *MapperPool) start() (err error) {
	if err := p.devices.settle(); err != nil {
		return err
	}
	if err := p.activate(); err != nil {
		return err
	}
	catalog, err := start(p.devices.control, catalogDeviceName(p.pool.Name), catalogUUIDPrefix+p.entry.UUID, thinTargetOf(p.pool, 0, catalogSectors))
	if err != nil {
		return err
	}
	if p.device, err = loopdev.Open(dm.Path(catalog.Name), loopdev.Options{Write: true}); err != nil {
		return err
	}
	p.catalog = mapperCatalog{device: p.device}
	err = p.enrol()
	if err == nil {
		return nil
	}
	err = errors.Join(err, p.device.Close())
	if p.header.state == Deleting {
		err = errors.Join(err, p.bury())
	}
	return err
}

// enrol reads the record of the active pool, and makes the handle one of its users,
// unless it is another pool or none any more. It settles the catalog.
func (p *MapperPool) enrol() (err error) {
	const op = "open pool"
	if p.header, err = p.catalog.header(); err != nil {
		return p.unreadable(err)
	}
	p.name = p.header.name
	switch {
	case p.header.uuid != p.entry.UUID:
		return &Error{Op: op, Object: p.name, State: "its catalog is that of another pool, with UUID " + p.header.uuid, Err: ErrForeign}
	case p.header.state == Deleting:
		return &Error{Op: op, Object: p.name, State: "was being destroyed when a crash came; it is gone now", Err: ErrNotFound}
	}
	if p.handle, err = openHandleFile(p.entry.UUID); err != nil {
		return err
	}
	if err := p.settleAtStart(); err != nil {
		return errors.Join(err, p.handle.Close())
	}
	return nil
}

// unreadable says why the catalog cannot be read.
func (p *MapperPool) unreadable(err error) error {
	state := fmt.Sprintf("its catalog cannot be read: %v", err)
	if status, statusErr := p.poolDevice().status(false); statusErr == nil && status.Mode != ReadWrite {
		state += fmt.Sprintf("; the pool is in mode %s", status.Mode)
	}
	return &Error{Op: "open pool", Object: p.pool.Name, State: state, Err: err, Hint: "see the kernel's log; thinctl pool close and open it again, and thin_check"}
}

// activate makes the pool's device if there is none. The caller holds the pool's lock.
func (p *MapperPool) activate() error {
	const op = "open pool"
	control := p.devices.control
	info, there, err := find(control, poolUUIDPrefix+p.entry.UUID)
	if err != nil || there {
		p.pool = info
		return err
	}
	return withActivation(func() error {
		f, err := recognize(op, control, p.entry.Data, p.entry.Metadata)
		if err != nil {
			return err
		}
		hint := "if its devices have moved: thinctl pool open --data DEV --metadata DEV"
		switch {
		case f.data.key != p.entry.DataKey || f.metadata.key != p.entry.MetadataKey:
			return &Error{Op: op, Object: p.entry.Data + ", " + p.entry.Metadata, State: "are not the devices that were registered", Err: ErrForeign, Hint: hint}
		case f.header.uuid != p.entry.UUID:
			return &Error{Op: op, Object: p.entry.Data, State: "holds the pool " + f.header.name + " with UUID " + f.header.uuid, Err: ErrForeign, Hint: hint}
		}
		target := poolTargetOf(f.data, f.metadata, f.superblock.blockBytes, f.header.lowWaterBlocks, f.superblock.dataBlocks)
		p.pool, err = start(control, f.header.name, poolUUIDPrefix+f.header.uuid, target)
		return err
	})
}

// OpenMapper opens the pool on two devices, makes it active if it is not, and
// registers it under the name in its catalog. It is ErrExists if another pool is
// registered under that name, and ErrForeign if the devices hold no pool of this
// program.
func (r Registry) OpenMapper(data, metadata string) (*MapperPool, error) {
	const op = "open pool"
	control, err := dm.Open()
	if err != nil {
		return nil, &Error{Op: op, Object: data + ", " + metadata, Err: err}
	}
	e, err := identify(op, control, data, metadata)
	if err := errors.Join(err, control.Close()); err != nil {
		return nil, err
	}
	p, err := openMapper(r, e)
	if err != nil {
		return nil, err
	}
	p.entry.BlockBytes, p.entry.LowWaterBlocks = p.header.blockBytes, p.header.lowWaterBlocks
	if err := r.addMapper(p.name, p.entry); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// identify is the entry of the pool on two devices, active or not.
func identify(op string, control *dm.Control, data, metadata string) (e mapperEntry, err error) {
	err = withActivation(func() error {
		var active string
		f := found{}
		for path, b := range map[string]*backing{data: &f.data, metadata: &f.metadata} {
			device, described, err := openBacking(op, path, loopdev.Options{})
			if err != nil {
				return err
			}
			*b = described
			if err := device.Close(); err != nil {
				return err
			}
		}
		if active, err = activeOn(control, f.data.number, f.metadata.number); err != nil {
			return err
		}
		if active == "" {
			if f, err = recognize(op, control, data, metadata); err != nil {
				return err
			}
			active = f.header.uuid
		}
		e = mapperEntry{
			Kind: KindMapper, UUID: active, Data: f.data.path, Metadata: f.metadata.path, DataKey: f.data.key, MetadataKey: f.metadata.key,
		}
		return nil
	})
	return e, wrap(err, op, data+", "+metadata)
}

// Stack is what the pool's volumes take their space from.
func (p *MapperPool) Stack() (*Stack, error) { return FindPoolStack(p.pool.Name) }

func (p *MapperPool) poolDevice() poolDevice {
	return poolDevice{control: p.devices.control, name: p.pool.Name}
}

// status is that of the pool now.
func (p *MapperPool) status() (TargetStatus, error) { return p.poolDevice().currentStatus() }

// Name is the name of the pool.
func (p *MapperPool) Name() string { return p.name }

// Info reads the state of the pool.
func (p *MapperPool) Info() (PoolInfo, error) {
	status, err := p.status()
	if err != nil {
		return PoolInfo{}, &Error{Op: "show pool", Object: p.name, Err: err}
	}
	records, err := p.records()
	if err != nil {
		return PoolInfo{}, &Error{Op: "show pool", Object: p.name, Err: err}
	}
	return PoolInfo{
		Name: p.name, Kind: KindMapper, BlockBytes: p.header.blockBytes,
		DataBlocks: status.DataBlocks, DataUsedBlocks: status.DataUsedBlocks,
		MetadataBlocks: status.MetadataBlocks, MetadataUsedBlocks: status.MetadataUsedBlocks,
		TransactionID: status.TransactionID, Mode: status.Mode, Volumes: len(records),
		UUID: p.header.uuid, Data: p.entry.Data, Metadata: p.entry.Metadata, SizeBytes: status.DataBlocks * p.header.blockBytes,
	}, nil
}

// FreeBytes is what could be written into unmapped blocks of the pool's volumes now:
// what is left of its data device, or what its metadata device can keep track of, if
// that is less. It is 0 while the pool cannot be written to.
func (p *MapperPool) FreeBytes() (int64, error) {
	status, err := p.status()
	if err != nil {
		return 0, &Error{Op: "count free space", Object: p.name, Err: err}
	}
	return status.FreeBytes(p.header.blockBytes), nil
}

// records reads the records of all volumes. Without the lock a record may be read
// while it is written; that is no damage.
func (p *MapperPool) records() ([]mapperRecord, error) {
	_, records, err := p.catalog.load()
	if errors.Is(err, errRecord) {
		err = p.lock.with(func() (err error) {
			_, records, err = p.catalog.load()
			return err
		})
	}
	return records, err
}

// Close ends the use of the handle. The pool stays active, and so do its volumes. It
// is ErrInUse, and the handle stays open, while volumes are open through it.
func (p *MapperPool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.openVolumes > 0 {
		return &Error{Op: "close pool", Object: p.name, State: fmt.Sprintf("%d of its volumes are open", p.openVolumes), Err: ErrInUse, Hint: "close them first"}
	}
	return p.leave()
}

// leave gives back what the handle holds.
func (p *MapperPool) leave() error {
	return errors.Join(p.handle.Close(), p.device.Close(), p.lock.Close(), p.devices.control.Close())
}

// Grow makes the pool as large as its data device is now, in whole blocks, and takes
// what its metadata device has grown by. Writes that failed for lack of space can be
// repeated. It is ErrInvalid if the data device has shrunk.
func (p *MapperPool) Grow() error {
	const op = "grow pool"
	return wrap(p.lock.with(func() error {
		data, metadata, err := p.backings(op)
		if err != nil {
			return err
		}
		targets, err := p.devices.control.Table(p.pool.Name)
		if err != nil {
			return err
		}
		if len(targets) != 1 {
			return fmt.Errorf("device %s %w", p.pool.Name, errNotPool)
		}
		blocks := data.bytes / p.header.blockBytes
		target := poolTargetOf(data, metadata, p.header.blockBytes, p.header.lowWaterBlocks, blocks)
		if target.Length < targets[0].Length {
			return &Error{
				Op: op, Object: p.name, State: fmt.Sprintf("its data device %s has shrunk to %d bytes", data.path, data.bytes), Err: ErrInvalid,
				Hint: "give the device its size back at once: blocks of volumes lie beyond its end",
			}
		}
		if err := p.devices.control.Load(p.pool.Name, []dm.Target{target}); err != nil {
			return err
		}
		// Without flush: writes that a full pool holds back would never end.
		if err := p.devices.control.ResumeNoFlush(p.pool.Name, quietRules...); err != nil {
			return errors.Join(err, p.devices.settle())
		}
		// The key of a device without a serial number has its size in it.
		p.entry.DataKey, p.entry.MetadataKey = data.key, metadata.key
		return p.registry.addMapper(p.name, p.entry)
	}), op, p.name)
}

// backings describes the devices of the active pool. It is ErrForeign if their names
// lead elsewhere by now.
func (p *MapperPool) backings(op string) (data, metadata backing, err error) {
	deps, err := p.devices.control.Deps(p.pool.Name)
	if err != nil {
		return data, metadata, err
	}
	for path, b := range map[string]*backing{p.entry.Data: &data, p.entry.Metadata: &metadata} {
		device, described, err := openBacking(op, path, loopdev.Options{})
		if err != nil {
			return data, metadata, err
		}
		*b = described
		if err := device.Close(); err != nil {
			return data, metadata, err
		}
		used := false
		for _, d := range deps {
			used = used || d == described.number
		}
		if !used {
			return data, metadata, &Error{
				Op: op, Object: path, State: "is not a device of the active pool", Err: ErrForeign,
				Hint: "name the devices anew with thinctl pool open --data DEV --metadata DEV",
			}
		}
	}
	return data, metadata, nil
}

// writable is an error unless the pool's metadata can be changed, with what helps.
func (p *MapperPool) writable(op string) (TargetStatus, error) {
	status, err := p.status()
	if err != nil {
		return status, err
	}
	return status, status.refusal(op, p.name)
}

// commits says whether a pool with this status keeps changes of its metadata. One that
// is merely out of data space does.
func (s TargetStatus) commits() bool {
	return !s.NeedsCheck && (s.Mode == ReadWrite || s.Mode == OutOfDataSpace)
}

// refusal is an error unless the pool commits, with what helps.
func (s TargetStatus) refusal(op, object string) error {
	if s.commits() {
		return nil
	}
	state := fmt.Sprintf("the pool is in mode %q", s.Mode)
	if s.NeedsCheck {
		state += " and its metadata needs a check"
	}
	return &Error{
		Op: op, Object: object, State: state, Err: unix.EROFS,
		Hint: "see the kernel's log; close the pool, look at its metadata device with thin_check, and repair it with thin_repair or clear the flag with thin_check --clear-needs-check-flag",
	}
}
