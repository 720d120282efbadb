package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"
)

// DisksBelow names the disks that what path leads to keeps its bytes on: the block
// devices with nothing below them that the kernel shows. A file system that shows no
// block device, as those in memory or on the network, counts as a disk of its own. The
// names are the same for the same disk until the next reboot, and sorted.
func DisksBelow(path string) ([]string, error) {
	h, err := resolve(path)
	if err != nil {
		return nil, failure("look at", path, 0, 0, err)
	}
	defer h.close()
	d := disks{}
	if h.stat.Mode&unix.S_IFMT == unix.S_IFBLK {
		err = d.descend(h.stat.Rdev, 0)
	} else {
		err = d.file(h, 0)
	}
	slices.Sort(d.names)
	return slices.Compact(d.names), failure("find the disks below", path, 0, 0, err)
}

// DisksBelowDevice is DisksBelow of the block device of that number.
func DisksBelowDevice(dev uint64) ([]string, error) {
	d := disks{}
	err := d.descend(dev, 0)
	slices.Sort(d.names)
	return slices.Compact(d.names), err
}

type disks struct{ names []string }

// mostDepth ends a search that runs in circles.
const mostDepth = 64

// file adds the disks of the file system that holds a file or directory.
func (d *disks) file(h *handle, depth int) error {
	m, err := mountOf(h.file)
	if err != nil {
		return err
	}
	dev, found := m.blockDevice()
	if !found {
		d.names = append(d.names, fmt.Sprintf("%s %d:%d", m.fsType, unix.Major(h.stat.Dev), unix.Minor(h.stat.Dev)))
		return nil
	}
	devices, err := fileSystemDevices(dev)
	for _, dev := range devices {
		err = errors.Join(err, d.descend(dev, depth+1))
	}
	return err
}

func (d *disks) descend(dev uint64, depth int) error {
	if depth > mostDepth {
		return errTooDeep
	}
	b, err := BlockDeviceAt(dev)
	if err != nil {
		return err
	}
	if b.BackingFile != "" {
		return d.behind(b, depth)
	}
	if len(b.Below) == 0 {
		d.names = append(d.names, b.Title)
	}
	for _, below := range b.Below {
		err = errors.Join(err, d.descend(below, depth+1))
	}
	return err
}

// behind adds the disks under the file of a loop device.
func (d *disks) behind(b BlockDevice, depth int) error {
	h, err := resolve(b.BackingFile)
	if errors.Is(err, fs.ErrNotExist) {
		d.names = append(d.names, b.Title) // no name leads to it any more
		return nil
	}
	if err != nil {
		return err
	}
	defer h.close()
	return d.file(h, depth+1)
}
