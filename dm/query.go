package dm

import (
	"cmp"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// SectorBytes is the unit of tables and messages, whatever the devices' own sectors.
const SectorBytes = 512

// DeviceNumber is a block device's number, in the kernel's form for user space.
type DeviceNumber uint64

// Major is the driver's part.
func (d DeviceNumber) Major() uint32 { return unix.Major(uint64(d)) }

// Minor is the device's part.
func (d DeviceNumber) Minor() uint32 { return unix.Minor(uint64(d)) }

// String is like "253:3", a form that tables take for a device.
func (d DeviceNumber) String() string { return fmt.Sprintf("%d:%d", d.Major(), d.Minor()) }

// Target is a line of a table: sectors Start to Start+Length of the device are served
// by a target of this type with these parameters. In a status, Params is the status.
type Target struct {
	Start, Length uint64 // sectors of 512 bytes
	Type, Params  string
}

// Info is the state of a device at the time of the call.
type Info struct {
	Name, UUID     string // the UUID is empty if the device has none
	Device         DeviceNumber
	OpenCount      int    // how often the device is open, by mounts and other devices too
	EventNumber    uint32 // events since the device was made; WaitEvent starts from it
	TargetCount    int    // of the active table
	Suspended      bool
	ReadOnly       bool
	ActiveTable    bool // the device can do I/O unless it is suspended
	InactiveTable  bool // a table is loaded that Resume will make the active one
	DeferredRemove bool // the device goes when its last user does
}

// Entry is a device in a List.
type Entry struct {
	Name, UUID  string // the UUID is empty if the device has none
	Device      DeviceNumber
	EventNumber uint32
}

// TargetVersion is a target type that the kernel has, and its version.
type TargetVersion struct {
	Type    string
	Version Version
}

// Info is the state of the device of that name, ENXIO if there is none.
func (c *Control) Info(name string) (Info, error) {
	if err := checkExisting(name); err != nil {
		return Info{}, failure("info", name, err)
	}
	return c.info("info", name, "")
}

// InfoByUUID is the state of the device with that UUID, ENXIO if there is none. A
// UUID stays with a device for all its life; its name can be changed by anyone.
func (c *Control) InfoByUUID(uuid string) (Info, error) {
	if uuid == "" {
		return Info{}, failure("info", "", invalid("the UUID is empty"))
	}
	return c.info("info", "", uuid)
}

func (c *Control) info(op, name, uuid string) (Info, error) {
	if err := cmp.Or(checkKnown(name), CheckUUID(uuid)); err != nil {
		return Info{}, failure(op, name+uuid, err)
	}
	a, err := c.call(&request{command: unix.DM_DEV_STATUS, name: name, uuid: uuid})
	if err != nil {
		return Info{}, failure(op, name+uuid, err)
	}
	return a.info(), nil
}

// checkKnown is for the name of a device that exists, which may be one that this
// package would not have given: it must only fit.
func checkKnown(name string) error {
	if len(name) > MaxNameBytes {
		return invalid("the name has %d bytes, %d are possible", len(name), MaxNameBytes)
	}
	return checkText("name", name)
}

// List is all devices, in no particular order.
func (c *Control) List() ([]Entry, error) {
	a, err := c.query(&request{command: unix.DM_LIST_DEVICES, flags: unix.DM_UUID_FLAG})
	if err != nil {
		return nil, failure("list", "", err)
	}
	list, known, err := a.decodeList(c.version.AtLeast(withUUIDs))
	if err != nil {
		return nil, failure("list", "", err)
	}
	complete := list[:0]
	for i, entry := range list {
		if !known[i] {
			info, err := c.Info(entry.Name)
			if errors.Is(err, unix.ENXIO) {
				continue // removed since it was listed
			} else if err != nil {
				return nil, err
			}
			entry.UUID = info.UUID
		}
		complete = append(complete, entry)
	}
	return complete, nil
}

// Table is the active table, empty if the device has none.
func (c *Control) Table(name string) ([]Target, error) {
	return c.table("table", name, unix.DM_STATUS_TABLE_FLAG|unix.DM_NOFLUSH_FLAG)
}

// InactiveTable is the table that Resume will make the active one, empty if there is
// none.
func (c *Control) InactiveTable(name string) ([]Target, error) {
	return c.table("inactive table", name, unix.DM_STATUS_TABLE_FLAG|unix.DM_NOFLUSH_FLAG|unix.DM_QUERY_INACTIVE_TABLE_FLAG)
}

// Status is the active table with each target's status for its parameters. Targets
// bring themselves up to date for it: a thin pool commits its metadata. It waits for
// that if the device is suspended or slow.
func (c *Control) Status(name string) ([]Target, error) {
	return c.table("status", name, 0)
}

// StatusNoFlush is Status without any commit by a target; numbers may be old by as
// much as the targets have not written down.
func (c *Control) StatusNoFlush(name string) ([]Target, error) {
	return c.table("status", name, unix.DM_NOFLUSH_FLAG)
}

// InactiveStatus is StatusNoFlush of the table in the inactive slot, empty if there is
// none. It is for targets that have something to say before they serve anybody.
func (c *Control) InactiveStatus(name string) ([]Target, error) {
	return c.table("inactive status", name, unix.DM_NOFLUSH_FLAG|unix.DM_QUERY_INACTIVE_TABLE_FLAG)
}

func (c *Control) table(op, name string, flags uint32) ([]Target, error) {
	if err := checkExisting(name); err != nil {
		return nil, failure(op, name, err)
	}
	a, err := c.query(&request{command: unix.DM_TABLE_STATUS, name: name, flags: flags})
	if err != nil {
		return nil, failure(op, name, err)
	}
	table, err := a.decodeTable()
	return table, failure(op, name, err)
}

func checkExisting(name string) error {
	if name == "" {
		return invalid("the name is empty")
	}
	return checkKnown(name)
}

// Deps is the devices that the active table uses, each once, empty without a table.
func (c *Control) Deps(name string) ([]DeviceNumber, error) {
	if err := checkExisting(name); err != nil {
		return nil, failure("deps", name, err)
	}
	a, err := c.query(&request{command: unix.DM_TABLE_DEPS, name: name})
	if err != nil {
		return nil, failure("deps", name, err)
	}
	deps, err := a.decodeDeps()
	return deps, failure("deps", name, err)
}

// TargetVersions is the target types that are in the kernel now. Types in modules
// that are not loaded are missing; see TargetVersion.
func (c *Control) TargetVersions() ([]TargetVersion, error) {
	a, err := c.query(&request{command: unix.DM_LIST_VERSIONS})
	if err != nil {
		return nil, failure("list target types", "", err)
	}
	list, err := a.decodeVersions()
	return list, failure("list target types", "", err)
}

// TargetVersion is the version of one target type. The kernel loads its module if it
// has to. EINVAL means that there is no such type, ENOTTY that the kernel is older
// than 5.4 and TargetVersions has to do.
func (c *Control) TargetVersion(targetType string) (Version, error) {
	const op = "version of target type"
	if err := checkType(targetType); err != nil {
		return Version{}, failure(op, targetType, err)
	}
	a, err := c.query(&request{command: unix.DM_GET_TARGET_VERSION, name: targetType})
	if err != nil {
		return Version{}, failure(op, targetType, err)
	}
	list, err := a.decodeVersions()
	if err == nil && len(list) == 0 {
		err = malformed("no version")
	}
	if err != nil {
		return Version{}, failure(op, targetType, err)
	}
	return list[0].Version, nil
}
