package service

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/loopdev"
	"decant/nbd"
)

// chooseLive makes the access for a live device, if there is to be one.
func (a *attempt) chooseLive() error {
	o := &a.request.Options
	if o.Live == "" {
		if err := a.checkKernelLeft(); err != nil {
			return err
		}
		return a.checkLeftLive()
	}
	engine, err := a.chooseEngine()
	if err != nil {
		return err
	}
	o.Engine = engine // what is begun with one is ended with it
	switch engine {
	case EngineKernel:
		a.accesses = append(a.accesses, &kernelLive{name: o.Live})
	default:
		a.accesses = append(a.accesses, &live{name: o.Live, timeout: o.LiveTimeout})
	}
	return nil
}

// chooseEngine is the engine of a live device: that which the migration was begun with,
// or the one that the options ask for.
func (a *attempt) chooseEngine() (string, error) {
	o := a.request.Options
	asked := o.Engine
	if asked == "" {
		asked = EngineAuto
	}
	if a.known != nil && a.known.record.Live != "" && a.known.record.Engine != EngineAuto {
		begun := a.known.record.Engine
		if asked != EngineAuto && asked != begun {
			return "", refuse(a.source.name, fmt.Sprintf("its migration %s was begun with --engine %s", a.known.id, begun), "go on with that", nil)
		}
		return begun, nil
	}
	if asked == EngineAuto {
		if a.whyNotKernel() == "" {
			return EngineKernel, nil
		}
		return EngineUser, nil
	}
	return asked, nil
}

// checkStacked refuses ends that live devices of other migrations lie on. Nobody else
// sees to that: such devices keep no end from being opened.
func (a *attempt) checkStacked() error {
	for _, e := range []*end{a.source, a.destination} {
		if e == nil {
			continue
		}
		uuids, err := e.base.Stacked()
		if err != nil {
			return refuse(e.name, "it cannot be seen who uses it", "", err)
		}
		for _, uuid := range uuids {
			if a.known == nil || !strings.HasPrefix(uuid, liveUUID(a.known.id)) {
				return refuse(e.name, "is in use as the live device of migration "+strings.TrimPrefix(uuid, loopdev.StackedUUID),
					"end that use first, and take the device away with: dmsetup remove", nil)
			}
		}
	}
	return nil
}

// guestsOutlive says whether some guests live on when this process dies.
func (m *migration) guestsOutlive() bool {
	for _, x := range m.accesses {
		if _, ok := x.(*live); ok {
			return true
		}
	}
	return false
}

// endLive puts the live device of a migration that is done over the destination, from
// wherever the run before this one has left it.
func (m *migration) endLive(ctx context.Context, r *reporter) error {
	if err := m.holdGuests(ctx, r); err != nil {
		return err
	}
	if err := m.letGuestsIn(ctx, r); err != nil {
		return err
	}
	return m.seeGuestsOff(ctx, r, nil)
}

// removeLive takes away the live device of a migration that is going to be reversed or
// cancelled. It is refused while somebody uses the device, or has it mounted.
func (m *migration) removeLive() error {
	if m.record.Live == "" {
		return nil
	}
	if err := m.checkKernelEnded(); err != nil {
		return err
	}
	d, err := openLiveDevice(m.record.Live, m.id)
	if errors.Is(err, dm.ErrNoDeviceMapper) {
		return nil
	}
	if err != nil {
		return refuse(m.record.Live, "it cannot be seen whether the live device is there", "", err)
	}
	defer func() { _ = d.close() }() // nothing hangs on it
	info, found, err := d.find()
	if err != nil {
		return refuse(m.record.Live, "it cannot be seen whether the live device is there", "", err)
	}
	if found && info.OpenCount > 0 {
		return refuse(dm.Path(info.Name), "is in use; nothing was changed", "unmount it, or end what uses it, and try again", nil)
	}
	if err := d.remove(); err != nil {
		return refuse(dm.Path(info.Name), "cannot be taken away; nothing was changed", "end what uses it, and try again", err)
	}
	uses, err := nbd.KernelUses()
	for _, u := range uses {
		if u.Backend == liveBackend(m.id) {
			err = errors.Join(err, nbd.DisconnectKernel(u.Index))
		}
	}
	if err != nil {
		return refuse(dm.Path(info.Name), "the network block device below it cannot be taken away", "see /sys/block/nbd*/backend", err)
	}
	if err := m.s.removeCloneMetadata(m.id); err != nil {
		return refuse(m.s.cloneMetadataPath(m.id), "cannot be removed", "", err)
	}
	return nil
}

// blockDeviceNumber is the number of the block device at a path.
func blockDeviceNumber(path string) (dm.DeviceNumber, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, fmt.Errorf("%s: %w", path, unix.ENOTBLK)
	}
	return dm.DeviceNumber(stat.Rdev), nil
}
