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
	Path   string
	PID    int    // of the process that has the lock; 0 if it has not said so yet
	Holder string // what that process is; empty if it is a command like any other
}

// Error names the lock and its holder.
func (e *LockedError) Error() string {
	holder := "another process"
	if e.PID != 0 {
		holder = fmt.Sprintf("process %d", e.PID)
	}
	if e.Holder != "" {
		holder = fmt.Sprintf("%s (%s)", e.Holder, holder)
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
func Lock(path string) (*LockFile, error) { return LockAs(path, "") }

// LockAs is Lock by a process that says what it is, in one word: others must treat a
// service that works on many things in another way than a command.
func LockAs(path, holder string) (*LockFile, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock file: %w", err)
		}
		current, err := lockNamed(f, path)
		if err == nil && current {
			err = writeHolder(f, holder)
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

// Holder says who has the lock of the file at path, without taking it: the error is
// nil if nobody has, and else as of Lock. A missing file is locked by nobody.
func Holder(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open lock file: %w", err)
	}
	defer func() { _ = f.Close() }() // only read from
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return lockedBy(f, path)
	}
	if err != nil {
		return fmt.Errorf("lock file %s: %w", path, err)
	}
	return nil
}

// lockNamed locks f and says whether path still leads to it. A lock on a file that
// somebody has unlinked meanwhile keeps nobody out.
func lockNamed(f *os.File, path string) (current bool, err error) {
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, lockedBy(f, path)
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

// lockedBy is the error for a lock that somebody else has, as that one has written it:
// its number, and perhaps a word.
func lockedBy(f *os.File, path string) *LockedError {
	e := &LockedError{Path: path}
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 64))
	if err != nil {
		return e // what it says is for people and their commands only
	}
	words := strings.Fields(string(text))
	if len(words) == 0 {
		return e // the holder may be about to write it
	}
	if pid, err := strconv.Atoi(words[0]); err == nil && pid > 0 {
		e.PID = pid
	}
	if len(words) > 1 {
		e.Holder = words[1]
	}
	return e
}

func writeHolder(f *os.File, holder string) error {
	text := strconv.Itoa(os.Getpid())
	if holder != "" {
		text += " " + holder
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	if _, err := f.WriteAt([]byte(text+"\n"), 0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	return nil
}

// Unlock gives the lock up. The file stays: to remove it would let two processes
// lock two files of the same name.
func (l *LockFile) Unlock() error { return l.file.Close() }
