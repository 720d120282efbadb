package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Registry knows the pools of a host by name, under STATE-DIR/pools: a symbolic link
// to the directory of a directory pool, and a file that names the devices of a
// dm-thin pool. Several processes may use one registry.
type Registry struct {
	stateDir string
}

// NewRegistry is the registry under stateDir, which need not exist yet.
func NewRegistry(stateDir string) Registry { return Registry{stateDir: stateDir} }

// DefaultStateDir is /var/lib/decant for root, else decant under XDG_STATE_HOME,
// which is ~/.local/state if it is not set.
func DefaultStateDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/decant", nil
	}
	// The specification tells to ignore a relative path.
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "decant"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the state directory: %w; name one with --state-dir", err)
	}
	return filepath.Join(home, ".local", "state", "decant"), nil
}

// List is the names of all registered pools, sorted, whether they can be opened
// or not.
func (r Registry) List() ([]string, error) {
	entries, err := os.ReadDir(r.poolsDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Error{Op: "list pools", Object: r.poolsDir(), Err: err}
	}
	var names []string
	for _, entry := range entries {
		if (entry.Type() == os.ModeSymlink || entry.Type().IsRegular()) && ValidateName(entry.Name()) == nil {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// Open opens a registered pool and settles what a crash left in it. A dm-thin pool is
// made active if it is not, as after a reboot. It is ErrNotFound if no pool of that
// name is registered or its directory is gone, and ErrForeign if the directory holds
// another pool, or the devices are not those that were registered.
func (r Registry) Open(name string) (Pool, error) {
	if err := ValidateName(name); err != nil {
		return nil, err
	}
	e, err := r.mapperEntry(name)
	if err == nil {
		p, err := r.openMapperNamed(name, e)
		if err != nil {
			return nil, err // and not a Pool around a nil pointer
		}
		return p, nil
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, wrap(err, "open pool", name)
	}
	p, err := r.openNamed(name)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (r Registry) openMapperNamed(name string, e mapperEntry) (*MapperPool, error) {
	p, err := openMapper(r, e)
	if err != nil {
		return nil, err
	}
	if p.name != name {
		err := &Error{
			Op: "open pool", Object: name, State: "its devices hold the pool " + p.name, Err: ErrForeign,
			Hint: "forget the name with thinctl pool close " + name,
		}
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (r Registry) openNamed(name string) (*DirectoryPool, error) {
	const op = "open pool"
	if err := ValidateName(name); err != nil {
		return nil, err
	}
	dir, err := os.Readlink(r.link(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, &Error{
			Op: op, Object: name, State: "is not registered under " + r.stateDir, Err: ErrNotFound,
			Hint: "see thinctl pool list; register a pool with thinctl pool open --dir DIR, or --data DEV --metadata DEV",
		}
	}
	if err != nil {
		return nil, &Error{Op: op, Object: name, Err: err}
	}
	p, err := openDirectory(r, dir)
	if errors.Is(err, ErrNotFound) {
		return nil, &Error{
			Op: op, Object: name, State: fmt.Sprintf("its directory %s holds no pool", dir), Err: ErrNotFound,
			Hint: "mount what it lies on, or forget the pool with thinctl pool close " + name,
		}
	}
	if err != nil {
		return nil, err
	}
	if p.name != name {
		err := &Error{
			Op: op, Object: name, State: fmt.Sprintf("%s holds the pool %s", dir, p.name), Err: ErrForeign,
			Hint: "forget the name with thinctl pool close " + name,
		}
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// OpenDir opens the pool in dir, and registers it under the name in its catalog.
// It is ErrExists if another directory is registered under that name.
func (r Registry) OpenDir(dir string) (*DirectoryPool, error) {
	dir, err := canonicalDir(dir)
	if err != nil {
		return nil, &Error{Op: "open pool", Object: dir, Err: notFound(err)}
	}
	p, err := openDirectory(r, dir)
	if err != nil {
		return nil, err
	}
	if err := r.add(p.name, dir); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Forget takes a pool out of the registry and leaves its directory alone, also if
// there is no pool or a damaged one. A dm-thin pool and its volumes are deactivated,
// and stay on their devices. It is ErrNotFound if no pool of that name is registered,
// and ErrInUse while a handle of the pool, or the device of a volume, is open.
func (r Registry) Forget(name string) error {
	const op = "close pool"
	if err := ValidateName(name); err != nil {
		return err
	}
	e, err := r.mapperEntry(name)
	switch {
	case err == nil:
		return r.closeMapper(op, name, e)
	case errors.Is(err, ErrForeign):
		return r.locked(func() error { return r.remove(op, name) }) // it names no pool that could be active
	}
	p, err := r.openNamed(name)
	switch {
	case errors.Is(err, ErrInvalid) || errors.Is(err, ErrInUse):
		return err
	case err != nil:
		// The name leads to no pool that could be used, and to no volume that
		// could be lost. If it is not even registered, remove says so.
		return r.locked(func() error { return r.remove(op, name) })
	}
	err = p.lock.with(func() error {
		if err := p.unused(op); err != nil {
			return err
		}
		return r.locked(func() error { return r.remove(op, name) })
	})
	return errors.Join(err, p.Close())
}

func (r Registry) poolsDir() string { return filepath.Join(r.stateDir, "pools") }

func (r Registry) link(name string) string { return filepath.Join(r.poolsDir(), name) }

// free is ErrExists if a pool of the name is registered.
func (r Registry) free(op, name string) error {
	state := "is registered already"
	dir, err := os.Readlink(r.link(name))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err == nil:
		state += ", with the directory " + dir
	case !errors.Is(err, unix.EINVAL): // no link, but the entry of a dm-thin pool
		return &Error{Op: op, Object: name, Err: err}
	}
	return &Error{Op: op, Object: name, State: state, Err: ErrExists, Hint: "take another name, or see thinctl pool list"}
}

// add registers dir under name, durably. Registering it again changes nothing.
func (r Registry) add(name, dir string) error {
	return r.locked(func() error {
		if old, err := os.Readlink(r.link(name)); err == nil && old == dir {
			return nil
		}
		if err := r.free("register pool", name); err != nil {
			return err
		}
		if err := os.Symlink(dir, r.link(name)); err != nil {
			return &Error{Op: "register pool", Object: name, Err: err}
		}
		return syncPath(r.poolsDir())
	})
}

// remove takes name out of the registry, durably. The caller holds the registry's
// lock.
func (r Registry) remove(op, name string) error {
	if err := os.Remove(r.link(name)); err != nil {
		return &Error{Op: op, Object: name, Err: notFound(err)}
	}
	return syncPath(r.poolsDir())
}

// locked runs f while no other process changes the registry. It makes the
// directory of the registry if need be.
func (r Registry) locked(f func() error) error {
	if err := makeDirs(r.poolsDir()); err != nil {
		return &Error{Op: "make state directory", Object: r.poolsDir(), Err: err}
	}
	// The leading dot keeps it apart from every name of a pool.
	l, err := newLock(r.poolsDir(), ".lock")
	if err != nil {
		return &Error{Op: "lock registry", Object: r.poolsDir(), Err: err}
	}
	return errors.Join(l.with(f), l.Close())
}

// makeDirs makes dir and what is missing above it, and makes each of their names
// durable.
func makeDirs(dir string) error {
	if stat, err := os.Stat(dir); err == nil {
		if !stat.IsDir() {
			return &os.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDirs(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncPath(parent)
}

// canonicalDir is dir as an absolute path without symbolic links.
func canonicalDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return dir, err
	}
	resolved, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return abs, err
	}
	return resolved, nil
}

// notFound makes ErrNotFound of the file system's word for it.
func notFound(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return ErrNotFound
	}
	return err
}
