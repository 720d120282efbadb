package service

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"decant/clone"
	"decant/journal"
	"decant/loopdev"
	"decant/nbd"
	"decant/thin"
)

// device is what an end is made of: each can be the giving and the receiving one,
// since a migration can be reversed.
type device interface {
	clone.Source
	clone.Sparse
	clone.Destination
	AllocatedBytes() (int64, error)
	SharedBytes() (int64, error)
	CompressedBytes() (int64, error)
	FreeBytes() (int64, error)
	SyncFS() error
	HoldsData() (bool, error)
	ReadsZero(off, n int64) (bool, error)
	Info() loopdev.Info
	WriteMark(loopdev.Mark) error
	ReadMark() (loopdev.Mark, bool, error)
	RemoveMark() error
	Close() error
}

var (
	_ device = (*loopdev.Device)(nil)
	_ device = thin.Volume(nil)
	_ device = (*thin.Device)(nil)
	_ device = (*nbdEnd)(nil)
)

// end is one end of a migration.
type end struct {
	device
	name    string    // as the user wrote it
	kind    string    // file, loop, block, volume, nbd
	base    ground    // what is under a volume, or the device itself
	pool    thin.Pool // of a volume
	target  target    // what it was opened by
	created bool      // by this process, or by an earlier one of the same migration
}

func (e *end) Close() error {
	err := e.device.Close()
	if e.pool != nil {
		err = errors.Join(err, e.pool.Close())
	}
	return err
}

// identity names the end in a journal.
func (e *end) identity() journal.Identity {
	info := e.Info()
	kind := e.kind
	if e.target.group {
		kind = groupVolumeKind
	}
	id := journal.Identity{
		Kind: kind, Name: e.name, Path: info.Path, Key: info.Key,
		Bytes: e.Bytes(), Offset: info.Offset,
	}
	if onFile(info) {
		id.ModifiedNanoseconds = info.Modified.UnixNano()
	}
	return id
}

// target is what a user's name of an end means, before anything is opened.
type target struct {
	name, path   string
	export       nbd.URI // path is its whole form
	pool, volume string
	group        bool   // pool is a volume group of LVM
	thinPool     string // of the group, to make the volume in; empty: the only one
}

// sourceTarget reads the name of a source: the URI of an export, a path if there is
// something at it, else a volume of a pool, or of a volume group.
func (s *Service) sourceTarget(name string) (target, error) {
	if exportName.MatchString(name) {
		return exportTarget(name)
	}
	t := target{name: name, path: name}
	pool, volume, ok := splitVolume(name)
	isPool := false
	if ok {
		var err error
		if isPool, err = s.isPool(pool); err != nil {
			return t, err
		}
	}
	statErr := s.lstat(name)
	switch {
	case isPool && statErr == nil:
		return t, &Error{
			Outcome: Usage, Object: name, Problem: "means both a file and a volume",
			Hint: "write ./" + name + " for the file",
		}
	case isPool:
		return target{name: name, pool: pool, volume: volume}, nil
	case errors.Is(statErr, os.ErrNotExist):
		if inGroup, err := groupTarget(name, ""); err == nil {
			return inGroup, nil
		} // else it is a path, and opening it says what is wrong
	}
	return t, checkPath(name)
}

// destinationTarget reads the name of a destination: a path if it begins as one,
// else a volume of a pool, or of a volume group. thinPool is what --thin-pool says.
func (s *Service) destinationTarget(name, thinPool string) (target, error) {
	t, err := s.findDestination(name, thinPool)
	if err == nil && thinPool != "" && !t.group {
		err = &Error{
			Outcome: Usage, Object: name, Problem: "is not in a volume group of LVM, and --thin-pool is for such a one",
			Hint: "leave off --thin-pool",
		}
	}
	return t, err
}

func (s *Service) findDestination(name, thinPool string) (target, error) {
	if exportName.MatchString(name) {
		return target{}, &Error{
			Outcome: Usage, Object: name, Problem: "an NBD export can be the source of a migration, not its destination",
			Hint: "write ./" + name + " for a file",
		}
	}
	for _, prefix := range []string{"/", "./", "../"} {
		if strings.HasPrefix(name, prefix) {
			return target{name: name, path: name}, checkPath(name)
		}
	}
	group, _, err := thin.SplitGroupVolume(name)
	if err != nil {
		return target{}, &Error{
			Outcome: Usage, Object: name, Problem: "is neither a path nor POOL/VOLUME",
			Hint: "write ./" + name + " for a file",
		}
	}
	if pool, volume, ok := splitVolume(name); ok {
		isPool, err := s.isPool(pool)
		if err != nil {
			return target{}, err
		}
		if isPool {
			return target{name: name, pool: pool, volume: volume}, nil
		}
	}
	t, err := groupTarget(name, thinPool)
	if err != nil {
		return target{}, refuse(name, "there is no pool "+group+" in "+s.stateDir+", and no volume group of that name",
			"list pools with: thinctl pool list, and groups with: vgs; write ./"+name+" for a file", err)
	}
	return t, nil
}

func splitVolume(name string) (pool, volume string, ok bool) {
	pool, volume, err := thin.SplitVolume(name)
	return pool, volume, err == nil
}

func (s *Service) isPool(name string) (bool, error) {
	names, err := s.pools.List()
	if err != nil {
		return false, refuse(s.stateDir, "the list of pools cannot be read", "", err)
	}
	for _, n := range names {
		if n == name {
			return true, nil
		}
	}
	return false, nil
}

func checkPath(path string) error {
	switch {
	case path == "":
		return &Error{Outcome: Usage, Problem: "the path is empty"}
	case strings.ContainsRune(path, 0):
		return &Error{Outcome: Usage, Problem: fmt.Sprintf("the path %q holds a NUL", path)}
	case len(path) >= 4096:
		return &Error{Outcome: Usage, Problem: "the path is longer than 4095 bytes"}
	}
	return nil
}

// exists says whether there is something where the target leads.
func (s *Service) exists(t target) (bool, error) {
	if t.pool == "" {
		err := s.stat(t.path)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
	pool, err := s.openPool(t)
	if err != nil {
		return false, err
	}
	_, err = pool.Volume(t.volume)
	err = errors.Join(err, pool.Close())
	if errors.Is(err, thin.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// open opens an existing target for this process alone.
func (s *Service) open(t target, write bool) (*end, error) {
	if t.isExport() {
		return s.openExport(t, write)
	}
	if t.pool != "" {
		return s.openVolume(t, true)
	}
	d, err := loopdev.Open(t.path, loopdev.Options{Write: write, Exclusive: true, Confine: s.confined})
	if err != nil {
		return nil, err
	}
	kind := map[loopdev.Kind]string{loopdev.File: "file", loopdev.Loop: "loop", loopdev.Block: "block"}[d.Info().Kind]
	e := &end{device: d, base: d, name: t.name, kind: kind}
	v, err := thin.AsDevice(d)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if v != nil {
		e.device = v
	}
	return e, nil
}

// isBounded says whether writing to e takes space that could run out, and emptying it
// gives some back: of a block device that is so only if it is thin.
func (e *end) isBounded() bool {
	_, isThin := e.device.(*thin.Device)
	return isThin || e.kind != "block"
}

// openToRead opens an existing target beside whoever uses it.
func (s *Service) openToRead(t target) (*end, error) {
	if t.pool != "" {
		return s.openVolume(t, false)
	}
	d, err := loopdev.Open(t.path, loopdev.Options{Confine: s.confined})
	if err != nil {
		return nil, err
	}
	return &end{device: d, base: d, name: t.name}, nil
}

func (s *Service) openVolume(t target, exclusive bool) (*end, error) {
	pool, err := s.openPool(t)
	if err != nil {
		return nil, err
	}
	v, err := pool.OpenVolume(t.volume, exclusive)
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return &end{device: v, base: v.Base(), name: t.name, kind: "volume", pool: pool, target: t}, nil
}

// create makes a new, empty destination of the given size and opens it.
func (s *Service) create(t target, bytes int64) (*end, error) {
	if t.pool == "" {
		d, err := loopdev.Open(t.path, loopdev.Options{Write: true, Exclusive: true, CreateBytes: bytes, Confine: s.confined})
		if err != nil {
			return nil, err
		}
		return &end{device: d, base: d, name: t.name, kind: "file", created: true}, nil
	}
	pool, err := s.openPool(t)
	if err != nil {
		return nil, err
	}
	_, err = pool.CreateVolume(t.volume, bytes, nil)
	if err := errors.Join(err, pool.Close()); err != nil {
		return nil, err
	}
	e, err := s.openVolume(t, true)
	if err == nil {
		e.created = true
	}
	return e, err
}

// remove deletes an end, and closes it whatever comes of that.
func (s *Service) remove(e *end) error {
	if e.pool == nil {
		file, ok := e.base.(*loopdev.Device)
		if !ok {
			return errors.Join(loopdev.ErrWrongType, e.Close())
		}
		return errors.Join(file.Unlink(), e.Close())
	}
	if err := e.Close(); err != nil {
		return err
	}
	pool, err := s.openPool(e.target)
	if err != nil {
		return err
	}
	return errors.Join(pool.DeleteVolume(e.target.volume), pool.Close())
}

// hurry keeps a server that does not answer from delaying the end of a run.
func (e *end) hurry() {
	if n, ok := e.device.(*nbdEnd); ok {
		n.Hurry()
	}
}

// changedSince says whether somebody has written to the source of a migration since
// it began; what decant itself does to it leaves no trace in its modification time. An
// export is asked whether it holds what it held; what may have been discarded matters only
// if more is going to be.
func (e *end) changedSince(k known, discards bool) (bool, error) {
	if n, ok := e.device.(*nbdEnd); ok {
		return n.changedSince(k, discards)
	}
	source := k.superblock.Source
	if source.ModifiedNanoseconds == 0 {
		return false, nil
	}
	same, err := e.base.UnchangedSince(time.Unix(0, source.ModifiedNanoseconds))
	return !same, err
}
