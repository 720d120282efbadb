package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// node is a block device as sysfs shows it.
type node struct {
	dev  uint64
	dir  string // in /sys/devices
	name string // of the kernel: loop0, dm-3, sda1
}

func nodeOf(dev uint64) (node, error) {
	// A link into /sys/devices, where there are no more of them on the way.
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev)))
	if err != nil {
		return node{}, bare(err)
	}
	dir := filepath.Join("/sys/dev/block", link)
	return node{dev: dev, dir: dir, name: strings.ReplaceAll(filepath.Base(dir), "!", "/")}, nil
}

// nodeAt is the device whose sysfs directory, or a link to it, is at dir.
func nodeAt(dir string) (node, error) {
	text, err := readKernelFile(filepath.Join(dir, "dev"))
	if err != nil {
		return node{}, bare(err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
		return node{}, fmt.Errorf("%s/dev: %w", dir, err)
	}
	return nodeOf(unix.Mkdev(major, minor))
}

// path is where the device node is expected.
func (n node) path() string { return "/dev/" + n.name }

// attr is an attribute, empty if the device has no such one.
func (n node) attr(name string) string {
	text, err := readKernelFile(filepath.Join(n.dir, name))
	if err != nil {
		return "" // not every kind of device has every attribute, that is what is asked here
	}
	return strings.TrimSuffix(string(text), "\n")
}

// number is an attribute that must be there.
func (n node) number(name string) (int64, error) {
	v, err := strconv.ParseInt(strings.TrimSpace(n.attr(name)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s/%s: %w", n.dir, name, err)
	}
	return v, nil
}

// bytes is the size of the device; sysfs counts sectors of 512 bytes whatever the
// device's own are.
func (n node) bytes() (int64, error) {
	sectors, err := n.number("size")
	return sectors * 512, err
}

func (n node) isPartition() bool { return n.attr("partition") != "" }

// parent is the disk of a partition, and where on it the partition begins.
func (n node) parent() (disk node, startBytes int64, err error) {
	if disk, err = nodeAt(filepath.Dir(n.dir)); err != nil {
		return node{}, 0, err
	}
	sectors, err := n.number("start")
	return disk, sectors * 512, err
}

// below are the devices that a dm or md device is made of; holders those that are
// made of this one.
func (n node) below() ([]node, error)   { return n.linked("slaves") }
func (n node) holders() ([]node, error) { return n.linked("holders") }

func (n node) linked(name string) ([]node, error) {
	return nodesIn(filepath.Join(n.dir, name), func(string) bool { return true })
}

// partitions are those that the kernel knows on a disk.
func (n node) partitions() ([]node, error) {
	return nodesIn(n.dir, func(name string) bool {
		if !strings.HasPrefix(name, filepath.Base(n.dir)) {
			return false // they are named after it, unlike its many attributes
		}
		_, err := os.Stat(filepath.Join(n.dir, name, "partition"))
		return err == nil
	})
}

func nodesIn(dir string, wanted func(name string) bool) ([]node, error) {
	names, err := namesIn(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var out []node
	for _, name := range names {
		if !wanted(name) {
			continue
		}
		n, err := nodeAt(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // went away since the directory was read
		}
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

// title is the name that a person knows the device by.
func (n node) title() string {
	if name := n.attr("dm/name"); name != "" {
		return "/dev/mapper/" + name
	}
	return n.path()
}

// stableKey identifies the device by what it keeps over a reboot.
func (n node) stableKey() (string, error) {
	for _, name := range []string{"dm/uuid", "md/uuid", "wwid", "device/wwid", "device/serial"} {
		if v := strings.TrimSpace(n.attr(name)); v != "" {
			return "block:" + strings.ReplaceAll(name, "/", "-") + ":" + v, nil
		}
	}
	bytes, err := n.bytes()
	if err != nil {
		return "", err
	}
	if n.isPartition() {
		disk, start, err := n.parent()
		if err != nil {
			return "", err
		}
		key, err := disk.stableKey()
		return fmt.Sprintf("%s+%d+%d", key, start, bytes), err
	}
	if name := n.attr("dm/name"); name != "" {
		// Its number goes to whichever device is made first after a reboot.
		return fmt.Sprintf("block:dm-name:%s:%d", name, bytes), nil
	}
	if link, err := n.udevLink("/dev/disk/by-id"); err != nil || link != "" {
		return "block:id:" + link, err
	}
	return fmt.Sprintf("block:name:%s:%d", n.name, bytes), nil
}

// udevLink is the alphabetically first link of dir that leads to the device, so
// that it is the same one each time.
func (n node) udevLink(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // no udev here
	}
	if err != nil {
		return "", err
	}
	var links []string
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, e.Name()), &st); err != nil {
			continue // a link that udev has not removed yet
		}
		if st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == n.dev {
			links = append(links, e.Name())
		}
	}
	if len(links) == 0 {
		return "", nil
	}
	return slices.Min(links), nil
}
