package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"decant/loopdev"
)

// volumeSuffix makes the name of a volume's file of its name. It keeps every
// volume apart from the pool's own files.
const volumeSuffix = ".img"

// CreateVolume makes a volume that reads as zeros and takes no space. bytes is
// its size for good; blob is kept with it. It is ErrExists if there is a volume or
// a file of that name, and ErrInvalid if the arguments will not do. After a crash
// there is the whole volume or none.
func (p *DirectoryPool) CreateVolume(name string, bytes int64, blob []byte) (VolumeInfo, error) {
	const op = "create volume"
	if err := ValidateName(name); err != nil {
		return VolumeInfo{}, err
	}
	object := p.name + "/" + name
	if bytes <= 0 {
		return VolumeInfo{}, &Error{Op: op, Object: object, State: fmt.Sprintf("a size of %d bytes", bytes), Err: ErrInvalid, Hint: "give it at least one byte"}
	}
	if len(blob) > MaxBlobBytes {
		return VolumeInfo{}, &Error{
			Op: op, Object: object, State: fmt.Sprintf("a blob of %d bytes", len(blob)), Err: ErrInvalid,
			Hint: fmt.Sprintf("a blob has at most %d bytes", MaxBlobBytes),
		}
	}
	var r volumeRecord
	err := p.lock.with(func() (err error) {
		if err := p.settle(); err != nil {
			return err
		}
		if err := p.checkNameFree(op, name); err != nil {
			return err
		}
		r, err = p.create(volumeRecord{name: name, sizeBytes: bytes, blob: blob, created: time.Now().UTC().Truncate(time.Second)})
		return err
	})
	if err != nil {
		return VolumeInfo{}, wrap(err, op, object)
	}
	return p.info(r)
}

// DeleteVolume removes a volume and gives its space back. It is ErrNotFound if
// there is none of that name, and ErrInUse while anybody uses its file, also if
// only to read: the space would not come back. After a crash the volume is whole
// or gone.
func (p *DirectoryPool) DeleteVolume(name string) error {
	const op = "delete volume"
	if err := ValidateName(name); err != nil {
		return err
	}
	return wrap(p.lock.with(func() error {
		if err := p.settle(); err != nil {
			return err
		}
		r, err := p.active(op, name)
		if err != nil {
			return err
		}
		unused, err := p.unusedFile(op, r)
		if errors.Is(err, os.ErrNotExist) {
			return p.delete(r) // somebody else has removed it
		}
		if err != nil {
			return err
		}
		// Held until the end, so that nobody opens it meanwhile.
		return errors.Join(p.delete(r), unused.Close())
	}), op, p.name+"/"+name)
}

// Volumes is all volumes of the pool by name, also those that are being created
// or deleted at this moment.
func (p *DirectoryPool) Volumes() ([]VolumeInfo, error) {
	records, err := p.catalog.volumes()
	if err != nil {
		return nil, &Error{Op: "list volumes", Object: p.name, Err: err}
	}
	infos := make([]VolumeInfo, len(records))
	for i, r := range records {
		if infos[i], err = p.info(r); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

// Volume is one volume of the pool. It is ErrNotFound if there is none of that
// name.
func (p *DirectoryPool) Volume(name string) (VolumeInfo, error) {
	const op = "show volume"
	if err := ValidateName(name); err != nil {
		return VolumeInfo{}, err
	}
	r, err := p.catalog.volume(name)
	if errors.Is(err, ErrNotFound) {
		return VolumeInfo{}, p.noSuchVolume(op, name)
	}
	if err != nil {
		return VolumeInfo{}, &Error{Op: op, Object: p.name + "/" + name, Err: err}
	}
	return p.info(r)
}

func (p *DirectoryPool) info(r volumeRecord) (VolumeInfo, error) {
	mapped, err := fileAllocatedBytes(p.volumePath(r.name), p.blockBytes)
	if err != nil {
		return VolumeInfo{}, &Error{Op: "show volume", Object: p.name + "/" + r.name, Err: err}
	}
	return VolumeInfo{
		Pool: p.name, Name: r.name, ID: r.id, ThinID: r.id, Origin: r.origin, SizeBytes: r.sizeBytes,
		MappedBytes: mapped, ExclusiveBytes: mapped, Blob: r.blob, State: r.state, Created: r.created,
		Path: p.volumePath(r.name),
	}, nil
}

func (p *DirectoryPool) volumePath(name string) string {
	return filepath.Join(p.dir, name+volumeSuffix)
}

func (p *DirectoryPool) noSuchVolume(op, name string) error {
	return &Error{Op: op, Object: p.name + "/" + name, State: "there is no such volume", Err: ErrNotFound, Hint: "see thinctl list " + p.name}
}

// active reads the record of a volume that can be used. The caller holds the
// pool's lock and has settled the pool, so that no other state is left.
func (p *DirectoryPool) active(op, name string) (volumeRecord, error) {
	r, err := p.catalog.volume(name)
	if errors.Is(err, ErrNotFound) {
		return volumeRecord{}, p.noSuchVolume(op, name)
	}
	return r, err
}

// checkNameFree is ErrExists if there is a volume or a file of that name. A file
// without a record is not ours: settling must never find it in its way.
func (p *DirectoryPool) checkNameFree(op, name string) error {
	object := p.name + "/" + name
	_, err := p.catalog.volume(name)
	if err == nil {
		return &Error{Op: op, Object: object, State: "exists already", Err: ErrExists, Hint: "take another name, or delete it first"}
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	_, err = os.Lstat(p.volumePath(name))
	if err == nil {
		return &Error{
			Op: op, Object: object, State: fmt.Sprintf("there is a file %s that the catalog does not know", p.volumePath(name)), Err: ErrExists,
			Hint: "see what it is and move it away",
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// create is the protocol of creating a volume. The caller holds the pool's lock.
func (p *DirectoryPool) create(r volumeRecord) (volumeRecord, error) {
	r, err := p.catalog.add(r)
	if err != nil {
		return r, err
	}
	p.crashPoint("recorded creating")
	// The file and its name are durable when Open returns, and gone if it fails.
	device, err := loopdev.Open(p.volumePath(r.name), loopdev.Options{Write: true, CreateBytes: r.sizeBytes})
	if err == nil {
		err = device.Close()
	}
	if err != nil {
		undo := p.uncreate
		if errors.Is(err, os.ErrExist) {
			undo = func(r volumeRecord) error { return p.catalog.remove(r.id) } // the file is not ours
		}
		if undo := undo(r); undo != nil {
			return r, fmt.Errorf("%w; the next change of the pool will remove what was begun, because now it failed: %w", err, undo)
		}
		return r, err
	}
	p.crashPoint("created file")
	if err := p.catalog.setState(r.id, Creating, Active); err != nil {
		return r, err
	}
	r.state = Active
	return r, nil
}

// delete is the protocol of deleting a volume. The caller holds the pool's lock,
// and the file.
func (p *DirectoryPool) delete(r volumeRecord) error {
	if err := p.catalog.setState(r.id, Active, Deleting); err != nil {
		return err
	}
	p.crashPoint("recorded deleting")
	if err := p.removeFile(r.name); err != nil {
		return err
	}
	p.crashPoint("removed file")
	return p.catalog.remove(r.id)
}

// settle ends every change that a crash or an error left half done: what was
// being created is removed, what was being deleted is deleted. The caller holds
// the pool's lock, so no change is under way.
func (p *DirectoryPool) settle() error {
	records, err := p.catalog.volumes()
	if err != nil {
		return err
	}
	for _, r := range records {
		switch r.state {
		case Active:
		case Creating, Deleting:
			if err := p.uncreate(r); err != nil {
				return &Error{Op: "settle volume", Object: p.name + "/" + r.name, State: fmt.Sprintf("was left in state %s and cannot be removed: %v", r.state, err), Err: err}
			}
		}
	}
	return nil
}

// uncreate removes the file of a volume that is not active, and then its record.
func (p *DirectoryPool) uncreate(r volumeRecord) error {
	if err := ValidateName(r.name); err != nil {
		return err // a damaged or forged catalog leads nowhere else
	}
	if err := p.removeFile(r.name); err != nil {
		return err
	}
	p.crashPoint("settled file")
	return p.catalog.remove(r.id)
}

// removeFile removes the file of a volume, if there is one, durably.
func (p *DirectoryPool) removeFile(name string) error {
	if err := os.Remove(p.volumePath(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncPath(p.dir)
}
