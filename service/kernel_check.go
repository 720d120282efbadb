package service

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/dm/clonetarget"
	"decant/journal"
	"decant/loopdev"
	"decant/thin"
)

// whyNotKernel says why the kernel engine cannot be had for the attempt; it is empty if
// it can.
func (a *attempt) whyNotKernel() string {
	source, isLocal := a.source.base.(*loopdev.Device)
	switch {
	case !isLocal:
		return "the source is no file or block device of this machine"
	case a.known != nil && a.known.record.Engine != EngineKernel && (a.known.record.Used || a.known.state.Hydrated.Count() > 0):
		return "the migration was begun without it"
	case a.request.Options.Verify:
		return "--verify compares what this program copies, and the kernel copies by itself"
	case a.source.Bytes()%dm.SectorBytes != 0:
		return fmt.Sprintf("the source has %d bytes, and the kernel knows whole sectors of %d only", a.source.Bytes(), dm.SectorBytes)
	case !a.endsOnBlockDevice():
		return "the destination is a file, and dm-clone fills block devices"
	}
	if err := clonetarget.CheckRegionBytes(a.plan.RegionBytes); err != nil {
		return err.Error()
	}
	if source.Info().Kind != loopdev.Block {
		if _, err := os.Stat("/dev/loop-control"); err != nil {
			return "the kernel has no loop devices (modprobe loop)"
		}
	}
	return whyNoCloneTarget()
}

func whyNoCloneTarget() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Sprintf("the kernel does not say which it is: %v", err)
	}
	if err := clonetarget.CheckKernel(unix.ByteSliceToString(name.Release[:])); err != nil {
		return err.Error()
	}
	control, err := dm.Open()
	if err != nil {
		return err.Error()
	}
	defer func() { _ = control.Close() }() // was only asked
	if _, err := control.TargetVersion(clonetarget.Type); err != nil {
		return "the device-mapper has no target clone (modprobe dm-clone)"
	}
	return ""
}

// endsOnBlockDevice says whether the destination is a block device, or will be one.
func (a *attempt) endsOnBlockDevice() bool {
	if a.destination != nil {
		return a.destination.base.Info().Kind == loopdev.Block
	}
	if a.target.pool == "" {
		return false
	}
	pool, err := a.s.openPool(a.target)
	if err != nil {
		return false // making the volume will say what is wrong
	}
	defer func() { _ = pool.Close() }() // it has only looked
	_, isKernels := pool.(thin.Stacked)
	return isKernels
}

func (a *attempt) checkKernelEngine() error {
	if why := a.whyNotKernel(); why != "" {
		return refuse(a.request.Options.Live, "the kernel engine cannot be used: "+why, "leave off --engine kernel", nil)
	}
	return nil
}

// checkKernelLeft refuses to go on in another way with what the kernel has begun: its
// metadata alone tells what users have written.
func (a *attempt) checkKernelLeft() error {
	k := a.known
	if k == nil || k.record.Live == "" || k.record.Engine != EngineKernel || !k.record.Used || k.state.Phase != journal.Running {
		return nil
	}
	return refuse(a.source.name, "its migration "+k.id+" was used as "+dm.Path(k.record.Live)+" while the kernel hydrated it",
		"give --live "+k.record.Live+", or: migrate resume "+k.id, nil)
}

// checkKernelEnded refuses to bring back, or to give up, what the kernel has begun and not
// ended.
func (m *migration) checkKernelEnded() error {
	if m.record.Live == "" || m.record.Engine != EngineKernel || !m.record.Used {
		return nil
	}
	state, err := m.journal.Load()
	if err != nil {
		return m.failure(err)
	}
	if state.Phase != journal.Running || state.Direction == journal.Backward {
		return nil
	}
	return refuse(m.id, "was used as "+dm.Path(m.record.Live)+" while the kernel hydrated it, and is not at its end",
		"let it end first: migrate resume "+m.id, nil)
}
