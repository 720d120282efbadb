package service

import (
	"errors"
	"math"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"decant/loopdev"
)

// meter measures the space that both ends take, and says how much may be written.
// It is the hydrate.Space of a run.
type meter struct {
	source, destination *end // of the migration, whichever way it runs
	taker               *end // the one that is being filled
	startBytes          int64
	reserveBytes        int64
	peakBytes           atomic.Int64
	copiedBytes         func() int64 // what the taker took, where that cannot be measured
}

const (
	minReserveBytes = 2 << 20
	maxReserveBytes = 64 << 20
)

// reserve is what a run never touches of the free space it finds: room for the
// metadata of file systems, and for others. btrfs needs more of it, also to free
// space, and its own count of what is free lags behind.
func reserve(freeBytes int64, fsType string) int64 {
	if fsType == btrfs {
		return min(max(freeBytes/4, 8*minReserveBytes), 4*maxReserveBytes)
	}
	return min(max(freeBytes/16, minReserveBytes), maxReserveBytes)
}

const (
	btrfs = "btrfs"
	// btrfsExtentBytes is the largest extent of btrfs, which gives the space of an
	// extent back only when no byte of it is in use any more.
	btrfsExtentBytes = 128 << 20
)

// bounded says whether writing to e takes space that could run out.
func bounded(e *end) bool { return e.kind != "block" }

// freeAround is the free space of the file system that e lies on, or of its pool where
// there is none.
func freeAround(e *end) (int64, error) {
	if e.base.Info().Kind == loopdev.Block {
		return e.FreeBytes()
	}
	return e.base.FreeBytes()
}

// AvailableBytes is how much may be written before the reserve is touched.
func (m *meter) AvailableBytes() (int64, error) {
	if !bounded(m.taker) {
		return math.MaxInt64, nil
	}
	free, err := freeAround(m.taker)
	if err != nil || m.taker.pool == nil {
		return free - m.reserveBytes, err
	}
	// The limit of a pool is exact, nothing else takes of it unseen.
	left, err := m.taker.FreeBytes()
	return min(left, free-m.reserveBytes), err
}

// Reclaim makes the file systems give back what was discarded: they do so when
// their own journals commit.
func (m *meter) Reclaim() error {
	return errors.Join(m.source.SyncFS(), m.destination.SyncFS())
}

// Sample notes the present use of space if it is the highest so far. A measurement
// that fails is left out: it is for people, nothing is decided by it.
func (m *meter) Sample() {
	if extra, err := m.extraBytes(); err == nil {
		for peak := m.peakBytes.Load(); extra > peak && !m.peakBytes.CompareAndSwap(peak, extra); {
			peak = m.peakBytes.Load()
		}
	}
}

// extraBytes is what both ends take now beyond what the source took at the start.
func (m *meter) extraBytes() (int64, error) {
	source, err := m.taken(m.source)
	if err != nil {
		return 0, err
	}
	destination, err := m.taken(m.destination)
	if err != nil {
		return 0, err
	}
	return source + destination - m.startBytes, nil
}

// taken is the space that e takes. A block device does not tell: as a source it
// takes its size, as a receiver what was copied to it.
func (m *meter) taken(e *end) (int64, error) {
	n, err := e.AllocatedBytes()
	if !errors.Is(err, loopdev.ErrNotCountable) {
		return n, err
	}
	if e == m.taker {
		return m.copiedBytes(), nil
	}
	return e.Bytes(), nil
}

// freeBytesAt is the space that the file system of dir has for everybody, and its
// device number.
func freeBytesAt(dir string) (freeBytes int64, dev uint64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, 0, err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(fs.Bavail) * fs.Bsize, st.Dev, nil
}
