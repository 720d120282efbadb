package thin

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/loopdev"
)

// Bounds of a pool, those of the kernel's and ours.
const (
	// MinPoolBlockBytes is the smallest block of a dm-thin pool, its unit, and what it
	// is if nobody says: small blocks waste the least space.
	MinPoolBlockBytes = 64 << 10
	// MaxPoolBlockBytes is the largest block of a dm-thin pool.
	MaxPoolBlockBytes = 1 << 30
	// MinMetadataBytes is the smallest metadata device of a dm-thin pool.
	MinMetadataBytes = 2 << 20

	maxDataBytes = 1 << 60
	// lowWaterDivisor makes the low water mark of the size of a pool, if nobody says.
	lowWaterDivisor = 16
)

// MapperOptions says how a dm-thin pool is made.
type MapperOptions struct {
	Data, Metadata string // block devices that hold nothing
	BlockBytes     int64  // unit of allocation, a multiple of MinPoolBlockBytes; 0 is MinPoolBlockBytes
	LowWaterBlocks int64  // with no more free blocks than that, the kernel raises an event; 0 is a sixteenth of the pool

	crashPoint func(step string) // as in MapperPool
}

// checkBlockBytes is ErrInvalid for a block size that the kernel would refuse.
func checkBlockBytes(bytes int64) error {
	if bytes >= MinPoolBlockBytes && bytes <= MaxPoolBlockBytes && bytes%MinPoolBlockBytes == 0 {
		return nil
	}
	return &Error{
		Op: "create pool", Object: "block size", State: fmt.Sprintf("%d bytes", bytes), Err: ErrInvalid,
		Hint: fmt.Sprintf("take a multiple of %d bytes, at most %d", MinPoolBlockBytes, MaxPoolBlockBytes),
	}
}

// CreateMapper makes a dm-thin pool on two block devices, which must hold nothing and
// be in nobody's use, makes it active and registers it. It is ErrExists if there is a
// pool on the metadata device, or a pool or a device of that name; ErrNotEmpty,
// ErrInUse or ErrInvalid if the devices will not do. After a crash there is a whole
// pool, to be registered with OpenMapper, or none, and the same call succeeds.
func CreateMapper(registry Registry, name string, o MapperOptions) (*MapperPool, error) {
	const op = "create pool"
	if err := ValidateName(name); err != nil {
		return nil, err
	}
	if o.BlockBytes == 0 {
		o.BlockBytes = MinPoolBlockBytes
	}
	if err := checkBlockBytes(o.BlockBytes); err != nil {
		return nil, err
	}
	if o.LowWaterBlocks < 0 {
		return nil, &Error{Op: op, Object: name, State: fmt.Sprintf("a low water mark of %d blocks", o.LowWaterBlocks), Err: ErrInvalid}
	}
	if o.crashPoint == nil {
		o.crashPoint = func(string) {}
	}
	if err := registry.free(op, name); err != nil {
		return nil, err
	}
	control, err := dm.Open()
	if err != nil {
		return nil, &Error{Op: op, Object: name, Err: err}
	}
	var e mapperEntry
	err = withActivation(func() (err error) {
		e, err = makeMapper(op, control, name, o)
		return err
	})
	if err := errors.Join(err, control.Close()); err != nil {
		return nil, wrap(err, op, name)
	}
	o.crashPoint("made pool")
	if err := registry.addMapper(name, e); err != nil {
		return nil, err
	}
	return openMapper(registry, e)
}

// makeMapper makes the pool on its devices and leaves it active. The caller holds the
// activation lock.
func makeMapper(op string, control *dm.Control, name string, o MapperOptions) (e mapperEntry, err error) {
	if err := removeHalfMade(control, o); err != nil {
		return e, err
	}
	for _, device := range []string{name, catalogDeviceName(name)} {
		if err := nameFree(control, device); err != nil {
			return e, err
		}
	}
	header := mapperHeader{
		uuid: newUUID(), name: name, blockBytes: o.BlockBytes, lowWaterBlocks: o.LowWaterBlocks, nextID: 1, records: 1,
		state: Creating, created: time.Now(),
	}
	data, metadata, err := claimEmpty(op, o, &header)
	if err != nil {
		return e, err
	}
	o.crashPoint("claimed devices")
	devices := mapperDevices{control: control, uuid: header.uuid}
	if err := formatMapper(devices, data, metadata, header, o.crashPoint); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = &Error{Op: op, Object: data.path + ", " + metadata.path, State: "one of them is in use", Err: errors.Join(ErrInUse, err), Hint: "see lsblk"}
		}
		if undo := errors.Join(devices.deactivate(op, name), wipe(op, data, metadata)); undo != nil {
			return e, fmt.Errorf("%w; and what was begun could not be removed: %w", err, undo)
		}
		return e, err
	}
	return mapperEntry{
		Kind: KindMapper, UUID: header.uuid, Data: data.path, Metadata: metadata.path, DataKey: data.key, MetadataKey: metadata.key,
		BlockBytes: header.blockBytes, LowWaterBlocks: header.lowWaterBlocks,
	}, nil
}

// removeHalfMade removes the devices of a pool that a process was making on these
// devices when it died.
func removeHalfMade(control *dm.Control, o MapperOptions) error {
	var data, metadata unix.Stat_t
	_ = unix.Stat(o.Data, &data) // opening them says what is wrong; no pool uses number 0
	_ = unix.Stat(o.Metadata, &metadata)
	_, err := activeOn(control, dm.DeviceNumber(data.Rdev), dm.DeviceNumber(metadata.Rdev))
	return err
}

// formatMapper makes the kernel format the metadata, and writes the catalog.
func formatMapper(devices mapperDevices, data, metadata backing, header mapperHeader, crashPoint func(string)) (err error) {
	control := devices.control
	target := poolTargetOf(data, metadata, header.blockBytes, header.lowWaterBlocks, data.bytes/header.blockBytes)
	pool, err := start(control, header.name, poolUUIDPrefix+header.uuid, target)
	if err != nil {
		return err
	}
	crashPoint("formatted metadata")
	if _, err := control.Message(pool.Name, 0, "create_thin 0"); err != nil {
		return err
	}
	crashPoint("created catalog device")
	info, err := start(control, catalogDeviceName(pool.Name), catalogUUIDPrefix+header.uuid, thinTargetOf(pool, 0, catalogSectors))
	if err != nil {
		return err
	}
	device, err := loopdev.Open(dm.Path(info.Name), loopdev.Options{Write: true, Exclusive: true})
	if err != nil {
		return err
	}
	header.state = Active
	if err := errors.Join(mapperCatalog{device: device}.putHeader(header), device.Close()); err != nil {
		return err
	}
	crashPoint("wrote catalog")
	_, err = control.Message(pool.Name, 0, fmt.Sprintf("set_transaction_id %d %d", unmadeTransaction, unmadeTransaction+1))
	return err
}

// claimEmpty checks the two devices, and writes the header, in state Creating, to the
// start of the data device. There the kernel puts the first block that is written,
// that of the catalog. So a pool that was half made shows until its catalog is whole.
func claimEmpty(op string, o MapperOptions, header *mapperHeader) (data, metadata backing, err error) {
	use := loopdev.Options{Write: true, Exclusive: true}
	dataDevice, data, err := openBacking(op, o.Data, use)
	if err != nil {
		return data, metadata, err
	}
	defer func() { err = errors.Join(err, dataDevice.Close()) }()
	if metadata.path, err = sameDevice(op, o, data); err != nil {
		return data, metadata, err
	}
	metadataDevice, metadata, err := openBacking(op, o.Metadata, use)
	if err != nil {
		return data, metadata, err
	}
	defer func() { err = errors.Join(err, metadataDevice.Close()) }()
	why, err := loopdev.Overlap(dataDevice, metadataDevice)
	if err != nil {
		return data, metadata, err
	}
	if why != "" {
		return data, metadata, &Error{Op: op, Object: data.path + ", " + metadata.path, State: "lie on one another: " + why, Err: ErrInvalid, Hint: "take two devices"}
	}
	if err := checkSizes(op, data, metadata, header); err != nil {
		return data, metadata, err
	}
	if err := checkEmptyDevices(op, dataDevice, metadataDevice, data, metadata); err != nil {
		return data, metadata, err
	}
	record, err := header.encode()
	if err == nil {
		_, err = dataDevice.WriteAt(record, 0)
	}
	return data, metadata, errors.Join(err, dataDevice.Flush())
}

// sameDevice is ErrInvalid if both names lead to one device; opening it a second time
// would merely say that it is in use.
func sameDevice(op string, o MapperOptions, data backing) (string, error) {
	var stat unix.Stat_t
	if err := unix.Stat(o.Metadata, &stat); err != nil || dm.DeviceNumber(stat.Rdev) != data.number {
		return o.Metadata, nil //nolint:nilerr // opening it says what is wrong with it
	}
	return "", &Error{Op: op, Object: data.path, State: "is to be both data and metadata", Err: ErrInvalid, Hint: "take two devices"}
}

// checkSizes is ErrInvalid for devices that no pool fits on. It sets the low water
// mark if nobody has.
func checkSizes(op string, data, metadata backing, header *mapperHeader) error {
	if metadata.bytes < MinMetadataBytes {
		return &Error{
			Op: op, Object: metadata.path, State: fmt.Sprintf("has %d bytes", metadata.bytes), Err: ErrInvalid,
			Hint: fmt.Sprintf("metadata takes %d bytes or more, about 50 for each block of the pool", MinMetadataBytes),
		}
	}
	blocks := data.bytes / header.blockBytes
	const minBlocks = 2 // the catalog, and something else
	if blocks < minBlocks || data.bytes > maxDataBytes {
		return &Error{Op: op, Object: data.path, State: fmt.Sprintf("has %d bytes, that is %d blocks", data.bytes, blocks), Err: ErrInvalid, Hint: "take a larger device, or smaller blocks"}
	}
	if header.lowWaterBlocks == 0 {
		header.lowWaterBlocks = blocks / lowWaterDivisor
	}
	if header.lowWaterBlocks > blocks {
		return &Error{Op: op, Object: header.name, State: fmt.Sprintf("a low water mark of %d of %d blocks", header.lowWaterBlocks, blocks), Err: ErrInvalid, Hint: "give less to --low-water"}
	}
	return nil
}

// checkEmptyDevices is ErrExists if there is a pool on the devices and ErrNotEmpty if
// there is anything else. What an interrupted making left is emptied.
func checkEmptyDevices(op string, dataDevice, metadataDevice *loopdev.Device, data, metadata backing) error {
	s, err := readSuperblock(metadataDevice)
	isPool := err == nil
	if err != nil && !errors.Is(err, errNoSuperblock) && !errors.Is(err, errSuperblock) {
		return err
	}
	first := loopdev.AlignedBuffer(recordBytes)
	if _, err := dataDevice.ReadAt(first, 0); err != nil {
		return err
	}
	h, err := decodeHeader(first)
	// In its first transaction, and with nothing but the catalog's block.
	halfMade := err == nil && h.state == Creating && (!isPool || s.transactionID == unmadeTransaction && s.dataUsedBlocks <= 1)
	switch {
	case halfMade:
		err := errors.Join(clearStart(dataDevice, recordBytes), clearStart(metadataDevice, metadataBlockBytes))
		if err != nil {
			return err
		}
	case isPool:
		return &Error{
			Op: op, Object: metadata.path, State: "holds the metadata of a thin pool", Err: ErrExists,
			Hint: fmt.Sprintf("open it with thinctl pool open --data %s --metadata %s", data.path, metadata.path),
		}
	default:
		if err := refuseData(op, metadataDevice, metadata.path); err != nil {
			return err
		}
	}
	return refuseData(op, dataDevice, data.path)
}

// clearStart makes the first bytes of a device zeros, durably.
func clearStart(device *loopdev.Device, bytes int64) error {
	if _, err := device.WriteAt(make([]byte, bytes), 0); err != nil {
		return err
	}
	return device.Flush()
}

func refuseData(op string, device *loopdev.Device, path string) error {
	holds, err := device.HoldsData()
	if err != nil || !holds {
		return err
	}
	return &Error{
		Op: op, Object: path, State: "holds data", Err: ErrNotEmpty,
		Hint: "take another device; only if that data is of no use: blkdiscard --zeroout " + path,
	}
}
