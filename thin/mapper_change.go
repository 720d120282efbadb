package thin

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"decant/dm"
)

// CreateVolume makes a volume that reads as zeros and takes no space, and activates
// it. bytes is its size, which its device rounds up to whole logical blocks; blob is
// kept with it. It is ErrExists if there is a volume of that name or its device
// cannot have its name, and ErrInvalid if the arguments will not do. After a crash
// there is the whole volume or none.
func (p *MapperPool) CreateVolume(name string, bytes int64, blob []byte) (VolumeInfo, error) {
	const op = "create volume"
	if err := ValidateName(name); err != nil {
		return VolumeInfo{}, err
	}
	object := p.name + "/" + name
	if bytes <= 0 || bytes > maxDataBytes {
		return VolumeInfo{}, &Error{
			Op: op, Object: object, State: fmt.Sprintf("a size of %d bytes", bytes), Err: ErrInvalid,
			Hint: fmt.Sprintf("give it 1 to %d bytes", int64(maxDataBytes)),
		}
	}
	if len(blob) > MaxBlobBytes {
		return VolumeInfo{}, &Error{
			Op: op, Object: object, State: fmt.Sprintf("a blob of %d bytes", len(blob)), Err: ErrInvalid,
			Hint: fmt.Sprintf("a blob has at most %d bytes", MaxBlobBytes),
		}
	}
	err := p.lock.with(func() error {
		header, records, status, err := p.settled(op)
		if err != nil {
			return err
		}
		if _, taken := byName(records, name); taken {
			return &Error{Op: op, Object: object, State: "exists already", Err: ErrExists, Hint: "take another name, or delete it first"}
		}
		if err := nameFree(p.devices.control, volumeDeviceName(p.name, name)); err != nil {
			return err
		}
		r := mapperRecord{name: name, sizeBytes: bytes, blob: blob, created: time.Now().UTC().Truncate(time.Second)}
		return p.create(header, records, status, r)
	})
	if err != nil {
		return VolumeInfo{}, wrap(err, op, object)
	}
	return p.Volume(name)
}

// create is the protocol of creating a volume. The caller holds the pool's lock.
func (p *MapperPool) create(header mapperHeader, records []mapperRecord, status TargetStatus, r mapperRecord) error {
	r.id, r.transaction, r.state = header.nextID, status.TransactionID+1, Creating
	header.nextID++
	for after := uint32(0); ; after = r.thinID {
		var err error
		if r.thinID, err = p.freeThinID(records, after); err != nil {
			return err
		}
		// The header first: a record that it does not count is never settled.
		header.records = max(header.records, int64(r.thinID)+1)
		if err := p.catalog.putHeader(header); err != nil {
			return err
		}
		p.crashPoint("counted record")
		if err := p.catalog.putRecord(r); err != nil {
			return err
		}
		p.crashPoint("recorded creating")
		err = p.message(fmt.Sprintf("create_thin %d", r.thinID))
		if err == nil {
			break
		}
		// Whatever has this id was not made by us.
		if forget := p.catalog.putFree(r.thinID); forget != nil || !errors.Is(err, unix.EEXIST) {
			return errors.Join(err, forget)
		}
	}
	p.crashPoint("created thin device")
	if err := p.finishCreating(r, status); err != nil {
		if undo := p.uncreate(r); undo != nil {
			return fmt.Errorf("%w; the next change of the pool will remove what was begun, because now it failed: %w", err, undo)
		}
		return err
	}
	return nil
}

// finishCreating is the rest of the protocol, once there is a thin device.
func (p *MapperPool) finishCreating(r mapperRecord, status TargetStatus) error {
	if _, err := p.activateVolume(r); err != nil {
		return err
	}
	p.crashPoint("activated")
	if err := p.setTransaction(status.TransactionID); err != nil {
		return err
	}
	p.crashPoint("set transaction id")
	r.state = Active
	return p.catalog.putRecord(r)
}

// freeThinID is the lowest thin id above after that neither the catalog nor the pool
// knows. Somebody else may have made devices in the pool; they are none of ours.
func (p *MapperPool) freeThinID(records []mapperRecord, after uint32) (uint32, error) {
	used := map[uint32]bool{}
	for _, r := range records {
		used[r.thinID] = true
	}
	for id := after + 1; id <= maxThinID; id++ {
		if used[id] {
			continue
		}
		_, found, err := p.devices.peek(p.pool, id, p.sectors(1))
		if err != nil {
			return 0, err
		}
		if !found {
			return id, nil
		}
	}
	return 0, &Error{Op: "create volume", Object: p.name, State: fmt.Sprintf("all of its %d thin ids are in use", maxThinID), Err: unix.ENOSPC, Hint: "delete a volume"}
}

// message sends one to the pool, which commits before it answers. A commit that
// failed shows in the status only.
func (p *MapperPool) message(text string) error {
	if _, err := p.devices.control.Message(p.pool.Name, 0, text); err != nil {
		return fmt.Errorf("message %q: %w", text, err)
	}
	_, err := p.writable("commit")
	return err
}

// setTransaction counts the pool's transaction id up from what it was. It fails if
// somebody else has changed the pool meanwhile.
func (p *MapperPool) setTransaction(old uint64) error {
	err := p.message(fmt.Sprintf("set_transaction_id %d %d", old, old+1))
	if errors.Is(err, unix.EINVAL) {
		return &Error{
			Op: "change pool", Object: p.name, State: fmt.Sprintf("its transaction id is no longer %d: somebody else changes it", old), Err: errors.Join(ErrForeign, err),
			Hint: "let nobody but decant send messages to the device " + dm.Path(p.pool.Name),
		}
	}
	return err
}

// DeleteVolume removes a volume and gives its space back. It is ErrNotFound if there
// is none of that name, and ErrInUse while anybody has its device open. After a crash
// the volume is whole or gone.
func (p *MapperPool) DeleteVolume(name string) error {
	const op = "delete volume"
	return p.withVolume(op, name, func(r mapperRecord) error {
		status, err := p.writable(op)
		if err != nil {
			return err
		}
		if err := p.stopVolume(op, r); err != nil {
			return err
		}
		return p.delete(r, status)
	})
}

// delete is the protocol of deleting a volume without a device. The caller holds the
// pool's lock.
func (p *MapperPool) delete(r mapperRecord, status TargetStatus) error {
	whole := r
	r.state, r.transaction = Deleting, status.TransactionID+1
	if err := p.catalog.putRecord(r); err != nil {
		return err
	}
	p.crashPoint("recorded deleting")
	err := p.message(fmt.Sprintf("delete %d", r.thinID))
	if errors.Is(err, unix.EBUSY) { // by a device that is not ours
		return errors.Join(&Error{Op: "delete volume", Object: p.name + "/" + r.name, State: "another device-mapper device uses it", Err: errors.Join(ErrInUse, err), Hint: "see dmsetup table"},
			p.catalog.putRecord(whole))
	}
	if err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	p.crashPoint("deleted thin device")
	if err := p.setTransaction(status.TransactionID); err != nil {
		return err
	}
	p.crashPoint("set transaction id")
	return p.catalog.putFree(r.thinID)
}

// withVolume runs f with an active volume under the pool's lock.
func (p *MapperPool) withVolume(op, name string, f func(mapperRecord) error) error {
	if err := ValidateName(name); err != nil {
		return err
	}
	return wrap(p.lock.with(func() error {
		records, err := p.readable(op)
		if err != nil {
			return err
		}
		r, found := byName(records, name)
		if !found {
			return p.noSuchVolume(op, name)
		}
		return f(r)
	}), op, p.name+"/"+name)
}

// settled reads the catalog of a pool that can be changed, after it has settled it:
// every volume is Active. The caller holds the pool's lock.
func (p *MapperPool) settled(op string) (mapperHeader, []mapperRecord, TargetStatus, error) {
	status, err := p.writable(op)
	if err != nil {
		return mapperHeader{}, nil, status, err
	}
	header, records, err := p.catalog.load()
	if err != nil {
		return header, nil, status, err
	}
	if i := slices.IndexFunc(records, func(r mapperRecord) bool { return r.isNewerThan(status.TransactionID) }); i >= 0 {
		return header, nil, status, &Error{
			Op: op, Object: p.name, State: fmt.Sprintf("its metadata is in transaction %d, and volume %s is from transaction %d", status.TransactionID, records[i].name, records[i].transaction),
			Err: ErrForeign, Hint: "the metadata device holds an older state than the data device: put the newest one back",
		}
	}
	for _, r := range records {
		if r.state == Active {
			continue
		}
		err := p.uncreate(r)
		if errors.Is(err, ErrInUse) {
			continue // somebody has opened what is left of it, and keeps nobody from using the rest
		}
		if err != nil {
			return header, nil, status, &Error{Op: "settle volume", Object: p.name + "/" + r.name, State: fmt.Sprintf("was left in state %s and cannot be removed: %v", r.state, err), Err: err}
		}
		if status, err = p.writable(op); err != nil {
			return header, nil, status, err
		}
	}
	records = slices.DeleteFunc(records, func(r mapperRecord) bool { return r.state != Active })
	return header, records, status, nil
}

// isNewerThan says whether the record cannot be from a pool with that transaction id.
func (r mapperRecord) isNewerThan(transaction uint64) bool {
	if r.state != Active { // it names the transaction that it was to be
		transaction++
	}
	return r.transaction > transaction
}

// readable is settled for a pool that need not be changed: one that cannot be is
// taken as it is.
func (p *MapperPool) readable(op string) ([]mapperRecord, error) {
	status, err := p.poolDevice().status(false)
	if err != nil {
		return nil, err
	}
	if status.commits() {
		_, records, _, err := p.settled(op)
		return records, err
	}
	_, records, err := p.catalog.load()
	return slices.DeleteFunc(records, func(r mapperRecord) bool { return r.state != Active }), err
}

// uncreate removes the thin device of a volume that is not active, and then its
// record. The caller holds the pool's lock.
func (p *MapperPool) uncreate(r mapperRecord) error {
	if info, found, err := find(p.devices.control, p.devices.volumeUUID(r.id)); err != nil {
		return err
	} else if found {
		if err := stop(p.devices.control, info.Name); err != nil {
			return err
		}
	}
	if err := p.message(fmt.Sprintf("delete %d", r.thinID)); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	p.crashPoint("settled thin device")
	status, err := p.poolDevice().status(false)
	if err != nil {
		return err
	}
	if err := p.setTransaction(status.TransactionID); err != nil {
		return err
	}
	return p.catalog.putFree(r.thinID)
}

// settleAtStart settles the catalog of a pool that has just been opened, if it can
// be changed at all: one that can only be read is opened as it is. A metadata
// snapshot that nobody else can be reading is let go. The caller holds the pool's
// lock.
func (p *MapperPool) settleAtStart() error {
	status, err := p.poolDevice().status(false)
	if err != nil {
		return err
	}
	if !status.commits() {
		return nil
	}
	if status.Held {
		others, err := p.handle.others()
		if err != nil {
			return err
		}
		if others == "" {
			if err := p.message("release_metadata_snap"); err != nil {
				return err
			}
		}
	}
	if status.TransactionID == unmadeTransaction { // a crash came just before the end of its making
		if err := p.setTransaction(unmadeTransaction); err != nil {
			return err
		}
	}
	_, _, _, err = p.settled("open pool")
	return err
}
