package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"decant/loopdev"
)

// served is a file or block device that the server has open.
type served struct {
	*loopdev.Device
	isReadWrite bool
}

// eachServed opens what the server has open, one after the other, if it is a process of
// this host on a Unix socket that may be looked into: files and block devices. What the
// server is for is among them, and perhaps its log. visit says whether it keeps it; what
// it does not keep is closed. It ends with the first error.
func (n *nbdEnd) eachServed(visit func(served) (keeps bool, err error)) error {
	peer, err := n.Server()
	if err != nil || !peer.Local || peer.PID <= 0 || int(peer.PID) == os.Getpid() {
		return nil //nolint:nilerr // nothing is known of it then
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", peer.PID))
	if err != nil {
		return err
	}
	for _, link := range links {
		d := openServed(link)
		if d == nil {
			continue
		}
		keeps, err := visit(served{d, isReadWrite(peer.PID, filepath.Base(link))})
		if !keeps {
			_ = d.Close() // opened for reading
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isReadWrite says whether a process has a descriptor open for reading and writing.
func isReadWrite(pid int32, fd string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		return false // closed a moment ago
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "flags:"); found {
			flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
			return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR
		}
	}
	return false
}

// leastImageBytes is the smallest file that is taken for an image: servers have files with
// their process number open as well.
const leastImageBytes = 64 << 10

// findImage finds the file that the server has for the export: the only one that it has
// open for reading and writing. What the export frees comes back to the file system of
// that file, which is not certain, and is looked at while the migration runs.
func (n *nbdEnd) findImage() error {
	count := 0
	err := n.eachServed(func(d served) (bool, error) {
		if !d.isReadWrite || d.Bytes() < leastImageBytes {
			return false, nil
		}
		count++
		if count > 1 || d.Info().Kind != loopdev.File {
			return false, nil
		}
		n.image = d.Device
		return true, nil
	})
	if n.image != nil && (count > 1 || err != nil) {
		err = errors.Join(err, n.image.Close())
		n.image = nil
	}
	return err
}

// openServed opens what a link of /proc leads to, if it is a file or a block device that
// still has its name.
func openServed(link string) *loopdev.Device {
	there, err := os.Stat(link)
	if err != nil || !there.Mode().IsRegular() && there.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		return nil
	}
	path, err := os.Readlink(link)
	if err != nil {
		return nil
	}
	named, err := os.Stat(path)
	if err != nil || !os.SameFile(there, named) {
		return nil
	}
	d, err := loopdev.Open(path, loopdev.Options{})
	if err != nil {
		return nil
	}
	return d
}

// overlap says why a destination must not be filled from the export: its server has it,
// or something below or above it, open.
func (n *nbdEnd) overlap(destination *loopdev.Device) (why string, err error) {
	err = n.eachServed(func(d served) (bool, error) {
		if why == "" {
			if why, err = loopdev.Overlap(d.Device, destination); why != "" {
				why = "the NBD server has it open: " + why
			}
		}
		return false, err
	})
	return why, err
}

// UsedBy implements ground. Who else uses the export is known to its server only; but a
// server of this host may serve what is mounted here.
func (n *nbdEnd) UsedBy() (uses []loopdev.Use, err error) {
	err = n.eachServed(func(d served) (bool, error) {
		all, err := d.UsedBy()
		uses = append(uses, slices.DeleteFunc(all, func(u loopdev.Use) bool {
			return u.Kind != loopdev.Mounted && u.Kind != loopdev.Swap
		})...)
		return false, err
	})
	return uses, err
}

// checkServedMarks refuses an export whose server has a file open that carries a mark: a
// file whose holes are no data does not become whole by being served (I11).
func (a *attempt) checkServedMarks() error {
	n, ok := a.source.device.(*nbdEnd)
	if !ok {
		return nil
	}
	return n.eachServed(func(d served) (bool, error) {
		mark, marked, err := d.ReadMark()
		if err != nil {
			return false, refuse(d.Info().Path, "is served, and its mark cannot be read", "", err)
		}
		if !marked {
			return false, nil
		}
		return false, a.checkMark(&end{device: d.Device, base: d.Device, name: d.Info().Path, kind: "file"}, mark)
	})
}
