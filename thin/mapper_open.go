package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/loopdev"
)

// backing is a device that a pool is made of.
type backing struct {
	path   string // absolute, as the user gave it
	number dm.DeviceNumber
	bytes  int64 // at the moment
	key    string
}

// openBacking opens a device to be part of a pool, and describes it.
func openBacking(op, path string, o loopdev.Options) (*loopdev.Device, backing, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, backing{}, &Error{Op: op, Object: path, Err: err}
	}
	device, err := loopdev.Open(path, o)
	if err != nil {
		return nil, backing{}, backingRefusal(op, path, err)
	}
	b := backing{path: path, key: device.Info().Key}
	if device.Info().Kind == loopdev.File {
		err = &Error{Op: op, Object: path, State: "is a regular file", Err: ErrInvalid, Hint: "attach it with losetup, or make a directory pool with --dir"}
	}
	var stat unix.Stat_t
	if err == nil {
		err = unix.Stat(path, &stat)
	}
	if err == nil {
		b.number = dm.DeviceNumber(stat.Rdev)
		b.bytes, err = blockBytesOf(b.number)
	}
	if err != nil {
		return nil, b, errors.Join(wrap(err, op, path), device.Close())
	}
	return device, b, nil
}

// backingRefusal says why a device cannot be part of a pool.
func backingRefusal(op, path string, err error) error {
	switch {
	case errors.Is(err, loopdev.ErrInUse):
		return &Error{Op: op, Object: path, State: err.Error(), Err: errors.Join(ErrInUse, err), Hint: "unmount it, or end what uses it; see lsblk"}
	case errors.Is(err, loopdev.ErrWrongType):
		return &Error{Op: op, Object: path, State: err.Error(), Err: errors.Join(ErrInvalid, err), Hint: "name a block device"}
	case errors.Is(err, os.ErrNotExist):
		return &Error{Op: op, Object: path, State: "does not exist", Err: errors.Join(ErrNotFound, err), Hint: "see lsblk"}
	}
	return &Error{Op: op, Object: path, Err: err}
}

// blockBytesOf is the size of a block device now.
func blockBytesOf(number dm.DeviceNumber) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%s/size", number))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return sectors * dm.SectorBytes, err
}

// canPassDiscards says whether discards of whole blocks of the pool can be handed on
// to the device. The kernel would find out as well, and complain in its log.
func canPassDiscards(number dm.DeviceNumber, blockBytes int64) bool {
	for _, queue := range []string{"queue", "../queue"} { // a partition has that of its disk
		text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%s/%s/discard_max_bytes", number, queue))
		if err != nil {
			continue
		}
		most, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return err == nil && most >= blockBytes
	}
	return false
}

// poolTargetOf is the table of a pool of this program. A full pool refuses writes
// instead of letting them wait, because a process that waits there cannot be killed,
// and blocks are zeroed before they are used, so that nobody reads what was
// another's.
func poolTargetOf(data, metadata backing, blockBytes, lowWaterBlocks, blocks int64) dm.Target {
	table := PoolTable{
		Metadata: metadata.number.String(), Data: data.number.String(), BlockBytes: blockBytes, LowWaterBlocks: lowWaterBlocks,
		NoPassdown: !canPassDiscards(data.number, blockBytes), ErrorIfNoSpace: true,
	}
	return dm.Target{Length: uint64(blocks * blockBytes / dm.SectorBytes), Type: poolTarget, Params: table.String()}
}

// found is a pool that was recognized on its devices.
type found struct {
	data, metadata backing
	superblock     superblock
	header         mapperHeader
}

// recognize finds out which pool lies on two devices that no active pool uses. It
// changes nothing on them. The caller holds the activation lock.
func recognize(op string, control *dm.Control, dataPath, metadataPath string) (f found, err error) {
	dataDevice, data, err := openBacking(op, dataPath, loopdev.Options{})
	if err != nil {
		return f, err
	}
	metadataDevice, metadata, err := openBacking(op, metadataPath, loopdev.Options{})
	if err != nil {
		return f, errors.Join(err, dataDevice.Close())
	}
	f = found{data: data, metadata: metadata}
	f.superblock, err = readSuperblock(metadataDevice)
	if err := errors.Join(err, dataDevice.Close(), metadataDevice.Close()); err != nil {
		hint := "name the metadata device of a pool; make a pool with thinctl pool create"
		if errors.Is(err, errSuperblock) {
			hint = "see thin_check and thin_repair"
		}
		return f, &Error{Op: op, Object: metadata.path, State: err.Error(), Err: errors.Join(ErrForeign, err), Hint: hint}
	}
	if needed := f.superblock.dataBlocks * f.superblock.blockBytes; data.bytes < needed {
		return f, &Error{
			Op: op, Object: data.path, State: fmt.Sprintf("has %d bytes, and the pool has blocks up to byte %d", data.bytes, needed), Err: ErrForeign,
			Hint: "name the data device of this pool, or give it its size back",
		}
	}
	f.header, err = probe(control, f)
	if errors.Is(err, unix.EBUSY) {
		err = &Error{Op: op, Object: data.path + ", " + metadata.path, State: "one of them is mounted, or part of another device", Err: errors.Join(ErrInUse, err), Hint: "see lsblk"}
	}
	return f, wrap(err, op, data.path+", "+metadata.path)
}

// probe reads the record of the pool by a pool device that changes nothing, and that
// is gone when it returns.
func probe(control *dm.Control, f found) (h mapperHeader, err error) {
	const poolName, catalogName = "decant:probe", "decant:probe:catalog"
	if err := endProbe(control); err != nil { // that of a process that has died
		return h, err
	}
	defer func() { err = errors.Join(err, endProbe(control)) }()
	target := poolTargetOf(f.data, f.metadata, f.superblock.blockBytes, 0, f.superblock.dataBlocks)
	table, err := ParsePoolTable(target.Params)
	if err != nil {
		return h, err
	}
	table.ReadOnly = true
	target.Params = table.String()
	pool, err := start(control, poolName, probeUUIDPrefix+"pool", target)
	if err != nil {
		return h, err
	}
	catalog, err := start(control, catalogName, probeUUIDPrefix+"catalog", thinTargetOf(pool, 0, catalogSectors))
	if errors.Is(err, unix.ENODATA) {
		return h, fmt.Errorf("%w: the pool has no catalog, another program has made it", ErrForeign)
	}
	if err != nil {
		return h, err
	}
	device, err := loopdev.Open(dm.Path(catalog.Name), loopdev.Options{})
	if err != nil {
		return h, err
	}
	h, err = mapperCatalog{device: device}.header()
	if errors.Is(err, errRecord) {
		err = fmt.Errorf("%w: its catalog cannot be read; are these the two devices of one pool? %w", ErrForeign, err)
	}
	return h, errors.Join(err, device.Close())
}

// endProbe removes the devices of a probe, the catalog first.
func endProbe(control *dm.Control) error {
	for _, name := range []string{"catalog", "pool"} {
		info, there, err := find(control, probeUUIDPrefix+name)
		if err == nil && there {
			err = stop(control, info.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// activeOn is the UUID of the active pool of this program that uses both devices, or
// empty. One that a crash has left while it was being made is removed first. The
// caller holds the activation lock, under which pools are made.
func activeOn(control *dm.Control, data, metadata dm.DeviceNumber) (string, error) {
	pools, err := ours(control, poolUUIDPrefix)
	if err != nil {
		return "", err
	}
	for _, info := range pools {
		deps, err := control.Deps(info.Name)
		if err != nil {
			return "", err
		}
		if !slices.Contains(deps, data) || !slices.Contains(deps, metadata) {
			continue
		}
		uuid := strings.TrimPrefix(info.UUID, poolUUIDPrefix)
		status, err := poolDevice{control: control, name: info.Name}.status(false)
		if err == nil && status.Mode != Failed && status.TransactionID == unmadeTransaction {
			return "", mapperDevices{control: control, uuid: uuid}.deactivate("remove what was left of pool", info.Name)
		}
		return uuid, err
	}
	return "", nil
}

// unmadeTransaction is the transaction id of a pool until it is made completely.
const unmadeTransaction = 0
