package persistent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// IOCounts tell how much has been read from and written to a device so far. Between two
// moments at which they are equal, no write has ended.
type IOCounts struct {
	ReadSectors, WriteRequests, WriteSectors uint64
}

// DeviceIOCounts counts by what the kernel shows of a block device in /sys/dev/block.
// The number must be that of the device which the target's table names as its metadata
// device, and not of one beneath it or on it: the kernel counts a request where it was
// sent, before it tells the sender that the request has ended.
//
// The result fails with ErrNotCounted if there is no such device. Whether it counts
// (the attribute queue/iostats can turn that off) shows when it is read: Consistently
// looks for its own reads.
func DeviceIOCounts(major, minor uint32) func() (IOCounts, error) {
	return func() (IOCounts, error) {
		c, err := parseIOCounts(filepath.Join("/sys/dev/block", fmt.Sprintf("%d:%d", major, minor), "stat"))
		if err != nil {
			return IOCounts{}, fmt.Errorf("count the I/O of block device %d:%d: %w", major, minor, err)
		}
		return c, nil
	}
}

func parseIOCounts(path string) (c IOCounts, err error) {
	stat, err := os.ReadFile(path)
	if err != nil {
		return IOCounts{}, errors.Join(ErrNotCounted, err)
	}
	var skipped uint64 // reads and writes that were merged, and the time that reads took
	_, err = fmt.Sscan(string(stat), &skipped, &skipped, &c.ReadSectors, &skipped, &c.WriteRequests, &skipped, &c.WriteSectors)
	if err != nil {
		return IOCounts{}, fmt.Errorf("%w: %s is %q: %w", ErrNotCounted, path, stat, err)
	}
	return c, nil
}
