package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockFile = "lock"
	// lockWait is how long a change waits for others. They hold the lock for some
	// file system operations only; one that takes longer is stopped or stuck.
	lockWait  = 30 * time.Second
	lockRetry = 2 * time.Millisecond
)

// lock excludes every other process, and every other handle of this process, from
// the directory that its file lies in. The kernel releases it when its holder dies.
type lock struct {
	mu   sync.Mutex // between the goroutines that share the file
	file *os.File
}

// newLock opens the lock file in dir, and makes it if it is not there. It does
// not take the lock.
func newLock(dir, name string) (*lock, error) {
	file, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return &lock{file: file}, nil
}

// with runs f while it holds the lock. It is ErrNotFound without a call of f if
// the file is not in its directory any more: a pool was destroyed. It is ErrInUse
// without a call if the lock cannot be had for lockWait.
func (l *lock) with(f func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	deadline := time.Now().Add(lockWait)
	for {
		err := unix.Flock(int(l.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", l.file.Name(), err)
		}
		if time.Now().After(deadline) {
			return &Error{
				Op: "lock", Object: l.file.Name(), State: fmt.Sprintf("has been held for %s by %s", lockWait, lockHolders(l.file)), Err: ErrInUse,
				Hint: "see whether that process is stopped or stuck",
			}
		}
		time.Sleep(lockRetry)
	}
	defer unix.Flock(int(l.file.Fd()), unix.LOCK_UN) //nolint:errcheck // fails only for a bad descriptor, which holds no lock
	var stat unix.Stat_t
	if err := unix.Fstat(int(l.file.Fd()), &stat); err != nil {
		return err
	}
	if stat.Nlink == 0 {
		return ErrNotFound
	}
	return f()
}

// Close gives up the lock file.
func (l *lock) Close() error { return l.file.Close() }

// lockHolders names the processes that hold a flock on the file, as far as this
// process may know them. It is for messages only.
func lockHolders(file *os.File) string {
	const unknown = "another process"
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return unknown
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return unknown
	}
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	var holders []string
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 4711 fe:00:12345 0 EOF; waiters have "->" in second place.
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[1] != "FLOCK" || fields[5] != inode {
			continue
		}
		if pid, err := strconv.Atoi(fields[4]); err == nil {
			holders = append(holders, processName(pid))
		}
	}
	if len(holders) == 0 {
		return unknown
	}
	return strings.Join(holders, ", ")
}

// processName is "process 4711 (migrate)".
func processName(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
}
