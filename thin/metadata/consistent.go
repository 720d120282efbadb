package metadata

import (
	"io"

	"decant/dm/persistent"
)

// IOCounts tell how much has been read from and written to a device so far. Between two
// moments at which they are equal, no write has ended.
type IOCounts = persistent.IOCounts

// DeviceIOCounts counts by what the kernel shows of a block device in /sys/dev/block:
// that which the pool's table names as its metadata device, see persistent.DeviceIOCounts.
func DeviceIOCounts(major, minor uint32) func() (IOCounts, error) {
	return persistent.DeviceIOCounts(major, minor)
}

// Consistently reads what a pool in use has committed last, without a message to the
// pool: it calls walk with a Reader, and calls it again with another one if the pool
// committed in the meantime, up to that many attempts; then it fails with ErrChanging.
// When it returns nil or an error of walk, that walk has seen one committed state.
// What walk has gathered in an earlier call is worthless, and an error that it returned
// there is forgotten.
//
// r reads the metadata device itself, past caches (see Open), and counts gives the
// counts of that same device, the one that the pool's table names: see DeviceIOCounts.
// ErrNotCounted if they do not show what was read through r: then they would not show a
// commit either. persistent.Consistently says why this is consistent.
func Consistently(r io.ReaderAt, counts func() (IOCounts, error), attempts int, walk func(*Reader) error) error {
	return persistent.Consistently(format, r, counts, attempts, func(r io.ReaderAt, superblock []byte) error {
		m, err := open(r, Options{}, superblock)
		if err != nil {
			return err
		}
		return walk(m)
	})
}
