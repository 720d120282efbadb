package thin

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"decant/dm"
)

// GroupPool is an open handle of a thin pool of LVM. Whatever changes goes through
// LVM's own commands; of the kernel's devices only the state is read. A change that
// a method returned nil for survives a power loss. Its methods may be called
// concurrently, and others may work with the pool at the same time: LVM locks the
// volume group for each command.
type GroupPool struct {
	lvm     lvm2
	control *dm.Control
	group   string
	pool    logicalVolume // as it was when it was opened

	mu          sync.Mutex
	openVolumes int
	activated   bool            // by this handle
	listed      []logicalVolume // of the group when the handle was opened, until it is used
}

var (
	_ Pool   = (*GroupPool)(nil)
	_ Volume = (*GroupVolume)(nil)
)

// OpenGroup opens the thin pool of a volume group of LVM: the one of that name, or
// the only one if thinPool is empty. It is ErrNotFound if there is no such group or
// no such pool in it, ErrInvalid if one of several has to be named, and ErrNoLVM if
// LVM is not installed.
func OpenGroup(group, thinPool string) (*GroupPool, error) {
	return openGroup(systemLVM(), group, func(volumes []logicalVolume) (logicalVolume, error) {
		return choosePool(group, thinPool, volumes)
	})
}

// OpenGroupFor opens the thin pool of a volume group for one volume: the pool that it
// lies in, whatever thinPool says, or where there is no such volume the pool that
// OpenGroup opens. It is ErrInvalid if the volume is no thin one.
func OpenGroupFor(group, volume, thinPool string) (*GroupPool, error) {
	return openGroup(systemLVM(), group, func(volumes []logicalVolume) (logicalVolume, error) {
		v, err := findThin("open volume", group, volume, volumes)
		switch {
		case errors.Is(err, ErrNotFound):
			return choosePool(group, thinPool, volumes)
		case err != nil:
			return v, err
		}
		return choosePool(group, v.pool, volumes)
	})
}

func openGroup(lvm lvm2, group string, choose func([]logicalVolume) (logicalVolume, error)) (*GroupPool, error) {
	volumes, err := lvm.volumes(group)
	if err != nil {
		return nil, err
	}
	pool, err := choose(volumes)
	if err != nil {
		return nil, err
	}
	control, err := dm.Open()
	if err != nil {
		return nil, &Error{Op: "open pool", Object: pool.fullName(), Err: err}
	}
	return &GroupPool{lvm: lvm, control: control, group: group, pool: pool, listed: volumes}, nil
}

// choosePool is the pool of that name, or the only one.
func choosePool(group, name string, volumes []logicalVolume) (logicalVolume, error) {
	const op = "choose a thin pool"
	var pools []logicalVolume
	var names []string
	for _, l := range volumes {
		if l.segment == thinPoolSegment {
			pools = append(pools, l)
			names = append(names, l.name)
		}
	}
	has := "the group has the thin pools " + strings.Join(names, ", ")
	switch i := slices.Index(names, name); {
	case len(pools) == 0:
		return logicalVolume{}, &Error{
			Op: op, Object: group, State: "the group has no thin pool", Err: ErrNotFound,
			Hint: "make one, for example: lvcreate --type thin-pool --size SIZE --name pool " + group,
		}
	case name == "" && len(pools) > 1:
		return logicalVolume{}, &Error{Op: op, Object: group, State: has, Err: ErrInvalid, Hint: "say which one with --thin-pool"}
	case name == "":
		return pools[0], nil
	case i < 0:
		return logicalVolume{}, &Error{Op: op, Object: group + "/" + name, State: "there is no such thin pool; " + has, Err: ErrNotFound, Hint: "name one of these with --thin-pool"}
	default:
		return pools[i], nil
	}
}

// findThin is a volume by its name, which must be a thin one.
func findThin(op, group, name string, volumes []logicalVolume) (logicalVolume, error) {
	if err := ValidateGroupName(name); err != nil {
		return logicalVolume{}, err
	}
	object := group + "/" + name
	i := slices.IndexFunc(volumes, func(l logicalVolume) bool { return l.name == name })
	if i < 0 {
		return logicalVolume{}, &Error{Op: op, Object: object, State: "there is no such volume", Err: ErrNotFound, Hint: "see lvs " + group}
	}
	switch l := volumes[i]; l.segment {
	case thinSegment:
		return l, nil
	case thinPoolSegment:
		return l, &Error{Op: op, Object: object, State: "is a thin pool and no volume", Err: ErrInvalid, Hint: "name a volume; see lvs " + group}
	default:
		return l, &Error{
			Op: op, Object: object, State: "is no thin volume but " + l.segment, Err: ErrInvalid,
			Hint: "use it as a block device: /dev/" + object,
		}
	}
}

// Close ends the use of the handle. A pool that was inactive before is so again, if
// nobody uses it. It is ErrInUse, and the handle stays open, while volumes are open
// through it.
func (p *GroupPool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.openVolumes > 0 {
		return &Error{
			Op: "close pool", Object: p.pool.fullName(), State: fmt.Sprintf("%d of its volumes are open", p.openVolumes), Err: ErrInUse,
			Hint: "close them first",
		}
	}
	if p.activated {
		// An active pool harms nobody, and somebody may have begun to use it.
		_, _ = p.lvm.run("lvchange", "--activate", "n", "--", p.pool.fullName())
	}
	return p.control.Close()
}

// Name is the name of the volume group.
func (p *GroupPool) Name() string { return p.group }

// ThinPool is the name of the pool in its volume group.
func (p *GroupPool) ThinPool() string { return p.pool.name }

// device is the pool's device in the kernel. A pool that is inactive is activated
// for the time of the handle.
func (p *GroupPool) device() (poolDevice, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	device, err := p.activeDevice()
	if !errors.Is(err, unix.ENXIO) {
		return device, err
	}
	if _, err := p.lvm.run("lvchange", "--activate", "y", "--", p.pool.fullName()); err != nil {
		return poolDevice{}, err
	}
	p.activated = true
	return p.activeDevice()
}

// volumes is all volumes of the group. The first time it is those that were there when
// the handle was opened: whatever is done with one of them goes by its UUID, and ends
// in an error if it is not there any more.
func (p *GroupPool) volumes() ([]logicalVolume, error) {
	p.mu.Lock()
	listed := p.listed
	p.listed = nil
	p.mu.Unlock()
	if listed != nil {
		return listed, nil
	}
	return p.lvm.volumes(p.group)
}

// activeDevice is ENXIO if the pool is inactive.
func (p *GroupPool) activeDevice() (poolDevice, error) {
	info, err := p.control.InfoByUUID(p.pool.deviceUUID() + "-tpool")
	return poolDevice{control: p.control, name: info.Name}, err
}

// Stack is what the pool's volumes take their space from.
func (p *GroupPool) Stack() (*Stack, error) {
	device, err := p.device()
	if err != nil {
		return nil, wrap(err, "look at pool", p.pool.fullName())
	}
	return FindPoolStack(device.name)
}

// Info reads the state of the pool.
func (p *GroupPool) Info() (PoolInfo, error) {
	info, err := p.info()
	return info, wrap(err, "show pool", p.pool.fullName())
}

func (p *GroupPool) info() (PoolInfo, error) {
	volumes, err := p.volumes()
	if err != nil {
		return PoolInfo{}, err
	}
	device, err := p.device()
	if err != nil {
		return PoolInfo{}, err
	}
	s, err := device.currentStatus()
	if err != nil {
		return PoolInfo{}, err
	}
	table, err := device.table()
	if err != nil {
		return PoolInfo{}, err
	}
	return PoolInfo{
		Name: p.group, Kind: KindGroup, BlockBytes: table.BlockBytes,
		DataBlocks: s.DataBlocks, DataUsedBlocks: s.DataUsedBlocks,
		MetadataBlocks: s.MetadataBlocks, MetadataUsedBlocks: s.MetadataUsedBlocks,
		TransactionID: s.TransactionID, Mode: s.Mode, Volumes: len(p.members(volumes)),
		UUID: p.pool.deviceUUID(), SizeBytes: s.DataBlocks * table.BlockBytes,
	}, nil
}

// members are the volumes of the pool.
func (p *GroupPool) members(volumes []logicalVolume) []logicalVolume {
	var members []logicalVolume
	for _, l := range volumes {
		if l.segment == thinSegment && l.poolUUID == p.pool.uuid {
			members = append(members, l)
		}
	}
	return members
}

// FreeBytes is what could be written into unmapped parts of the pool's volumes now.
func (p *GroupPool) FreeBytes() (int64, error) {
	device, err := p.device()
	if err != nil {
		return 0, wrap(err, "count free space", p.pool.fullName())
	}
	s, err := device.currentStatus()
	return s.FreeBytes(p.pool.chunkBytes), wrap(err, "count free space", p.pool.fullName())
}

// Volumes is all volumes of the pool by name.
func (p *GroupPool) Volumes() ([]VolumeInfo, error) {
	volumes, err := p.volumes()
	if err != nil {
		return nil, err
	}
	var infos []VolumeInfo
	for _, l := range p.members(volumes) {
		info, err := p.describe(l)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Volume is one volume of the pool. It is ErrNotFound if there is none of that name
// in the group, and ErrInvalid if it is no volume of this pool.
func (p *GroupPool) Volume(name string) (VolumeInfo, error) {
	l, err := p.member("show volume", name)
	if err != nil {
		return VolumeInfo{}, err
	}
	return p.describe(l)
}

// member is a volume of this pool by its name.
func (p *GroupPool) member(op, name string) (logicalVolume, error) {
	volumes, err := p.volumes()
	if err != nil {
		return logicalVolume{}, err
	}
	l, err := findThin(op, p.group, name, volumes)
	if err == nil && l.poolUUID != p.pool.uuid {
		err = &Error{
			Op: op, Object: l.fullName(), State: "is not in the thin pool " + p.pool.name + " but in " + l.pool, Err: ErrInvalid,
			Hint: "name that pool, or another volume",
		}
	}
	return l, err
}

// describe is what there is to know of a volume. What an inactive one has mapped is
// not known without activating it, and counts as 0.
func (p *GroupPool) describe(l logicalVolume) (VolumeInfo, error) {
	info := VolumeInfo{
		Pool: p.group, Name: l.name, ID: l.thinID, ThinID: l.thinID, Origin: l.origin, SizeBytes: l.bytes,
		State: Active, Created: l.created, Path: "/dev/" + l.fullName(),
	}
	device, err := p.control.InfoByUUID(l.deviceUUID())
	if errors.Is(err, unix.ENXIO) {
		return info, nil
	}
	var s VolumeStatus
	if err == nil {
		s, err = volumeStatus(p.control, device.Name)
	}
	info.MappedBytes = s.MappedBytes
	return info, wrap(err, "show volume", l.fullName())
}

// Destroy is refused: a pool of LVM is LVM's to remove.
func (p *GroupPool) Destroy() error {
	return &Error{
		Op: "destroy pool", Object: p.pool.fullName(), State: "belongs to LVM", Err: ErrInvalid,
		Hint: "remove it with lvremove",
	}
}

// FindGroup is nil if LVM has a volume group of that name. Otherwise it is an
// ErrNotFound that says why not in LVM's words, ErrInvalid if there can be no such
// name, or ErrNoLVM if LVM is not installed.
func FindGroup(group string) error {
	_, err := systemLVM().volumes(group)
	return err
}
