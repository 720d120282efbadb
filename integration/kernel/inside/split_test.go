//go:build testkernel

package inside

import (
	"fmt"
	"time"
)

// split leads reads, writes and flushes to devices of their own.
func split(reads, writes, flushes *device) kind {
	return delay(reads, 0, writes, 0, flushes)
}

// unwritable leads to d and fails writes, but not flushes.
func (d *device) unwritable() kind {
	d.s.Helper()
	return split(d, d.s.newDevice(d.whole(broken)...), d)
}

// unflushable leads to d and fails flushes, but not writes.
func (d *device) unflushable() kind {
	d.s.Helper()
	// Not broken: that target takes no part in flushes.
	return split(d, d, d.s.newDevice(d.whole(d.flakey("error_writes"))...))
}

// held leads to d and keeps writes back until the table is exchanged, for an hour at
// most: whoever writes there is certain to be at work until then.
func (d *device) held() kind { return delay(d, 0, d, time.Hour, d) }

// heldReads is the same for reads.
func (d *device) heldReads() kind { return delay(d, time.Hour, d, 0, d) }

func delay(reads *device, readTime time.Duration, writes *device, writeTime time.Duration, flushes *device) kind {
	return func(off, n int64) target {
		sector := off / sectorBytes
		return target{
			Start: uint64(sector), Length: uint64(n / sectorBytes), Type: "delay",
			Params: fmt.Sprintf("%s %d %d %s %d %d %s %d 0", reads.path(), sector, readTime.Milliseconds(),
				writes.path(), sector, writeTime.Milliseconds(), flushes.path(), sector),
		}
	}
}
