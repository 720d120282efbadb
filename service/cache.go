package service

import (
	"decant/clone"
	"decant/loopdev"
)

// largestPageBytes is the most that the page cache keeps as a whole: a block of the file
// system where that is larger than a page.
const largestPageBytes = 64 << 10

// guestCache is the taker through the page cache where guests may use that, or nil. It
// spares them most waits for the disk, as qemu-nbd does with cache=writeback.
//
// The file system has to take the space of a write when it is written, and be on nothing
// that can run out of space by itself: else the space would be missed when nobody can be
// told any more but who flushes, and then all is lost that was not flushed. No region may
// share a page of the cache with another, which could be copied meanwhile. And a live
// device has no cache: to get memory for it the kernel might have to write pages of the
// device (see doc.go, Deadlocks).
func (m *migration) guestCache(r *reporter) clone.Cache {
	if len(m.accesses) == 0 || m.guestsOutlive() || !r.meter.takes.reservesAtWrite() ||
		m.journal.Superblock().Geometry.RegionBytes()%largestPageBytes != 0 {
		return nil
	}
	file, ok := r.meter.taker.device.(*loopdev.Device)
	if !ok {
		return nil
	}
	if cached, ok := file.Cached(); ok {
		return cached
	}
	return nil
}

// reservesAtWrite says whether all the space that a write to the page cache will take is
// taken when it is made, and shows in the free space then.
func (c *chain) reservesAtWrite() bool {
	if len(c.links) != 1 {
		return false
	}
	s, ok := c.links[0].store.(*fileStore)
	return ok && (s.place.FSType == "ext4" || s.place.FSType == "xfs")
}
