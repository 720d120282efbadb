package thin

import (
	"errors"
	"fmt"

	"decant/dm"
	"decant/loopdev"
)

// Destroy removes a pool without volumes and ends the use of the handle. The metadata
// device is filled with zeros, and the data device is discarded where it can be. It is
// ErrNotEmpty while there are volumes, also such as another program has made in the
// pool, and ErrInUse while another handle is open; the handle stays open then. A crash
// in between is settled when the pool is opened: it is then gone.
func (p *MapperPool) Destroy() error {
	const op = "destroy pool"
	retired := false
	err := p.lock.with(func() error {
		header, records, status, err := p.settled(op)
		if err != nil {
			return err
		}
		if err := p.checkWithoutVolumes(op, records, status); err != nil {
			return err
		}
		if err := p.handle.checkAlone(op, p.name); err != nil {
			return err
		}
		header.state = Deleting
		if err := p.catalog.putHeader(header); err != nil {
			return err
		}
		retired = true
		p.crashPoint("recorded deleting pool")
		return errors.Join(p.handle.Close(), p.device.Close(), p.bury())
	})
	if retired {
		err = errors.Join(err, p.lock.Close(), p.devices.control.Close())
	}
	return wrap(err, op, p.name)
}

// checkWithoutVolumes is ErrNotEmpty if the pool holds anything but its catalog.
func (p *MapperPool) checkWithoutVolumes(op string, records []mapperRecord, status TargetStatus) error {
	if len(records) > 0 {
		return &Error{Op: op, Object: p.name, State: fmt.Sprintf("is not empty: it has %d volumes", len(records)), Err: ErrNotEmpty, Hint: "delete the volumes first; see thinctl list " + p.name}
	}
	catalog, err := volumeStatus(p.devices.control, catalogDeviceName(p.pool.Name))
	if err != nil {
		return err
	}
	if others := status.DataUsedBlocks - catalog.MappedBytes/p.header.blockBytes; others > 0 {
		return &Error{
			Op: op, Object: p.name, State: fmt.Sprintf("is not empty: %d of its blocks are in use by something that its catalog does not know", others), Err: ErrNotEmpty,
			Hint: "another program has made thin devices in it; see thin_ls",
		}
	}
	return nil
}

// bury finishes what retiring a pool began. The caller holds the pool's lock, and has
// closed the catalog.
func (p *MapperPool) bury() error {
	const op = "destroy pool"
	data, metadata, err := p.backings(op)
	if err != nil {
		return err
	}
	if err := p.registry.removeMapper(op, p.name, p.entry.UUID); err != nil {
		return err
	}
	if err := p.devices.deactivate(op, p.name); err != nil {
		return err
	}
	return wipe(op, data, metadata)
}

// wipe makes the devices of a pool free for other use. The metadata goes first:
// without it nothing on the data device means anything.
func wipe(op string, data, metadata backing) error {
	use := loopdev.Options{Write: true, Exclusive: true}
	device, _, err := openBacking(op, metadata.path, use)
	if err != nil {
		return err
	}
	err = clearStart(device, metadataBlockBytes)
	if err == nil {
		err = errors.Join(device.Zero(0, device.Bytes()), device.Flush())
	}
	if err := errors.Join(err, device.Close()); err != nil {
		return err
	}
	if device, _, err = openBacking(op, data.path, use); err != nil {
		return err
	}
	err = device.Discard(0, device.Bytes())
	if errors.Is(err, loopdev.ErrCannotPunch) {
		err = nil // what volumes have left stays, and is seen when somebody makes a pool there
	}
	if err == nil {
		err = clearStart(device, recordBytes)
	}
	return errors.Join(err, device.Close())
}

// closeMapper deactivates a pool with its volumes and takes it out of the registry.
// It is ErrInUse while a handle of it or one of its volumes is open. It does not need
// the pool to be in order.
func (r Registry) closeMapper(op, name string, e mapperEntry) error {
	control, err := dm.Open()
	if errors.Is(err, dm.ErrNoDeviceMapper) {
		return r.removeMapper(op, name, e.UUID) // there is nothing that could be active
	}
	if err != nil {
		return &Error{Op: op, Object: name, Err: err}
	}
	l, err := newMapperLock(e.UUID)
	if err != nil {
		return errors.Join(&Error{Op: op, Object: name, Err: err}, control.Close())
	}
	err = l.with(func() error {
		handle, err := openHandleFile(e.UUID)
		if err != nil {
			return err
		}
		err = handle.checkAlone(op, name)
		if err == nil {
			err = mapperDevices{control: control, uuid: e.UUID}.deactivate(op, name)
		}
		if err == nil {
			err = r.removeMapper(op, name, e.UUID)
		}
		return errors.Join(err, handle.Close())
	})
	return wrap(errors.Join(err, l.Close(), control.Close()), op, name)
}
