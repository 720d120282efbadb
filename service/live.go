package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decant/clone"
	"decant/dm"
	"decant/journal"
	"decant/nbd"
)

const (
	// DefaultLiveTimeout is how long the I/O of a live device waits for a process
	// that serves it. It has to be enough for somebody to look at what went wrong.
	DefaultLiveTimeout = 10 * time.Minute
	maxLiveTimeout     = 7 * 24 * time.Hour
	// liveAskTime bounds how long a request that a dead process has taken with it
	// waits in the kernel after the next one has come.
	liveAskTime = 3 * time.Second
	// holdPatience is how long a killed process may seem to be there: until its last
	// I/O has ended.
	holdPatience = 30 * time.Second
)

// liveBackend tells that a network block device is of a migration.
func liveBackend(id string) string { return liveUUID(id) }

// live is the use of a volume as /dev/mapper/NAME with the user engine: the clone is
// served to the kernel as a network block device, a linear device-mapper device lies over
// that, and at the end over the destination.
//
//	open     network block device, connected or taken on again; linear device over it
//	finish   the migration is done in the journal                     (conclude)
//	         linear device over the destination                      (moveTo)
//	         network block device disconnected
//	close    nobody is served any more; what is not finished waits
//
// Whatever a crash leaves of it, the same steps are taken again: those that are done
// already change nothing.
type live struct {
	name    string
	timeout time.Duration

	r        *reporter
	device   *liveDevice
	link     *nbd.KernelLink // the first one; nil before hold or open
	served   bool
	end      context.CancelFunc // of serving
	keeping  sync.WaitGroup     // of keep
	released atomic.Bool        // the network block device is being disconnected
	moved    bool               // the device needs this process no more
}

func (x *live) check(a *attempt) error {
	if err := a.checkLive(); err != nil {
		return err
	}
	return checkKernelClient(x.name)
}

// hold takes on a network block device that an earlier process has left, so that its I/O
// does not fail while that is done which has to come before open.
func (x *live) hold(ctx context.Context, r *reporter) error {
	uses, err := nbd.KernelUses()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(uses, func(u nbd.KernelUse) bool { return u.Backend == liveBackend(r.m.id) })
	if i < 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, holdPatience)
	defer cancel()
	x.link, err = nbd.HoldKernel(ctx, x.kernelDevice(r, uses[i].Index))
	return err
}

func (x *live) kernelDevice(r *reporter, index int) nbd.KernelDevice {
	unit := liveUnit(r.m.destination)
	return nbd.KernelDevice{
		Index: index, Bytes: r.volume.Bytes() / unit * unit, BlockBytes: unit,
		Backend: liveBackend(r.m.id), DeadTime: x.timeout, AskTime: liveAskTime,
	}
}

func (x *live) open(_ context.Context, r *reporter) (err error) {
	x.r = r
	if x.device, err = openLiveDevice(x.name, r.m.id); err != nil {
		return err
	}
	if x.moved, err = x.isMoved(); err != nil {
		return err
	}
	if x.moved {
		r.tell(Exported, func(e *Event) { e.Device = dm.Path(x.name) })
		return nil
	}
	guardMemory(r.warn)
	export := r.export("")
	export.MinBlockBytes, export.Device = dm.SectorBytes, liveVolume{r.volume}
	// First writes to regions wait for a commit, the more of them together the better.
	server, err := nbd.NewServer(nbd.Config{Exports: []nbd.Export{export}, Limits: nbd.Limits{Depth: 64}})
	if err != nil {
		return err
	}
	// It serves until close, whatever the run does: whoever reads or writes the device
	// can be waited for by nobody else.
	ctx, end := context.WithCancel(context.Background())
	if x.link != nil {
		x.link.Serve(ctx, server, "")
	} else if x.link, err = server.AttachKernel(ctx, x.kernelDevice(r, -1), ""); err != nil {
		end()
		return fmt.Errorf("let the kernel use the volume: %w", err)
	}
	x.served, x.end = true, end
	x.keeping.Go(func() { x.keep(ctx, server) })
	number, err := blockDeviceNumber(nbd.KernelDevicePath(x.link.Index))
	if err == nil {
		err = x.device.make(linearTable(number, liveSectors(r.m.destination, r.volume.Bytes())))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make %s: %w", dm.Path(x.name), err), x.abandon())
	}
	r.tell(Exported, func(e *Event) { e.Device = dm.Path(x.name) })
	return nil
}

// keep comes back to the kernel when it has closed the connection. The end of the one to
// an earlier process can take the new one with it: the kernel tells them apart by their
// place, which is the same.
func (x *live) keep(ctx context.Context, server *nbd.Server) {
	for link := x.link; ; {
		<-link.Ended()
		if ctx.Err() != nil || x.released.Load() {
			return
		}
		patience, cancel := context.WithTimeout(ctx, holdPatience)
		next, err := nbd.HoldKernel(patience, x.kernelDevice(x.r, link.Index))
		cancel()
		if err != nil {
			if ctx.Err() == nil && !x.released.Load() {
				x.r.warn(fmt.Sprintf("the kernel has closed %s and cannot be reached again: %v", nbd.KernelDevicePath(link.Index), err))
			}
			return
		}
		next.Serve(ctx, server, "")
		link = next
	}
}

// disconnect takes the network block device away from the kernel, for good.
func (x *live) disconnect() error {
	x.released.Store(true)
	return nbd.DisconnectKernel(x.link.Index)
}

// abandon takes the network block device away that nobody can be using, because no
// device was made of it.
func (x *live) abandon() error {
	if _, found, err := x.device.find(); err != nil || found {
		return err
	}
	return x.disconnect()
}

// isMoved says whether the device is over the destination: an earlier process got so far,
// or the migration is done and there is none, as after a start of the host; then it is
// made there.
func (x *live) isMoved() (bool, error) {
	info, found, err := x.device.find()
	if err != nil {
		return false, err
	}
	if found {
		over, err := x.device.isOver(x.r.m.destination)
		if err == nil && over {
			err = x.device.settle(info)
		}
		return over, err
	}
	state, err := x.r.m.journal.Load()
	if err != nil || state.Phase != journal.Done {
		return false, err
	}
	return true, x.device.moveTo(x.r.m.destination, x.r.volume.Bytes())
}

// finish puts the device over the destination, where it needs nobody. If hydration has
// failed, the device is served for as long as somebody has it open.
func (x *live) finish(ctx context.Context, failed error) error {
	if failed != nil {
		return x.awaitUsers(ctx)
	}
	if !x.moved {
		// From then on the journal relies on nothing that the users of the device will
		// change without telling it.
		if err := x.r.m.conclude(ctx, x.r); err != nil {
			return err
		}
		if err := x.device.moveTo(x.r.m.destination, x.r.volume.Bytes()); err != nil {
			return fmt.Errorf("put %s over the destination: %w", dm.Path(x.name), err)
		}
		x.moved = true
	}
	if x.link == nil {
		return nil
	}
	if err := x.disconnect(); err != nil {
		return err
	}
	x.keeping.Wait()
	return nil
}

// awaitUsers returns when nobody has the device open, or ctx has ended.
func (x *live) awaitUsers(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		info, found, err := x.device.find()
		if err != nil || !found || info.OpenCount == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (x *live) close() error {
	var err error
	switch {
	case x.served:
		if x.failed() {
			// What was answered since the last flush may be gone. The next process would
			// find nothing wrong with the next flush, so nobody may wait for it.
			err = x.disconnect()
		}
		x.end()
		x.keeping.Wait()
	case x.link != nil:
		x.link.Close()
	}
	if x.device != nil {
		err = errors.Join(err, x.device.close())
	}
	return err
}

// failed says whether a flush or a commit has failed while the device was served.
func (x *live) failed() bool { return !x.moved && x.r.clone.Mode() != clone.ReadWrite }

// waits says in words what becomes of the device when this process ends before finish.
func (x *live) waits() string {
	switch {
	case x.device == nil || x.moved:
		return ""
	case x.failed():
		return dm.Path(x.name) + " gives errors from now on, since a flush has failed: unmount it before the next run, which makes it anew"
	}
	return fmt.Sprintf("the I/O of %s waits for the next run, at most %v", dm.Path(x.name), x.timeout)
}

// liveVolume is the volume as the kernel uses it. A change that waits for space when the
// run is stopped does not fail: it is for the next run.
type liveVolume struct{ *volume }

func (v liveVolume) leave(err error) error {
	if errors.Is(err, unix.ESHUTDOWN) && v.ctx.Err() != nil {
		return nbd.ErrNoAnswer
	}
	return err
}

// WriteAt implements nbd.Device.
func (v liveVolume) WriteAt(p []byte, off int64) (int, error) {
	n, err := v.volume.WriteAt(p, off)
	return n, v.leave(err)
}

// Zero implements nbd.Device.
func (v liveVolume) Zero(off, n int64) error { return v.leave(v.volume.Zero(off, n)) }

// Discard implements nbd.Device.
func (v liveVolume) Discard(off, n int64) error { return v.leave(v.volume.Discard(off, n)) }
