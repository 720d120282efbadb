package thin

import (
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxGrantBytes is the most that a handle sets aside for itself at once.
	maxGrantBytes = 32 << 20
	// grantDivisor keeps grants to a small part of what is free, so that idle
	// grants do not use up a small pool.
	grantDivisor = 16
)

// account keeps what one handle allocates within what is free in the pool. Every
// write is charged before it begins and settled when it has ended.
//
// The number that the others see is leftBytes + inFlightBytes at the time of the
// last look at the pool. It never grows in between, and what was charged turns
// into allocated bytes, which the others count themselves. So they may count some
// bytes twice, but none never.
type account struct {
	dir        string
	sizeBytes  int64
	blockBytes int64
	lock       *lock
	user       *user

	mu            sync.Mutex
	settled       sync.Cond // inFlightBytes or inFlight have gone down; uses mu
	leftBytes     int64     // granted and not charged
	inFlightBytes int64     // charged to writes that have not ended
	inFlight      int       // writes that have not ended
}

// charge sets bytes aside for a write, which is the most that it can allocate.
// Near the limit it asks need for what the write will allocate. It returns what
// settle has to be given, or a *NoSpaceError that says what is lacking.
func (a *account) charge(bytes int64, need func() (int64, error)) (charged int64, err error) {
	if a.spend(bytes) {
		return bytes, nil
	}
	err = a.lock.with(func() error {
		charged, err = a.look(bytes, need)
		return err
	})
	return charged, err
}

// settle says that a write that was charged has ended, however it did.
func (a *account) settle(charged int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inFlightBytes -= charged
	a.inFlight--
	a.settled.Broadcast()
}

// release gives back what was granted and not charged.
func (a *account) release() error {
	return a.lock.with(func() error {
		a.mu.Lock()
		a.leftBytes = 0
		granted := a.inFlightBytes
		a.mu.Unlock()
		return a.user.setGrant(granted)
	})
}

// freeBytes is what this handle could allocate now: what the pool has left and
// has not granted to others, or what the file system has left, if that is less.
func (a *account) freeBytes() (free int64, err error) {
	err = a.lock.with(func() error {
		free, err = a.unclaimed()
		return err
	})
	if err != nil {
		return 0, err
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(a.dir, &stat); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: a.dir, Err: err}
	}
	return max(0, min(free, int64(stat.Bavail)*stat.Frsize)), nil
}

// spend takes bytes from what was granted, if that is enough.
func (a *account) spend(bytes int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leftBytes < bytes {
		return false
	}
	a.leftBytes -= bytes
	a.begin(bytes)
	return true
}

// begin notes a write. The caller holds mu.
func (a *account) begin(bytes int64) {
	a.inFlightBytes += bytes
	a.inFlight++
}

// look counts the pool anew and charges a write of at most bytes against the
// outcome. The caller holds the pool's lock.
func (a *account) look(bytes int64, need func() (int64, error)) (int64, error) {
	if a.spend(bytes) {
		return bytes, nil // somebody else has looked while this one waited
	}
	a.mu.Lock()
	a.leftBytes = 0 // from here on nobody begins a write without the lock
	before := a.inFlightBytes
	a.mu.Unlock()
	free, err := a.unclaimed()
	if err != nil {
		return 0, err
	}
	free -= before
	if free < bytes {
		return a.lookClosely(need)
	}
	grant := max(bytes, min(maxGrantBytes, free/grantDivisor))
	return bytes, a.grant(bytes, grant-bytes)
}

// lookClosely charges a write of exactly what it will allocate, after all other
// writes of this handle have ended, so that none of them is counted twice. The
// caller holds the pool's lock, and leftBytes is zero.
func (a *account) lookClosely(need func() (int64, error)) (int64, error) {
	a.mu.Lock()
	for a.inFlight > 0 {
		a.settled.Wait()
	}
	a.mu.Unlock()
	exact, err := need()
	if err != nil {
		return 0, err
	}
	if exact > 0 {
		free, err := a.unclaimed()
		if err != nil {
			return 0, err
		}
		if exact > free {
			return 0, &NoSpaceError{NeedBytes: exact, FreeBytes: max(0, free), SizeBytes: a.sizeBytes}
		}
	}
	return exact, a.grant(exact, 0)
}

// grant begins a write of bytes, sets left aside for later ones, and tells the
// others. The caller holds the pool's lock.
func (a *account) grant(bytes, left int64) error {
	a.mu.Lock()
	granted := a.inFlightBytes + bytes + left
	a.mu.Unlock()
	// Writes in flight can only end meanwhile, because leftBytes is zero.
	if err := a.user.setGrant(granted); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.leftBytes = left
	a.begin(bytes)
	return nil
}

// unclaimed is what the pool has left and has not granted to others; it can be
// negative. The caller holds the pool's lock.
func (a *account) unclaimed() (int64, error) {
	others, err := otherUsers(a.dir, a.user)
	if err != nil {
		return 0, err
	}
	// The grants are read first. What is allocated out of one meanwhile is then
	// counted twice. The other way round, what a handle allocates just before it
	// closes and gives up its grant would not be counted at all.
	var granted int64
	for _, other := range others {
		granted += other.GrantedBytes
	}
	used, err := allocatedBytes(a.dir, a.blockBytes)
	if err != nil {
		return 0, err
	}
	return a.sizeBytes - used - granted, nil
}

// allocatedBytes is what all volume files in dir together have allocated.
func allocatedBytes(dir string, blockBytes int64) (int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), volumeSuffix) {
			continue
		}
		bytes, err := fileAllocatedBytes(filepath.Join(dir, entry.Name()), blockBytes)
		if err != nil {
			return 0, err
		}
		sum += bytes
	}
	return sum, nil
}

// fileAllocatedBytes is what the file at path has allocated, but at most its size
// in whole blocks: what a file system needs to find the extents of a full file is
// not the volume's. A file that is not there has allocated nothing.
func fileAllocatedBytes(path string, blockBytes int64) (int64, error) {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		if err == unix.ENOENT {
			return 0, nil
		}
		return 0, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return min(stat.Blocks*512, roundUp(stat.Size, blockBytes)), nil
}

// roundUp is the next multiple of blockBytes, a power of two, from bytes on.
func roundUp(bytes, blockBytes int64) int64 {
	return (bytes + blockBytes - 1) &^ (blockBytes - 1)
}
