package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// DirectoryPool is an open handle of a pool. Its methods may be called concurrently, and
// several processes may have handles of one pool. A change that a method returned
// nil for survives a power loss.
type DirectoryPool struct {
	registry   Registry
	dir        string
	name       string
	uuid       string
	sizeBytes  int64
	blockBytes int64
	catalog    *catalog
	lock       *lock
	account    *account

	mu          sync.Mutex
	openVolumes int

	// crashPoint is called between the steps of every change with the name of the
	// step that has just ended. Tests end the process there.
	crashPoint func(step string)
}

// CreateDirectory makes a pool of at most sizeBytes in dir and registers it. The
// directory is made if it is missing, and must be empty. It is ErrExists if there
// is a pool in dir or under that name, ErrNotEmpty or ErrInvalid if the arguments
// will not do. After a crash there is a whole pool, to be registered with OpenDir,
// or none, and the same call succeeds.
func CreateDirectory(registry Registry, name, dir string, sizeBytes int64) (*DirectoryPool, error) {
	const op = "create pool"
	if err := ValidateName(name); err != nil {
		return nil, err
	}
	if sizeBytes <= 0 {
		return nil, &Error{Op: op, Object: name, State: fmt.Sprintf("a size of %d bytes", sizeBytes), Err: ErrInvalid, Hint: "give it at least one block"}
	}
	if err := registry.free(op, name); err != nil {
		return nil, err
	}
	_, err := os.Lstat(dir)
	missing := errors.Is(err, os.ErrNotExist)
	if err := makeDirs(dir); err != nil {
		return nil, &Error{Op: op, Object: dir, Err: err}
	}
	dir, err = canonicalDir(dir)
	if err != nil {
		return nil, &Error{Op: op, Object: dir, Err: err}
	}
	if err := fillDirectory(dir, name, sizeBytes); err != nil {
		if missing {
			// A refusal changes nothing. Where this fails there is something in it.
			_ = os.Remove(dir)
		}
		return nil, err
	}
	return registry.OpenDir(dir)
}

// openDirectory opens the pool in dir, an absolute path, and settles what a crash
// left in it.
func openDirectory(registry Registry, dir string) (*DirectoryPool, error) {
	const op = "open pool"
	if _, err := os.Lstat(filepath.Join(dir, catalogFile)); err != nil {
		return nil, &Error{
			Op: op, Object: dir, State: "holds no pool", Err: notFound(err),
			Hint: "make one with thinctl pool create NAME --dir DIR --size BYTES",
		}
	}
	blockBytes, err := suitable(op, dir)
	if err != nil {
		return nil, err
	}
	l, err := newLock(dir, lockFile)
	if err != nil {
		return nil, &Error{Op: op, Object: dir, Err: err}
	}
	p := &DirectoryPool{registry: registry, dir: dir, blockBytes: blockBytes, lock: l, crashPoint: func(string) {}}
	if err := l.with(p.start); err != nil {
		return nil, errors.Join(wrap(err, op, dir), l.Close())
	}
	return p, nil
}

// start reads the catalog, settles it, and enrols the handle. The caller holds
// the pool's lock.
func (p *DirectoryPool) start() (err error) {
	if p.catalog, err = openCatalog(p.dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.catalog.Close())
		}
	}()
	record, err := p.catalog.pool()
	if err != nil {
		return err
	}
	if record.state == Deleting {
		gone := &Error{Op: "open pool", Object: record.name, State: "was being destroyed when a crash came; it is gone now", Err: ErrNotFound}
		return errors.Join(gone, p.registry.bury(record.name, p.dir))
	}
	p.name, p.uuid, p.sizeBytes = record.name, record.uuid, record.sizeBytes
	if err := ValidateName(p.name); err != nil {
		return err
	}
	if err := p.settle(); err != nil {
		return err
	}
	user, err := enroll(p.dir)
	if err != nil {
		return err
	}
	p.account = &account{dir: p.dir, sizeBytes: p.sizeBytes, blockBytes: p.blockBytes, lock: p.lock, user: user}
	p.account.settled.L = &p.account.mu
	return nil
}

// Close ends the use of the handle. It is ErrInUse, and the handle stays open,
// while volumes are open through it.
func (p *DirectoryPool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.openVolumes > 0 {
		return &Error{
			Op: "close pool", Object: p.name, State: fmt.Sprintf("%d of its volumes are open", p.openVolumes), Err: ErrInUse,
			Hint: "close them first",
		}
	}
	return errors.Join(p.account.user.leave(), p.catalog.Close(), p.lock.Close())
}

// Name is the name of the pool.
func (p *DirectoryPool) Name() string { return p.name }

// Info reads the state of the pool.
func (p *DirectoryPool) Info() (PoolInfo, error) {
	record, err := p.catalog.pool()
	if err != nil {
		return PoolInfo{}, &Error{Op: "show pool", Object: p.name, Err: err}
	}
	volumes, err := p.catalog.volumes()
	if err != nil {
		return PoolInfo{}, &Error{Op: "show pool", Object: p.name, Err: err}
	}
	used, err := allocatedBytes(p.dir, p.blockBytes)
	if err != nil {
		return PoolInfo{}, &Error{Op: "show pool", Object: p.name, Err: err}
	}
	return PoolInfo{
		Name: p.name, Kind: KindDirectory, BlockBytes: p.blockBytes,
		DataBlocks: p.sizeBytes / p.blockBytes, DataUsedBlocks: roundUp(used, p.blockBytes) / p.blockBytes,
		TransactionID: record.transactionID, Mode: ReadWrite, Volumes: len(volumes),
		UUID: p.uuid, Dir: p.dir, SizeBytes: p.sizeBytes,
	}, nil
}

// FreeBytes is what could be written into holes of the pool's volumes through
// this handle now: what is left of its size and granted to no other handle, or
// what the file system has left, if that is less.
func (p *DirectoryPool) FreeBytes() (int64, error) {
	free, err := p.account.freeBytes()
	if err != nil {
		return 0, &Error{Op: "count free space", Object: p.name, Err: err}
	}
	return free, nil
}

// Destroy removes a pool without volumes, with its directory if nothing else is in
// it, and ends the use of the handle. It is ErrNotEmpty while there are volumes and
// ErrInUse while another handle is open; the handle stays open then. A crash in
// between is settled when the pool is opened: it is then gone.
func (p *DirectoryPool) Destroy() error {
	const op = "destroy pool"
	retired := false
	err := p.lock.with(func() error {
		if err := p.settle(); err != nil {
			return err
		}
		if err := p.unused(op); err != nil {
			return err
		}
		if err := p.catalog.retire(); err != nil {
			return err
		}
		retired = true
		p.crashPoint("recorded deleting pool")
		return errors.Join(p.account.user.leave(), p.catalog.Close(), p.registry.bury(p.name, p.dir))
	})
	if retired {
		err = errors.Join(err, p.lock.Close())
	}
	if errors.Is(err, ErrNotEmpty) {
		return &Error{Op: op, Object: p.name, State: err.Error(), Err: ErrNotEmpty, Hint: "delete the volumes first; see thinctl list " + p.name}
	}
	return wrap(err, op, p.name)
}

// unused is ErrInUse if another handle of the pool is open. The caller holds the
// pool's lock.
func (p *DirectoryPool) unused(op string) error {
	others, err := otherUsers(p.dir, p.account.user)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return &Error{Op: op, Object: p.name, State: "is in use by " + processName(others[0].PID), Err: ErrInUse, Hint: "end that process first"}
	}
	return nil
}
