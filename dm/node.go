package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// UdevRules names rules of udev that are to leave a device alone. They are told with
// each event of the device, so Resume and Rename have to say the same thing each time.
// The values are part of the interface between device-mapper and udev's rules.
type UdevRules uint16

// NoSubsystemRules is for devices that are part of another device: no links but the
// one in /dev/mapper. NoDiskRules keeps udev from probing the content for links like
// /dev/disk/by-uuid, and NoOtherRules keeps everything else from looking at it, such
// as LVM's activation of volumes that it finds.
const (
	NoSubsystemRules UdevRules = 0x0002
	NoDiskRules      UdevRules = 0x0004
	NoOtherRules     UdevRules = 0x0008
)

// primarySource tells udev's rules that an event comes from who manages the device.
// Without it they treat the device as one that is not ready.
const primarySource UdevRules = 0x0040

// udevEvent is what the kernel hands to udev as DM_COOKIE: flags in the upper half. In
// the lower half there could be the key of a semaphore that udev's rules count down.
// This package looks for the link instead, which leaves nothing behind in a crash and
// does not hang where the rules are not installed.
func udevEvent(rules []UdevRules) uint32 {
	flags := primarySource
	for _, r := range rules {
		flags |= r
	}
	return uint32(flags) << 16
}

// Path is the node of the device of that name.
func Path(name string) string { return filepath.Join(mapperDir, name) }

const mapperDir = "/dev/" + unix.DM_DIR

// nodes is where device nodes are and who makes them.
type nodes struct {
	dir      string        // of the nodes
	misc     string        // the kernel's list of drivers without a major number
	socket   string        // there if udev is running
	rules    []string      // patterns of udev's rules for device-mapper
	patience time.Duration // with udev
}

func systemNodes() nodes {
	return nodes{
		dir:    mapperDir,
		misc:   "/proc/misc",
		socket: "/run/udev/control",
		rules: []string{
			"/etc/udev/rules.d/*-dm.rules", "/run/udev/rules.d/*-dm.rules",
			"/usr/lib/udev/rules.d/*-dm.rules", "/lib/udev/rules.d/*-dm.rules",
		},
		patience: 10 * time.Second,
	}
}

// udev says whether udev makes the nodes. Running is not enough: the rules come with
// lvm2 or dmsetup, which need not be there.
func (n nodes) udev() bool {
	if _, err := os.Stat(n.socket); err != nil {
		return false
	}
	for _, pattern := range n.rules {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

// appear returns when the node of the device is there and leads to it. event says
// that udev was told something; if not, or if udev takes too long, the node is made
// here, as libdevmapper does.
func (n nodes) appear(name string, device DeviceNumber, event bool) error {
	path := filepath.Join(n.dir, name)
	there := func() bool { return leadsTo(path, device) }
	if there() || event && n.udev() && eventually(n.patience, there) {
		return nil
	}
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return err
	}
	// Made under another name and moved, so that a wrong node is replaced and nobody
	// ever finds none. CheckName lets no device's name begin with a tilde.
	temporary := filepath.Join(n.dir, fmt.Sprintf("~%016x", rand.Uint64()))
	if err := unix.Mknod(temporary, unix.S_IFBLK|0o600, int(device)); err != nil {
		return &fs.PathError{Op: "mknod", Path: temporary, Err: err}
	}
	if err := os.Rename(temporary, path); err != nil {
		_ = os.Remove(temporary) // the rename's error says more
		return err
	}
	return nil
}

// vanish returns when the node of a device that is gone is gone as well. A node that
// leads to another device belongs to somebody who was quicker, and stays.
func (n nodes) vanish(name string, device DeviceNumber, event bool) error {
	path := filepath.Join(n.dir, name)
	stale := func() bool {
		_, err := os.Stat(path)
		return leadsTo(path, device) || errors.Is(err, fs.ErrNotExist) && exists(path)
	}
	if !stale() || event && n.udev() && eventually(n.patience, func() bool { return !stale() }) {
		return nil
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func leadsTo(path string, device DeviceNumber) bool {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFBLK && DeviceNumber(st.Rdev) == device
}

// eventually polls, because a link can be made in ways that send no notice.
func eventually(patience time.Duration, done func() bool) bool {
	const pause = 2 * time.Millisecond
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(pause) {
		if done() {
			return true
		}
	}
	return done()
}
