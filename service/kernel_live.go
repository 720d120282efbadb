package service

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/dm/clonetarget"
	"decant/journal"
	"decant/loopdev"
	"decant/region"
)

// kernelLive is the use of a volume as /dev/mapper/NAME with the kernel engine: the
// device is a dm-clone, which copies and serves guests by itself, whether this process
// is there or not. This process lets it copy, a little at a time, and does what it does
// not: it discards what the kernel's metadata and the journal both have as hydrated.
//
//	hold     metadata device, dm-clone over it, both ends; hidden as long as it is made
//	open     the device gets its name
//	hydrate  copies in the background, commits, discards                (kernel_hydrate.go)
//	finish   linear device over the destination; the metadata goes
//	close    nothing is copied in the background any more; guests go on
//
// What is hydrated, in this order, each a part of the one before it:
//
//	the kernel's memory ⊇ its metadata device ⊇ the journal ⊇ what is discarded
//
// A crash may lose the end of each; none is ever written before the one on its left is
// durable. A metadata device that lacks what the journal has is another one or an old
// copy, and is refused: the kernel would copy holes over data.
type kernelLive struct {
	name string

	m            *migration
	r            *reporter
	device       *liveDevice
	guardian     *guardian         // nil before open
	metadata     *cloneMetadata    // nil where all is hydrated
	source       *loopdev.Attached // that this process has made; nil for a block device
	durable      *region.Set       // what the metadata device had at first
	empty        *region.Set       // of those, what needed no copy
	allowedBytes int64             // by the throttle, and not copied yet; negative if more was
	succeeded    int64             // regions that were hydrated when a copy was seen to succeed last
	failed       int               // pulses since then that have begun copies
	single       bool              // copies are of one region, since larger ones failed
	moved        bool              // the device is a plain part of the destination
}

// hiddenName is the device's until everything is in order that guests must not disturb.
func hiddenName(id string) string { return "decant-" + id }

// kernelEngine is the kernel's part in the run, nil if this process copies.
func (m *migration) kernelEngine() *kernelLive {
	for _, x := range m.accesses {
		if k, ok := x.(*kernelLive); ok {
			return k
		}
	}
	return nil
}

func (k *kernelLive) check(a *attempt) error {
	if err := a.checkLive(); err != nil {
		return err
	}
	return a.checkKernelEngine()
}

// hold makes the device, or finds the one that an earlier process has made, and sees
// that its metadata goes with the journal.
func (k *kernelLive) hold(_ context.Context, r *reporter) error {
	k.m, k.r, k.empty = r.m, r, region.NewSet()
	var err error
	if k.device, err = openLiveDevice(k.name, k.m.id); err != nil {
		return err
	}
	state, err := k.m.journal.Load()
	if err != nil {
		return k.m.failure(err)
	}
	if state.Hydrated.Count() == k.geometry().Regions() {
		return nil // the metadata may be gone, and is of no use
	}
	fresh := !k.m.record.Used && state.Hydrated.Count() == 0
	if err := k.join(fresh); err != nil {
		return err
	}
	err = k.checkMetadata(state)
	if err == nil && fresh {
		err = k.skipHoles()
	}
	if err != nil {
		err = errors.Join(err, k.removeHidden())
	}
	return err
}

// removeHidden takes the device away if it has not got its name: then nobody uses it.
func (k *kernelLive) removeHidden() error {
	info, found, err := k.device.find()
	if err != nil || !found || info.Name != hiddenName(k.m.id) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), removePatience)
	defer cancel()
	return k.device.control.RemoveRetry(ctx, info.Name)
}

func (k *kernelLive) geometry() region.Geometry { return k.m.journal.Superblock().Geometry }

// join finds the running clone, or makes one on the metadata that there is.
func (k *kernelLive) join(fresh bool) error {
	if err := k.removeHidden(); err != nil { // a process died while it made it
		return err
	}
	info, found, err := k.device.find()
	if err != nil {
		return err
	}
	if found {
		return k.takeOver(info)
	}
	return k.make(fresh)
}

// removePatience is how long programs that look at every new device may keep one open.
const removePatience = 2 * time.Second

// takeOver goes on with a clone that an earlier process has left running.
func (k *kernelLive) takeOver(info dm.Info) error {
	targets, err := k.device.control.Table(info.Name)
	if err != nil {
		return err
	}
	if len(targets) != 1 || targets[0].Type != clonetarget.Type {
		return fmt.Errorf("%s is no dm-clone, and not all of it is at the destination", dm.Path(info.Name))
	}
	table, err := clonetarget.ParseTable(targets[0].Params)
	if err != nil {
		return err
	}
	destination := dm.DeviceNumber(k.m.destination.base.Info().Dev).String()
	if table.Destination != destination || table.RegionBytes != k.geometry().RegionBytes() {
		return fmt.Errorf("%s is a dm-clone of other devices than this migration's", dm.Path(info.Name))
	}
	if k.metadata, err = k.m.s.findCloneMetadata(k.m.id, table.Metadata); err != nil {
		return err
	}
	if err := k.checkShown(table.Source); err != nil {
		return err
	}
	if err := k.device.settle(info); err != nil {
		return err
	}
	return k.send(clonetarget.Disable)
}

// checkShown sees that what the clone reads is the source.
func (k *kernelLive) checkShown(number string) error {
	source := k.sourceDevice()
	if source.Info().Kind == loopdev.Block {
		if number != dm.DeviceNumber(source.Info().Dev).String() {
			return fmt.Errorf("the dm-clone reads device %s, which is not %s", number, k.m.source.name)
		}
		return nil
	}
	dev, err := parseNumber(number)
	if err != nil {
		return err
	}
	backing, err := loopdev.BackingOf(dev)
	if err != nil {
		return err
	}
	if !backing.Is(source) {
		return fmt.Errorf("the dm-clone reads %s, which is not %s", backing.Path, k.m.source.name)
	}
	return nil
}

// make makes the clone under its hidden name. The kernel formats metadata that is blank.
func (k *kernelLive) make(fresh bool) (err error) {
	sectors := liveSectors(k.m.destination, k.geometry().DeviceBytes())
	if k.metadata, err = k.m.s.openCloneMetadata(k.m.id, k.geometry(), fresh); err != nil {
		return err
	}
	o := k.m.record.Options
	table := clonetarget.Table{
		Metadata: k.metadata.number(), Destination: dm.DeviceNumber(k.m.destination.base.Info().Dev).String(),
		RegionBytes: k.geometry().RegionBytes(), NoHydration: true,
		Threshold: int64(o.ThresholdRegions), Batch: int64(o.BatchRegions),
	}
	if table.Source, err = k.showSource(); err != nil {
		return err
	}
	if err := k.m.destination.base.Share(); err != nil {
		return err
	}
	control, name := k.device.control, hiddenName(k.m.id)
	if _, err := control.Create(name, liveUUID(k.m.id)); err != nil {
		return err
	}
	err = k.device.load(name, []dm.Target{{Length: sectors, Type: clonetarget.Type, Params: table.String()}})
	if err == nil {
		err = control.Resume(name, liveRules...)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make a dm-clone: %w; the kernel's log says why", err), control.Remove(name))
	}
	return nil
}

// sourceDevice is what the source is; preflight refuses any other kind.
func (k *kernelLive) sourceDevice() *loopdev.Device { return k.m.source.base.(*loopdev.Device) }

// showSource is the number of the device that the clone reads.
func (k *kernelLive) showSource() (string, error) {
	source := k.sourceDevice()
	if source.Info().Kind == loopdev.Block {
		return dm.DeviceNumber(source.Info().Dev).String(), source.Share()
	}
	var err error
	if k.source, err = source.Show(); err != nil {
		return "", err
	}
	return dm.DeviceNumber(k.source.Dev()).String(), nil
}

// checkMetadata refuses metadata that lacks what the journal has.
func (k *kernelLive) checkMetadata(state journal.State) error {
	var err error
	if k.durable, err = k.readMetadata(); err != nil {
		return err
	}
	missing := state.Hydrated.Clone()
	missing.Subtract(k.durable)
	if missing.Count() == 0 {
		return nil
	}
	return &Error{
		Outcome: Stopped, Object: k.metadata.path,
		Problem: fmt.Sprintf("does not know %d regions that the journal knows to be at the destination: it is another one, or an old copy", missing.Count()),
		State:   k.m.whereabouts(),
		Hint:    "put the newest one back; with this one the kernel would copy what was discarded over what is at the destination",
	}
}

// skipHoles has the kernel count as hydrated what is a hole on the source and reads as
// zeros from the destination. It is done before anybody can write there.
func (k *kernelLive) skipHoles() error {
	holes, err := k.r.clone.Holes()
	if err != nil || holes.Count() == 0 || k.durable.Count() > 0 {
		return err
	}
	node, err := k.openNode(unix.O_RDWR | unix.O_EXCL)
	if err != nil {
		return err
	}
	for run := range holes.Ranges() {
		off, n := k.geometry().Bytes(run)
		if err := discardRange(node, off, n); err != nil {
			return errors.Join(fmt.Errorf("skip the holes of the source: %w", err), node.Close())
		}
	}
	k.empty = holes
	_, err = k.status()
	return errors.Join(err, node.Close())
}

// open gives the device its name.
func (k *kernelLive) open(_ context.Context, r *reporter) error {
	info, found, err := k.device.find()
	if err != nil {
		return err
	}
	switch {
	case k.metadata == nil: // all is hydrated
		k.moved = true
		err = k.device.moveTo(k.m.destination, k.geometry().DeviceBytes())
	case !found:
		err = fmt.Errorf("%s is gone: %w", dm.Path(hiddenName(k.m.id)), unix.ENXIO)
	case info.Name == hiddenName(k.m.id):
		err = k.device.control.Rename(info.Name, k.name, liveRules...)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", dm.Path(k.name), err)
	}
	if !k.moved {
		guardMemory(r.warn)
		if k.guardian, err = startGuardian(k.m.id); err != nil {
			r.warn(fmt.Sprintf("nobody sees to %s if this process is killed: %v", dm.Path(k.name), err))
		}
	}
	r.tell(Exported, func(e *Event) { e.Device = dm.Path(k.name) })
	return nil
}

// finish makes the device a plain part of the destination. The device needs this process
// for nothing, so that a failure is not waited on.
func (k *kernelLive) finish(ctx context.Context, failed error) error {
	if failed != nil {
		return nil //nolint:nilerr // it is told by others, and the device needs nobody for it
	}
	if err := k.m.conclude(ctx, k.r); err != nil {
		return err
	}
	if !k.moved {
		if err := k.device.moveTo(k.m.destination, k.geometry().DeviceBytes()); err != nil {
			return fmt.Errorf("put %s over the destination: %w", dm.Path(k.name), err)
		}
		k.moved = true
	}
	return k.m.s.removeCloneMetadata(k.m.id)
}

// waits says in words what becomes of the device when this process ends before finish.
func (k *kernelLive) waits() string {
	if k.guardian == nil || k.moved {
		return ""
	}
	return "whoever uses " + dm.Path(k.name) + " can go on, and nothing more is copied in the background"
}

// close leaves the device to its guests.
func (k *kernelLive) close() error {
	var err error
	if k.metadata != nil && !k.moved {
		err = k.send(clonetarget.Disable)
	}
	if k.guardian != nil {
		k.guardian.stop()
	}
	if k.metadata != nil {
		err = errors.Join(err, k.metadata.close())
	}
	if k.source != nil {
		err = errors.Join(err, k.source.Close())
	}
	if k.device != nil {
		err = errors.Join(err, k.device.close())
	}
	k.metadata, k.source, k.device, k.guardian = nil, nil, nil, nil
	return err
}
