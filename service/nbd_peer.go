package service

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"decant/loopdev"
)

// eachServed opens what the server has open, one after the other, if it is a process of
// this host on a Unix socket that may be looked into: files and block devices. What the
// server is for is among them, and perhaps its log. It ends with the first error.
func (n *nbdEnd) eachServed(visit func(*loopdev.Device) error) error {
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
		err := visit(d)
		_ = d.Close() // opened for reading
		if err != nil {
			return err
		}
	}
	return nil
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
	err = n.eachServed(func(d *loopdev.Device) error {
		if why == "" {
			if why, err = loopdev.Overlap(d, destination); why != "" {
				why = "the NBD server has it open: " + why
			}
		}
		return err
	})
	return why, err
}

// UsedBy implements ground. Who else uses the export is known to its server only; but a
// server of this host may serve what is mounted here.
func (n *nbdEnd) UsedBy() (uses []loopdev.Use, err error) {
	err = n.eachServed(func(d *loopdev.Device) error {
		all, err := d.UsedBy()
		uses = append(uses, slices.DeleteFunc(all, func(u loopdev.Use) bool {
			return u.Kind != loopdev.Mounted && u.Kind != loopdev.Swap
		})...)
		return err
	})
	return uses, err
}
