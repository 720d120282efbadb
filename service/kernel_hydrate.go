package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"decant/clone"
	"decant/dm"
	"decant/dm/clonetarget"
	"decant/hydrate"
	"decant/region"
)

// The kernel copies as long as its hydration is enabled, as fast as it can, and would go
// on with that if this process died: into a pool that nobody watches. So hydration is
// enabled for no longer than it takes to begin what there is room for, a handful of
// regions, and the kernel is left to finish them.
const (
	// pulsePatience is how long hydration stays enabled while nothing begins: the
	// kernel begins nothing while guests have I/O in flight.
	pulsePatience = 20 * time.Millisecond
	pulsePoll     = 200 * time.Microsecond
	// fruitless is how many pulses in a row may begin copies of which none succeeds.
	fruitless = 8
)

// errMode is what a clone says that has met an error by itself.
var errMode = errors.New("the dm-clone has met an error on its metadata device, or could not flush, and hydrates nothing more")

// hydrate copies what is left, transaction by transaction: the kernel copies as much as
// one holds, its metadata is committed and read, the journal records it, and its source
// is discarded before the next one begins.
func (k *kernelLive) hydrate(ctx context.Context, discard bool) error {
	if k.metadata == nil { // the device is over the destination, nobody reads the source
		return k.catchUp(discard)
	}
	err := k.hydrateAll(ctx, discard)
	if ctx.Err() == nil && err == nil {
		return nil
	}
	// What was copied so far is kept, and what it has left twice is not.
	if stopErr := k.quiesce(); stopErr != nil {
		return errors.Join(err, stopErr)
	}
	if !errors.Is(err, errMode) && k.r.clone.Mode() == clone.ReadWrite {
		err = errors.Join(err, k.commit(discard))
	}
	return err
}

// catchUp discards what an earlier process has committed and not discarded.
func (k *kernelLive) catchUp(discard bool) error {
	if !discard {
		return nil
	}
	return k.discardCommitted()
}

func (k *kernelLive) hydrateAll(ctx context.Context, discard bool) error {
	if discard {
		// An earlier process may have recorded regions without having discarded any.
		if err := k.drain(); err != nil {
			return err
		}
	}
	if err := errors.Join(k.catchUp(discard), k.commit(discard)); err != nil {
		return err
	}
	for {
		if err := k.fill(ctx); err != nil {
			return err
		}
		if err := k.commit(discard); err != nil {
			return err
		}
		if s := k.r.clone.Status(); s.Hydrated == s.Regions {
			return nil
		}
	}
}

// fill has the kernel copy until a transaction is full or its time is over, or everything
// is hydrated.
func (k *kernelLive) fill(ctx context.Context) error {
	o := k.m.record.Options
	most := max(1, o.CommitBytes/k.geometry().RegionBytes())
	first, err := k.statusNow()
	if err != nil {
		return err
	}
	for begun := time.Now(); ; {
		s, err := k.statusNow()
		if err != nil || s.Done() {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		copied := s.HydratedRegions - first.HydratedRegions
		threshold := int64(k.m.control.threshold.Regions())
		room := min(most-copied, threshold) - s.HydratingRegions
		if copied >= most || copied > 0 && time.Since(begun) >= o.CommitPeriod {
			return k.quiesce()
		}
		if room < max(1, threshold/2) && s.HydratingRegions > 0 {
			time.Sleep(k.copyPoll())
			continue
		}
		if room, err = k.admit(ctx, room, copied > 0); err != nil || room == 0 {
			return errors.Join(err, k.quiesce())
		}
		started, err := k.pulse(s, room)
		if err != nil {
			return err
		}
		// What guests have written or trimmed meanwhile is in it, and not to be charged.
		k.allowedBytes -= min(started, 2*room) * k.geometry().RegionBytes()
		if err := k.judge(s, started); err != nil {
			return err
		}
	}
}

// copyPoll is how often a copy is asked for that has to end. The kernel counts all
// regions for an answer.
func (k *kernelLive) copyPoll() time.Duration {
	return time.Millisecond * time.Duration(1+k.geometry().Regions()>>20)
}

// admit waits until so many regions, or fewer, may be copied. It is none if a commit has
// to come first, so that the media give space back.
func (k *kernelLive) admit(ctx context.Context, regions int64, canCommit bool) (int64, error) {
	regionBytes := k.geometry().RegionBytes()
	fitting, err := k.fitting()
	for begun := time.Now(); err == nil && fitting < 1; fitting, err = k.fitting() {
		if canCommit {
			return 0, nil
		}
		shortage := k.r.meter.Shortage()
		if time.Since(begun) > shortage.Patience {
			k.m.spaceHint = k.r.meter.hint(regionBytes)
			return 0, fmt.Errorf("%w: of %s too little can be had, a region has %d bytes", hydrate.ErrNoSpace, shortage.What, regionBytes)
		}
		k.r.Waiting(shortage.What)
		if err := k.r.meter.Reclaim(); err != nil {
			return 0, err
		}
		k.r.meter.Wait(ctx)
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
	if err != nil {
		return 0, err
	}
	k.r.Waiting("")
	regions = min(max(1, regions), fitting)
	return k.throttle(ctx, regions)
}

// fitting is how many regions fit into the space that there is.
func (k *kernelLive) fitting() (int64, error) {
	available, err := k.r.meter.AvailableBytes()
	if err != nil {
		return 0, fmt.Errorf("measure the free space: %w", err)
	}
	s, err := k.statusNow()
	if err != nil {
		return 0, err
	}
	regionBytes := k.geometry().RegionBytes()
	edge := k.r.meter.edgeBytes(regionBytes)
	return available/(regionBytes+edge) - s.HydratingRegions, nil
}

// throttle waits until some of the regions may be copied, and says how many.
func (k *kernelLive) throttle(ctx context.Context, regions int64) (int64, error) {
	regionBytes := k.geometry().RegionBytes()
	if rate := k.m.control.options(k.m).BytesPerSecond; rate > 0 { // so that it is even
		regions = min(regions, max(1, rate/4/regionBytes))
	}
	if missing := regions*regionBytes - k.allowedBytes; missing > 0 {
		if err := k.m.control.throttle.Wait(ctx, missing); err != nil {
			return 0, context.Cause(ctx)
		}
		k.allowedBytes += missing
	}
	return regions, nil
}

// pulse has the kernel begin to copy so many regions, beside what it copies already, and
// says how many it has begun. It may have been a few more, if it was quick.
func (k *kernelLive) pulse(before clonetarget.Status, regions int64) (started int64, err error) {
	threshold := before.HydratingRegions + regions
	if err := errors.Join(k.send(clonetarget.SetThreshold(threshold)), k.send(clonetarget.Enable)); err != nil {
		return 0, errors.Join(err, k.send(clonetarget.Disable))
	}
	was := before.HydratedRegions + before.HydratingRegions
	var s clonetarget.Status
	for begun := time.Now(); ; time.Sleep(pulsePoll) {
		if s, err = k.statusNow(); err != nil || s.Done() || s.HydratedRegions+s.HydratingRegions > was || time.Since(begun) > pulsePatience {
			break
		}
		// It looks for work each time that it is told something.
		if err = k.send(clonetarget.SetThreshold(threshold)); err != nil {
			break
		}
	}
	if err := errors.Join(err, k.send(clonetarget.Disable)); err != nil {
		return 0, err
	}
	if s, err = k.statusNow(); err != nil {
		return 0, err
	}
	return max(0, s.HydratedRegions+s.HydratingRegions-was), nil
}

// judge counts pulses that began copies since one has succeeded, and looks for the reason
// when there were too many. Copies that are slow are waited for before the next pulse.
func (k *kernelLive) judge(before clonetarget.Status, started int64) error {
	if before.HydratedRegions > k.succeeded {
		k.succeeded, k.failed = before.HydratedRegions, 0
	}
	if started == 0 {
		return nil // guests are busy
	}
	if k.failed++; k.failed < fruitless {
		return nil
	}
	k.failed = 0
	if err := k.quiesce(); err != nil {
		return err
	}
	if s, err := k.statusNow(); err != nil || s.HydratedRegions > k.succeeded {
		return err
	}
	if !k.single { // one bad region fails all those that are copied with it
		k.single = true
		return k.send(clonetarget.SetBatch(1))
	}
	return k.findBad()
}

// findBad says which regions cannot be read. Where all can be, writing has failed.
func (k *kernelLive) findBad() error {
	hydrated, err := k.commitAndRead()
	if err != nil {
		return err
	}
	const most = 1 << 12
	incomplete := &hydrate.IncompleteError{}
	buffer := make([]byte, bufferBytes)
	for left := k.geometry().All(); len(incomplete.Bad) < most; {
		run, some := hydrated.MissingRange(left)
		if !some {
			break
		}
		one := region.Range{First: run.First, Count: 1}
		if err := k.readSource(one, buffer); errors.Is(err, syscall.EIO) {
			bad := hydrate.BadRegion{Range: one, Err: err}
			incomplete.Bad = append(incomplete.Bad, bad)
			k.r.Bad(bad)
		} else {
			return errors.Join(errors.New("the kernel fails to copy regions; its log says why"), err)
		}
		left = region.Between(one.End(), left.End())
	}
	return incomplete
}

func (k *kernelLive) readSource(one region.Range, buffer []byte) error {
	off, n := k.geometry().Bytes(one)
	for end := off + n; off < end; {
		p := buffer[:min(int64(len(buffer)), end-off)]
		if _, err := k.r.clone.Source.ReadAt(p, off); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// quiesce waits until the kernel copies nothing more in the background.
func (k *kernelLive) quiesce() error {
	if err := k.send(clonetarget.Disable); err != nil {
		return err
	}
	for {
		s, err := k.statusNow()
		if err != nil || s.HydratingRegions == 0 {
			return err
		}
		time.Sleep(k.copyPoll())
	}
}

func (k *kernelLive) deviceName() (string, error) {
	info, found, err := k.device.find()
	if err == nil && !found {
		err = fmt.Errorf("%s is gone: %w", dm.Path(k.name), unix.ENXIO)
	}
	return info.Name, err
}

func (k *kernelLive) send(message string) error {
	name, err := k.deviceName()
	if err != nil {
		return err
	}
	_, err = k.device.control.Message(name, 0, message)
	return err
}

// status has the kernel commit, and says how far it is.
func (k *kernelLive) status() (clonetarget.Status, error) {
	return k.ask(func(name string) ([]dm.Target, error) { return k.device.control.Status(name) })
}

// statusNow is how far the kernel is, with what it has not committed.
func (k *kernelLive) statusNow() (clonetarget.Status, error) {
	return k.ask(func(name string) ([]dm.Target, error) { return k.device.control.StatusNoFlush(name) })
}

func (k *kernelLive) ask(how func(name string) ([]dm.Target, error)) (clonetarget.Status, error) {
	name, err := k.deviceName()
	if err != nil {
		return clonetarget.Status{}, err
	}
	targets, err := how(name)
	if err != nil {
		return clonetarget.Status{}, err
	}
	if len(targets) != 1 || targets[0].Type != clonetarget.Type {
		return clonetarget.Status{}, fmt.Errorf("%s is no dm-clone any more", dm.Path(name))
	}
	s, err := clonetarget.ParseStatus(targets[0].Params)
	if err == nil && s.Mode != clonetarget.ReadWrite {
		err = fmt.Errorf("%w (mode %s)", errMode, s.Mode)
	}
	return s, err
}

func (k *kernelLive) openNode(flags int) (*os.File, error) {
	name, err := k.deviceName()
	if err != nil {
		return nil, err
	}
	return os.OpenFile(dm.Path(name), flags|unix.O_CLOEXEC, 0)
}

// discardRange tells a block device that nobody needs a range of it.
func discardRange(node *os.File, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, node.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return &os.PathError{Op: "discard on", Path: node.Name(), Err: errno}
	}
	return nil
}
