package thin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/loopdev"
)

// Backing is a thin volume of the kernel's with its pool, whoever owns them: LVM, this
// program, or somebody with dmsetup. Its methods only look, and may be called
// concurrently, until the Stack that it is of is closed.
type Backing struct {
	Volume      string // path of the thin device; empty if it is about a pool alone
	Pool        string // path of the pool's device
	PoolDevice  uint64
	PoolUUID    string // in device-mapper; it begins with "LVM-" if LVM owns the pool
	BlockBytes  int64  // the unit of allocation
	KeepsFreed  bool   // the pool was told to keep discards from its data device
	data        uint64
	control     *dm.Control
	volumeName  string
	poolControl poolDevice
}

// Status is the pool's state. With commit the pool first commits its metadata, so that
// what was discarded counts as free; it can take as long as a flush.
func (b *Backing) Status(commit bool) (TargetStatus, error) { return b.poolControl.status(commit) }

// Table is the pool's active table. LVM exchanges it when the pool grows.
func (b *Backing) Table() (PoolTable, error) { return b.poolControl.table() }

// MappedBytes is what the volume takes of its pool, shared blocks included.
func (b *Backing) MappedBytes() (int64, error) {
	targets, err := b.control.StatusNoFlush(b.volumeName)
	if err != nil {
		return 0, err
	}
	if len(targets) != 1 || targets[0].Type != thinTarget {
		return 0, fmt.Errorf("device %s is no longer a thin volume", b.Volume)
	}
	s, err := ParseVolumeStatus(targets[0].Params)
	if err == nil && s.Failed {
		err = fmt.Errorf("the pool of %s has failed: %w", b.Volume, unix.EIO)
	}
	return s.MappedBytes, err
}

// EventNumber counts the pool's events: it falls below its low water mark or changes its
// mode. That it grows is none, unless it had run out of space.
func (b *Backing) EventNumber() (uint32, error) {
	info, err := b.control.Info(b.poolControl.name)
	return info.EventNumber, err
}

// WaitEvent waits until the pool has had other events than the number says. It ends
// with the context's error when the context does.
func (b *Backing) WaitEvent(ctx context.Context, after uint32) error {
	_, err := b.control.WaitEventContext(ctx, b.poolControl.name, after)
	return err
}

// Layer is one of the things below a block device that its space comes from: a pool,
// or the backing file of a loop device, which grows as its holes are written to.
type Layer struct {
	Pool *Backing       // nil for a file
	File *loopdev.Place // nil for a pool
	// Exact: the device that was asked for is the volume of this pool itself.
	Exact bool
	// Discards: a discard of the device that the layer above lies on can free space
	// here. What a pool itself passes on is in its status.
	Discards bool
}

// Stack is all layers below some block devices, from the top down.
type Stack struct {
	Layers  []Layer
	control *dm.Control
}

// FindStack looks below block devices, which are those of one file system, or a single
// one. It goes down through partitions, device-mapper devices and loop devices, also
// through a pool to what lies below its data device. Where the kernel has no
// device-mapper, or does not let this user ask it, there are no pools to be found.
func FindStack(devices ...uint64) (*Stack, error) {
	s := &Stack{}
	for _, dev := range devices {
		if err := s.descend(dev, true, 0); err != nil {
			return nil, errors.Join(fmt.Errorf("find out what lies below the device %d:%d: %w", unix.Major(dev), unix.Minor(dev), err), s.Close())
		}
	}
	return s, nil
}

// FindPoolStack is the Stack of what takes space of a pool directly: the pool, and what
// lies below it. name is that of the pool's device in /dev/mapper.
func FindPoolStack(name string) (*Stack, error) {
	s := &Stack{}
	err := s.connect()
	if err == nil && s.control == nil {
		err = dm.ErrNoDeviceMapper
	}
	var info dm.Info
	if err == nil {
		info, err = s.control.Info(name)
	}
	if err == nil {
		err = s.addPool(&Backing{PoolDevice: uint64(info.Device)}, Layer{Exact: true, Discards: true}, 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look at the pool %s: %w", name, err), s.Close())
	}
	return s, nil
}

// Close ends the use of all layers.
func (s *Stack) Close() error {
	var err error
	for _, l := range s.Layers {
		if l.File != nil {
			err = errors.Join(err, l.File.Close())
		}
	}
	s.Layers = nil
	if s.control != nil {
		err = errors.Join(err, s.control.Close())
		s.control = nil
	}
	return err
}

// mostDepth ends a search that runs in circles.
const mostDepth = 64

var errTooDeep = errors.New("devices lie on one another without end")

// descend adds what lies below a device. exact says that the device is the one that
// was asked for.
func (s *Stack) descend(dev uint64, exact bool, depth int) error {
	if depth > mostDepth {
		return errTooDeep
	}
	d, err := loopdev.BlockDeviceAt(dev)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // of a file system that only looks like one on a block device
	}
	if err != nil {
		return err
	}
	if d.Mapper != "" {
		found, err := s.thin(d, exact, depth)
		if found || err != nil {
			return err
		}
	}
	if d.BackingFile != "" {
		return s.addFile(d, depth)
	}
	for _, below := range d.Below {
		if err := s.descend(below, false, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// connect opens the device-mapper if that is possible here.
func (s *Stack) connect() error {
	if s.control != nil {
		return nil
	}
	control, err := dm.Open()
	if errors.Is(err, dm.ErrNoDeviceMapper) || errors.Is(err, dm.ErrTooOld) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	s.control = control
	return err
}

// thin adds the volume and its pool if the device is a thin volume.
func (s *Stack) thin(d loopdev.BlockDevice, exact bool, depth int) (found bool, err error) {
	if err := s.connect(); err != nil || s.control == nil {
		return false, err
	}
	targets, err := s.control.Table(d.Mapper)
	if errors.Is(err, unix.ENXIO) {
		return false, nil // went away since sysfs was read
	}
	if err != nil || len(targets) != 1 || targets[0].Type != thinTarget {
		return false, err
	}
	table, err := ParseVolumeTable(targets[0].Params)
	if err != nil {
		return false, err
	}
	pool, err := deviceIn(table.Pool)
	if err != nil {
		return false, err
	}
	b := &Backing{Volume: d.Title, volumeName: d.Mapper, PoolDevice: pool}
	return true, s.addPool(b, Layer{Exact: exact, Discards: d.DiscardBytes > 0}, depth)
}

// addPool completes b, whose pool's device is known, and goes on below the pool.
func (s *Stack) addPool(b *Backing, l Layer, depth int) error {
	pool, err := loopdev.BlockDeviceAt(b.PoolDevice)
	if err != nil {
		return err
	}
	b.Pool, b.PoolUUID, b.control = pool.Title, pool.UUID, s.control
	b.poolControl = poolDevice{control: s.control, name: pool.Mapper}
	table, err := b.Table()
	if err != nil {
		return err
	}
	b.BlockBytes, b.KeepsFreed = table.BlockBytes, table.NoPassdown || table.IgnoreDiscard
	if b.data, err = deviceIn(table.Data); err != nil {
		return err
	}
	l.Pool = b
	s.Layers = append(s.Layers, l)
	return s.descend(b.data, false, depth+1)
}

// addFile adds the backing file of a loop device, and goes on below its file system.
func (s *Stack) addFile(d loopdev.BlockDevice, depth int) error {
	place, err := loopdev.PlaceAt(d.BackingFile)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // removed this moment, or not for this user to see
	}
	if err != nil {
		return err
	}
	s.Layers = append(s.Layers, Layer{File: place, Discards: d.DiscardBytes > 0})
	for _, below := range place.Devices {
		if err := s.descend(below, false, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// deviceIn reads a device as tables name it: MAJOR:MINOR, or a path.
func deviceIn(word string) (uint64, error) {
	if strings.HasPrefix(word, "/") {
		var st unix.Stat_t
		if err := unix.Stat(word, &st); err != nil {
			return 0, fmt.Errorf("device %s: %w", word, err)
		}
		return st.Rdev, nil
	}
	var major, minor uint32
	var rest string
	if n, _ := fmt.Sscanf(word, "%d:%d%s", &major, &minor, &rest); n != 2 {
		return 0, fmt.Errorf("device %q in a table: %w", word, errStatus)
	}
	return unix.Mkdev(major, minor), nil
}

// Stacked is a Pool whose volumes are devices of the kernel. Stack is what they take
// their space from: the pool, and what lies below it.
type Stacked interface {
	Pool
	Stack() (*Stack, error)
}

var (
	_ Stacked = (*MapperPool)(nil)
	_ Stacked = (*GroupPool)(nil)
)
