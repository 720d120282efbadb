package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// layer is a range of a file or block device that a device lies on.
type layer struct {
	dev   uint64 // of the block device, or of the file system with the file
	inode uint64 // 0: a block device
	first int64
	end   int64
	// exact: the range is the device, byte by byte. Otherwise the device lies
	// somewhere in the range, and others may lie there as well.
	exact bool
	what  string // for people
}

// mostLayers ends a search that runs in circles.
const mostLayers = 4096

// Overlap says why a and b must not be source and destination of one another:
// they are the same bytes, or one of them lies on the other. It is empty if
// neither is so. Two devices that share a disk or a pool do not overlap.
func Overlap(a, b *Device) (string, error) {
	layersA, err := a.layers()
	if err != nil {
		return "", err
	}
	layersB, err := b.layers()
	if err != nil {
		return "", err
	}
	for _, la := range layersA {
		for _, lb := range layersB {
			if !la.meets(lb) || !la.exact && !lb.exact {
				continue
			}
			switch {
			case la.exact && lb.exact:
				return fmt.Sprintf("%s and %s are the same bytes of %s", a.info.Path, b.info.Path, la.what), nil
			case lb.exact:
				return fmt.Sprintf("%s lies on %s, by way of %s", a.info.Path, b.info.Path, la.what), nil
			default:
				return fmt.Sprintf("%s lies on %s, by way of %s", b.info.Path, a.info.Path, la.what), nil
			}
		}
	}
	return "", nil
}

func (l layer) meets(o layer) bool {
	return l.dev == o.dev && l.inode == o.inode && l.first < o.end && o.first < l.end
}

// layers are the device itself and all that it lies on, down to the disks.
func (d *Device) layers() ([]layer, error) {
	s := &stack{}
	var err error
	switch d.info.Kind {
	case Block:
		err = s.block(d.info.Dev, 0, d.info.Bytes, true)
	case Loop:
		// The loop device itself as well: it may carry a file system.
		var st unix.Stat_t
		if err := onFD(d.loops[len(d.loops)-1], func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
			return nil, d.failure("look at", 0, 0, err)
		}
		s.add(layer{dev: st.Rdev, end: math.MaxInt64, exact: true, what: d.info.Path})
		fallthrough
	default:
		err = s.file(d.main, d.info.BackingPath, d.info.Offset, d.info.Offset+d.info.Bytes, true)
	}
	return s.layers, d.failure("find out what lies below", 0, 0, err)
}

// stack collects layers from the top down.
type stack struct{ layers []layer }

var errTooDeep = errors.New("devices lie on one another without end")

func (s *stack) add(l layer) { s.layers = append(s.layers, l) }

// file adds a range of a file, and the devices of its file system.
func (s *stack) file(f *os.File, path string, first, end int64, exact bool) error {
	var st unix.Stat_t
	if err := onFD(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return err
	}
	s.add(layer{dev: st.Dev, inode: st.Ino, first: first, end: end, exact: exact, what: path})
	m, err := mountOf(f)
	if err != nil {
		return err
	}
	dev, found := m.blockDevice()
	if !found {
		return nil // a file system in memory or on the network
	}
	devices, err := fileSystemDevices(dev)
	if err != nil {
		return err
	}
	for _, dev := range devices {
		if err := s.block(dev, 0, math.MaxInt64, false); err != nil {
			return err
		}
	}
	return nil
}

// fileSystemDevices are all devices of the file system that has dev as one of
// them. Only btrfs has more.
func fileSystemDevices(dev uint64) ([]uint64, error) {
	n, err := nodeOf(dev)
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/sys/fs/btrfs/*/devices/" + filepath.Base(n.dir))
	if err != nil || len(dirs) == 0 {
		return []uint64{dev}, err
	}
	members, err := nodesIn(filepath.Dir(dirs[0]), func(string) bool { return true })
	var out []uint64
	for _, m := range members {
		out = append(out, m.dev)
	}
	return out, err
}

// block adds a range of a block device, and what lies below it.
func (s *stack) block(dev uint64, first, end int64, exact bool) error {
	if len(s.layers) > mostLayers {
		return errTooDeep
	}
	n, err := nodeOf(dev)
	if err != nil {
		return err
	}
	s.add(layer{dev: dev, first: first, end: end, exact: exact, what: n.title()})
	bytes, err := n.bytes()
	if err != nil {
		return err
	}
	end = min(end, bytes)
	if n.isPartition() {
		disk, start, err := n.parent()
		if err != nil {
			return err
		}
		return s.block(disk.dev, start+first, start+end, exact)
	}
	if n.isLoop() {
		return s.loop(n, first, end, exact)
	}
	below, err := n.below()
	if err != nil {
		return err
	}
	for _, b := range below {
		if err := s.block(b.dev, 0, math.MaxInt64, false); err != nil {
			return err
		}
	}
	return nil
}

func (s *stack) loop(n node, first, end int64, exact bool) error {
	a, err := openAttachment(n)
	if err != nil {
		return failure("ask loop device", n.path(), 0, 0, err)
	}
	if a.rdev != 0 {
		return s.block(a.rdev, a.offset+first, a.offset+end, exact)
	}
	h, err := a.resolveBacking()
	if errors.Is(err, ErrBackingFile) || errors.Is(err, fs.ErrNotExist) {
		// No name leads to the file any more; its inode is all there is to know.
		s.add(layer{dev: a.dev, inode: a.inode, first: a.offset + first, end: a.offset + end, exact: exact, what: a.path})
		return nil
	}
	if err != nil {
		return err
	}
	defer h.close()
	return s.file(h.file, h.path, a.offset+first, a.offset+end, exact)
}
