package service

import (
	"errors"

	"golang.org/x/sys/unix"

	"decant/clone"
	"decant/nbd"
)

// volume is the clone of a run as guests use it.
type volume struct {
	*clone.Clone
}

var (
	_ nbd.Device = (*volume)(nil)
	_ nbd.Mapped = (*volume)(nil)
	_ nbd.Locked = (*volume)(nil)
)

// Extents implements nbd.Mapped.
func (v *volume) Extents(off, n int64) ([]nbd.Extent, error) {
	extents, err := v.Clone.Extents(off, n)
	all := make([]nbd.Extent, len(extents))
	for i, e := range extents {
		all[i] = nbd.Extent{Bytes: e.Bytes, Hole: e.Zero, Zero: e.Zero, Hydrated: e.Hydrated}
	}
	return all, err
}

// ReadOnly implements nbd.Locked: after a flush that failed everything can still be read.
func (v *volume) ReadOnly() bool { return v.Mode() != clone.ReadWrite }

// WriteAt implements nbd.Device.
func (v *volume) WriteAt(p []byte, off int64) (int, error) {
	n, err := v.Clone.WriteAt(p, off)
	return n, asErrno(err)
}

// Zero implements nbd.Device.
func (v *volume) Zero(off, n int64) error { return asErrno(v.Clone.Zero(off, n)) }

// Discard implements nbd.Device.
func (v *volume) Discard(off, n int64) error { return asErrno(v.Clone.Discard(off, n)) }

// asErrno gives an error that has none the errno that guests understand best.
func asErrno(err error) error {
	if errors.Is(err, clone.ErrReadOnly) {
		return errors.Join(unix.EROFS, err)
	}
	return err
}
