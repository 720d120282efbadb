package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/loopdev"
)

// liveUUID is that of the device-mapper device that the volume of a migration is used by
// while it hydrates. A name can be given to any device, and be changed by anyone; the UUID
// stays.
func liveUUID(id string) string { return loopdev.StackedUUID + id }

// liveRules keep udev from looking into what is a guest's. Whoever does would wait while
// nobody serves the device.
var liveRules = []dm.UdevRules{dm.NoSubsystemRules, dm.NoDiskRules, dm.NoOtherRules}

// liveDevice is the device of a migration in the device-mapper, whether it exists or not.
type liveDevice struct {
	control *dm.Control
	id      string // of the migration
	name    string // that it is made with
}

// openLiveDevice connects to the device-mapper.
func openLiveDevice(name, id string) (*liveDevice, error) {
	control, err := dm.Open()
	if err != nil {
		return nil, err
	}
	return &liveDevice{control: control, id: id, name: name}, nil
}

func (d *liveDevice) close() error { return d.control.Close() }

// find looks for the device. Its name may be another one than d.name.
func (d *liveDevice) find() (info dm.Info, found bool, err error) {
	info, err = d.control.InfoByUUID(liveUUID(d.id))
	if errors.Is(err, unix.ENXIO) {
		return dm.Info{}, false, nil
	}
	return info, err == nil, err
}

// make gives the device a table, and lets its I/O go. A device that is there already
// with that table is resumed if somebody has left it suspended; a table that was loaded
// and never took effect goes.
func (d *liveDevice) make(table []dm.Target) error {
	info, found, err := d.find()
	if err != nil {
		return err
	}
	if !found {
		return d.create(table)
	}
	if info.ActiveTable {
		active, err := d.control.Table(info.Name)
		if err != nil {
			return err
		}
		if slices.Equal(active, table) {
			return d.settle(info)
		}
	}
	return d.exchange(info, table)
}

func (d *liveDevice) create(table []dm.Target) error {
	_, err := d.control.Create(d.name, liveUUID(d.id))
	if err != nil {
		return err
	}
	if err = d.control.Load(d.name, table); err == nil {
		err = d.control.Resume(d.name, liveRules...)
	}
	if err != nil {
		err = errors.Join(err, d.control.Remove(d.name))
	}
	return err
}

// settle makes a device usable that a crash may have left otherwise.
func (d *liveDevice) settle(info dm.Info) error {
	if info.InactiveTable {
		if err := d.control.Clear(info.Name); err != nil {
			return err
		}
	}
	if info.Suspended {
		return d.control.Resume(info.Name, liveRules...)
	}
	return nil
}

// exchange gives the device another table. I/O that is under way is finished by the old
// one, and what comes meanwhile waits for the new one. File systems are not frozen: they
// need not know. So the device is suspended for no longer than its I/O takes, and a
// process that is killed at this leaves nothing that hangs but the suspension itself,
// which the next one ends.
func (d *liveDevice) exchange(info dm.Info, table []dm.Target) error {
	if err := d.load(info.Name, table); err != nil {
		return err
	}
	if info.ActiveTable {
		if err := d.control.Suspend(info.Name, dm.SuspendOptions{NoLockFS: true}); err != nil {
			return errors.Join(err, d.control.Clear(info.Name))
		}
	}
	return d.control.Resume(info.Name, liveRules...)
}

// load waits for the claim on a device that this process has given up: it ends with the
// last I/O that was under way then.
func (d *liveDevice) load(name string, table []dm.Target) error {
	const patience, pause = 10 * time.Second, 20 * time.Millisecond
	for begun := time.Now(); ; time.Sleep(pause) {
		err := d.control.Load(name, table)
		if !errors.Is(err, unix.EBUSY) || time.Since(begun) > patience {
			return err
		}
	}
}

// isOver says whether the I/O of the device goes to an end of the migration, or to a loop
// device of that. That the device holds the end is not enough: it does so with a table
// that was loaded and never took effect, too.
func (d *liveDevice) isOver(e *end) (bool, error) {
	info, found, err := d.find()
	if err != nil || !found || !info.ActiveTable {
		return false, err
	}
	table, err := d.control.Table(info.Name)
	if err != nil || len(table) != 1 || table[0].Type != "linear" {
		return false, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(table[0].Params, "%d:%d ", &major, &minor); err != nil {
		return false, fmt.Errorf("the table of %s says %q: %w", info.Name, table[0].Params, err)
	}
	below, is := unix.Mkdev(major, minor), e.base.Info()
	if is.Kind != loopdev.File {
		return below == is.Dev, nil
	}
	backing, err := loopdev.BackingOf(below)
	if errors.Is(err, loopdev.ErrBackingFile) {
		return false, nil
	}
	return backing.Dev == is.Dev && backing.Inode == is.Inode, err
}

// moveTo makes the device a plain part of an end of the migration, which nobody but this
// process has open; of a file, by a loop device, which goes with the device. When it
// returns nil, no I/O goes to what the device was before.
func (d *liveDevice) moveTo(e *end, bytes int64) error {
	info, found, err := d.find()
	if err != nil {
		return err
	}
	if found {
		if over, err := d.isOver(e); err != nil || over {
			return errors.Join(err, d.settle(info))
		}
	}
	below := dm.DeviceNumber(e.base.Info().Dev)
	if e.base.Info().Kind == loopdev.File {
		loop, err := loopdev.AttachFile(e.base.Info().Path)
		if err != nil {
			return err
		}
		defer loop.Close() //nolint:errcheck // it stays for as long as the device does
		below = dm.DeviceNumber(loop.Dev())
	} else if err := e.base.Share(); err != nil {
		return err
	}
	table := linearTable(below, liveSectors(e, bytes))
	if !found {
		return d.create(table)
	}
	return d.exchange(info, table)
}

// remove takes the device away. It fails with EBUSY if somebody uses it.
func (d *liveDevice) remove() error {
	info, found, err := d.find()
	if err != nil || !found {
		return err
	}
	if info.Suspended {
		if err := d.settle(info); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return d.control.RemoveRetry(ctx, info.Name)
}

// linearTable is the first sectors of a device.
func linearTable(below dm.DeviceNumber, sectors uint64) []dm.Target {
	return []dm.Target{{Length: sectors, Type: "linear", Params: below.String() + " 0"}}
}

// liveUnit is the logical block of a live device: that of the destination, where it is
// going to be. A loop device of a file has the smallest one.
func liveUnit(e *end) int64 {
	if e.base.Info().Kind == loopdev.File {
		return dm.SectorBytes
	}
	return max(dm.SectorBytes, e.Info().LogicalBlockBytes)
}

// liveSectors is the size of a live device: the kernel knows whole blocks only.
func liveSectors(e *end, bytes int64) uint64 {
	return uint64(bytes / liveUnit(e) * liveUnit(e) / dm.SectorBytes)
}
