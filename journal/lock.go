package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLocked: another process, or another part of this one, has the lock.
var ErrLocked = errors.New("locked")

// LockedError says who has a lock. It matches ErrLocked with errors.Is.
type LockedError struct {
	Path string
	PID  int // of the process that has the lock; 0 if it has not said so yet
}

// Error names the lock and its holder.
func (e *LockedError) Error() string {
	holder := "another process"
	if e.PID != 0 {
		holder = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("lock file %s: %s holds it; stop that process, or ask it to do the work", e.Path, holder)
}

// Unwrap is ErrLocked.
func (e *LockedError) Unwrap() error { return ErrLocked }

// LockFile is a lock that this process holds. The kernel gives it up when the
// process ends, however it ends.
type LockFile struct{ file *os.File }

// Lock takes the lock of the file at path, which is made if it is missing and
// holds the number of the locking process as text. It does not wait: if somebody
// has the lock already, the error is a *LockedError. The file is a file of its own
// and not the journal, whose locks belong to SQLite.
func Lock(path string) (*LockFile, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock file: %w", err)
		}
		current, err := lockNamed(f, path)
		if err == nil && current {
			err = writePID(f)
		}
		if err == nil && current {
			return &LockFile{file: f}, nil
		}
		_ = f.Close() // only read from, or of no use any more: nothing to lose
		if err != nil {
			return nil, err
		}
	}
}

// lockNamed locks f and says whether path still leads to it. A lock on a file that
// somebody has unlinked meanwhile keeps nobody out.
func lockNamed(f *os.File, path string) (current bool, err error) {
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, &LockedError{Path: path, PID: readPID(f)}
	}
	if err != nil {
		return false, fmt.Errorf("lock file %s: %w", path, err)
	}
	opened, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(opened, named), err
}

func readPID(f *os.File) int {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
	if err != nil {
		return 0 // the number is for the message only
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 0 {
		return 0 // as above; the holder may be about to write it
	}
	return pid
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	return nil
}

// Unlock gives the lock up. The file stays: to remove it would let two processes
// lock two files of the same name.
func (l *LockFile) Unlock() error { return l.file.Close() }
