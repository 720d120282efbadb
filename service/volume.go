package service

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decant/clone"
	"decant/hydrate"
	"decant/nbd"
)

// volume is the clone of a run as guests use it. Their changes keep the reserve of free
// space as copies do.
type volume struct {
	*clone.Clone
	ctx   context.Context // ends the waiting for space
	space *hydrate.Guests // nil: changes take no space that could run out
}

// requestProcs is how many requests of guests may be in system calls before others have
// to wait for the runtime to notice.
const requestProcs = 8

// letRequestsBlock makes GOMAXPROCS at least requestProcs, unless the user has set it. A
// goroutine that is in a system call keeps its place among those that run until the
// runtime takes it away, some 20 microseconds later or more; with a place for each of few
// processors, that is what requests wait for, and not the device.
var letRequestsBlock = sync.OnceFunc(func() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < requestProcs {
		runtime.GOMAXPROCS(requestProcs)
	}
})

// guestPatience is how long a guest's change waits for space: a disk may take that long,
// and those behind it wait, too.
const guestPatience = 5 * time.Second

// outlivingPatience is that of guests who outlive this process: file systems, which give
// up when a write fails. It is the time that a thin pool without space takes.
const outlivingPatience = time.Minute

// newVolume is for the guests of a run that ends with ctx, if any.
func (m *migration) newVolume(ctx context.Context, r *reporter) *volume {
	v := &volume{Clone: r.clone, ctx: ctx}
	if len(m.accesses) > 0 {
		letRequestsBlock()
	}
	if len(m.accesses) == 0 || len(r.meter.takes.links) == 0 {
		return v
	}
	r.meter.isPatient = func() bool { return r.clone.GuestBusy(time.Minute) }
	patience := guestPatience
	if m.guestsOutlive() {
		patience = outlivingPatience
	}
	v.space = hydrate.NewGuests(r.clone, hydrate.GuestOptions{
		Space: r.meter, UnitBytes: r.meter.unitBytes, Patience: patience, Refused: r.guestRefused,
	})
	return v
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
func (v *volume) WriteAt(p []byte, off int64) (n int, err error) {
	err = v.change(off, int64(len(p)), false, func() error {
		n, err = v.Clone.WriteAt(p, off)
		return err
	})
	return n, err
}

// Zero implements nbd.Device.
func (v *volume) Zero(off, n int64) error {
	return v.change(off, n, true, func() error { return v.Clone.Zero(off, n) })
}

// Discard implements nbd.Device.
func (v *volume) Discard(off, n int64) error {
	return v.change(off, n, true, func() error { return v.Clone.Discard(off, n) })
}

// change makes a change once there is space for it.
func (v *volume) change(off, n int64, zero bool, do func() error) error {
	if v.space == nil || v.ReadOnly() {
		return asErrno(do())
	}
	claim, err := v.space.Admit(v.ctx, off, n, zero)
	if err != nil {
		return err
	}
	defer v.space.Landed(claim)
	return asErrno(do())
}

// asErrno gives an error that has none the errno that guests understand best.
func asErrno(err error) error {
	if errors.Is(err, clone.ErrReadOnly) {
		return errors.Join(unix.EROFS, err)
	}
	return err
}
