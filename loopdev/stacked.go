package loopdev

import (
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// StackedUUID begins the UUID of each device of device-mapper that this program makes of
// the ends of a migration, or has the kernel make. Such a device does not stand in the
// way of those who open an end: they have to find out by Stacked whether it is theirs.
const StackedUUID = "DECANT-live-"

// Stacked is the UUIDs of the devices that this program has made, in this process or in
// an earlier one, of the device or of a loop device that shows it. They may be in use.
func (d *Device) Stacked() ([]string, error) {
	uuids, err := d.stacked()
	return uuids, d.failure("find the devices on", 0, 0, err)
}

func (d *Device) stacked() ([]string, error) {
	s := &search{device: d}
	if err := s.start(); err != nil {
		return nil, err
	}
	var uuids []string
	for _, n := range s.nodes {
		holders, err := n.holders()
		if err != nil {
			return nil, err
		}
		for _, h := range holders {
			if uuid := h.attr("dm/uuid"); h.isStacked() && !slices.Contains(uuids, uuid) {
				uuids = append(uuids, uuid)
			}
		}
	}
	return uuids, nil
}

// isStacked says whether this program has made the device of others.
func (n node) isStacked() bool { return strings.HasPrefix(n.attr("dm/uuid"), StackedUUID) }

// onlyStacked says whether some device that this program has made is on n, and nothing
// else is.
func (n node) onlyStacked() (bool, error) {
	holders, err := n.holders()
	if err != nil || len(holders) == 0 {
		return false, err
	}
	return !slices.ContainsFunc(holders, func(h node) bool { return !h.isStacked() }), nil
}

// openBeside opens a block device that could not be claimed, if nobody holds it but
// devices that this program has made.
func openBeside(h *handle, n node, flags int, err error) (*os.File, error) {
	ours, lookErr := n.onlyStacked()
	if lookErr != nil || !ours {
		return nil, err
	}
	return h.reopen(flags &^ unix.O_EXCL)
}
