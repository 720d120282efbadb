package dm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Create makes a device without a table, and so without a size or a node. It fails
// with EBUSY if the name or the UUID is taken. An empty UUID means none.
func (c *Control) Create(name, uuid string) (Info, error) {
	if err := cmp.Or(CheckName(name), CheckUUID(uuid)); err != nil {
		return Info{}, failure("create", name, err)
	}
	a, err := c.call(&request{command: unix.DM_DEV_CREATE, name: name, uuid: uuid})
	if err != nil {
		return Info{}, failure("create", name, err)
	}
	return a.info(), nil
}

// Load puts a table into the device's inactive slot, in place of one that is there.
// The targets' constructors run now, so nearly everything that can be wrong with a
// table is found now, while the active table goes on working.
func (c *Control) Load(name string, table []Target) error {
	return c.load(name, table, 0)
}

// LoadReadOnly is Load of a table that makes the device read-only.
func (c *Control) LoadReadOnly(name string, table []Target) error {
	return c.load(name, table, unix.DM_READONLY_FLAG)
}

func (c *Control) load(name string, table []Target, flags uint32) error {
	if err := cmp.Or(checkExisting(name), checkTable(table)); err != nil {
		return failure("load", name, err)
	}
	_, err := c.call(&request{
		command: unix.DM_TABLE_LOAD, name: name, flags: flags,
		targets: uint32(len(table)), data: encodeTable(table),
	})
	return failure("load", name, err)
}

// checkTable finds what the kernel would answer with a bare EINVAL.
func checkTable(table []Target) error {
	if len(table) == 0 {
		return invalid("the table has no target")
	}
	end := uint64(0)
	for i, t := range table {
		if err := cmp.Or(checkType(t.Type), checkText("parameters", t.Params)); err != nil {
			return err
		}
		if t.Start != end || t.Length == 0 || t.Start+t.Length < t.Start {
			return invalid("target %d has %d sectors from sector %d, the ones before it end at %d", i, t.Length, t.Start, end)
		}
		end += t.Length
	}
	return nil
}

// Clear empties the device's inactive slot.
func (c *Control) Clear(name string) error {
	if err := checkExisting(name); err != nil {
		return failure("clear", name, err)
	}
	_, err := c.call(&request{command: unix.DM_TABLE_CLEAR, name: name})
	return failure("clear", name, err)
}

// SuspendOptions says what Suspend leaves out.
type SuspendOptions struct {
	// NoFlush keeps I/O in flight queued instead of completing it first; what the
	// device has taken and not written goes to the table that comes next. It
	// implies NoLockFS, and it is the way to suspend a device that cannot complete
	// its I/O, like a thin pool without space.
	NoFlush bool
	// NoLockFS does not freeze a file system on the device. A snapshot taken of
	// it then is like after a crash.
	NoLockFS bool
}

// Suspend stops I/O: when it returns, all I/O from before has ended (without
// NoFlush) and all further I/O waits for Resume. Suspending a device that is
// suspended already does nothing.
func (c *Control) Suspend(name string, o SuspendOptions) error {
	if err := checkExisting(name); err != nil {
		return failure("suspend", name, err)
	}
	flags := uint32(unix.DM_SUSPEND_FLAG)
	if o.NoFlush {
		flags |= unix.DM_NOFLUSH_FLAG | unix.DM_SKIP_LOCKFS_FLAG
	}
	if o.NoLockFS {
		flags |= unix.DM_SKIP_LOCKFS_FLAG
	}
	_, err := c.call(&request{command: unix.DM_DEV_SUSPEND, name: name, flags: flags})
	return failure("suspend", name, err)
}

// Resume makes the table in the inactive slot the active one, if there is one, and
// lets I/O go on. A device that is not suspended is suspended for the exchange, with
// flush and frozen file system. On return /dev/mapper/NAME leads to the device. It
// fails with EINVAL if the device has no table in either slot.
func (c *Control) Resume(name string, rules ...UdevRules) error {
	return c.resume(name, 0, rules)
}

// ResumeNoFlush is Resume, where the exchange of tables suspends with NoFlush.
func (c *Control) ResumeNoFlush(name string, rules ...UdevRules) error {
	return c.resume(name, unix.DM_NOFLUSH_FLAG|unix.DM_SKIP_LOCKFS_FLAG, rules)
}

func (c *Control) resume(name string, flags uint32, rules []UdevRules) error {
	if err := checkExisting(name); err != nil {
		return failure("resume", name, err)
	}
	a, err := c.call(&request{command: unix.DM_DEV_SUSPEND, name: name, flags: flags, event: udevEvent(rules)})
	if err != nil {
		return failure("resume", name, err)
	}
	if !a.has(unix.DM_ACTIVE_PRESENT_FLAG) { // the kernel minds only if it was suspended
		return failure("resume", name, fmt.Errorf("the device has no table: %w", unix.EINVAL))
	}
	return failure("make node of", name, c.nodes.appear(name, DeviceNumber(a.header.Dev), a.has(unix.DM_UEVENT_GENERATED_FLAG)))
}

// Remove takes the device away, with its tables and its node. It fails with EBUSY if
// the device is open, mounted or used by another device. Where udev runs, it has each
// new device open for a moment, and RemoveRetry is the one to use.
func (c *Control) Remove(name string) error {
	_, err := c.remove("remove", name, 0)
	return err
}

// RemoveDeferred is Remove for a device that may be open: then the kernel removes it
// when its last user closes it, and deferred is true. Its node goes at once.
func (c *Control) RemoveDeferred(name string) (deferred bool, err error) {
	return c.remove("remove", name, unix.DM_DEFERRED_REMOVE)
}

// RemoveRetry is Remove that tries again while the device is busy, until the context
// ends. Programs that look at every new device hold one for a moment.
func (c *Control) RemoveRetry(ctx context.Context, name string) error {
	const pause = 50 * time.Millisecond
	for {
		err := c.Remove(name)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func (c *Control) remove(op, name string, flags uint32) (deferred bool, err error) {
	if err := checkExisting(name); err != nil {
		return false, failure(op, name, err)
	}
	info, err := c.info(op, name, "") // its number is needed to find its node
	if err != nil {
		return false, err
	}
	a, err := c.call(&request{command: unix.DM_DEV_REMOVE, name: name, flags: flags, event: udevEvent(nil)})
	if err != nil {
		return false, failure(op, name, err)
	}
	deferred = a.has(unix.DM_DEFERRED_REMOVE)
	err = c.nodes.vanish(name, info.Device, a.has(unix.DM_UEVENT_GENERATED_FLAG))
	return deferred, failure("remove node of", name, err)
}

// Rename gives the device another name; its users do not notice. It fails with EBUSY
// if the name is taken. On return the node has the new name only.
func (c *Control) Rename(name, newName string, rules ...UdevRules) error {
	if err := cmp.Or(checkExisting(name), CheckName(newName)); err != nil {
		return failure("rename", name, err)
	}
	a, err := c.call(&request{command: unix.DM_DEV_RENAME, name: name, event: udevEvent(rules), data: cString(newName)})
	if err != nil {
		return failure("rename", name, err)
	}
	event := a.has(unix.DM_UEVENT_GENERATED_FLAG)
	info, err := c.Info(newName)
	if err != nil {
		return err
	}
	if info.ActiveTable {
		if err := c.nodes.appear(newName, info.Device, event); err != nil {
			return failure("make node of", newName, err)
		}
	}
	return failure("remove node of", name, c.nodes.vanish(name, info.Device, event))
}

// Message sends one to the target that serves the sector of the active table, 0
// where there is one target only. The answer is empty unless the target has something
// to say. A message is sent once; an answer beyond 16 KiB is ErrAnswerTooLong, and
// the message has had its effect. Errors do not repeat the message, it may be secret.
func (c *Control) Message(name string, sector uint64, message string) (string, error) {
	if err := cmp.Or(checkExisting(name), checkText("message", message)); err != nil {
		return "", failure("message", name, err)
	}
	r := request{command: unix.DM_TARGET_MSG, name: name, data: encodeMessage(sector, message)}
	buffer := r.encode(messageAnswerBytes)
	if err := c.ioctl(r.command, buffer); err != nil {
		return "", failure("message to", name, err)
	}
	a, err := decodeAnswer(buffer)
	if err != nil {
		return "", failure("message to", name, err)
	}
	if a.has(unix.DM_BUFFER_FULL_FLAG) {
		return "", failure("message to", name, ErrAnswerTooLong)
	}
	if !a.has(unix.DM_DATA_OUT_FLAG) {
		return "", nil
	}
	said, ok := terminated(a.data)
	if !ok {
		return "", failure("message to", name, malformed("its text has no end"))
	}
	return said, nil
}
