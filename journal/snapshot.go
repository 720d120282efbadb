package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// OpenReadOnly opens a journal for a look at it, also while this process or another
// one has it open for writing. It shows what was committed when it was opened, and
// never anything newer: it copies the journal to a directory of its own in the one
// for temporary files ($TMPDIR or /tmp), reads the copy, and leaves nothing there,
// also if the process is killed later. It takes no lock on the journal, keeps
// no other process waiting, and writes nothing beside it. The last transaction that it shows may be
// one whose Commit has not returned yet and that a power loss would take back.
//
// It checks less than Open, so that a damaged journal can be looked at as far as
// possible; Check says more. Every change fails with ErrReadOnly. It fails if there
// is no room for the copy, and if the journal did not hold still for long enough.
func OpenReadOnly(path string) (*Journal, error) {
	j, err := named(path)
	if err != nil {
		return nil, err
	}
	j.readOnly = true
	dir, err := os.MkdirTemp("", "decant-journal-")
	if err != nil {
		return nil, j.fault("open", nil, uncopied(err))
	}
	err = j.openCopy(filepath.Join(dir, "copy.db"))
	// SQLite has opened what it needs and goes on without the names. That they are
	// gone also keeps it from working the log into the copy at the end.
	if left := os.RemoveAll(dir); left != nil {
		err = errors.Join(err, j.fault("open", nil, left))
	}
	if err != nil && j.c.Conn != nil {
		err = errors.Join(err, j.Close())
	}
	if err != nil {
		return nil, err
	}
	return j, nil
}

// openCopy copies the journal to path and opens the copy: for writing as far as
// SQLite is concerned, or it could not have it for itself.
func (j *Journal) openCopy(path string) error {
	err := copySettled(j.path, path)
	if err != nil {
		return j.fault("open", nil, uncopied(err))
	}
	if j.c, err = connect(path, writing); err != nil {
		return j.fault("open", readFault(err), err)
	}
	if _, err = j.c.ExecContext(background, "PRAGMA query_only = ON"); err != nil {
		return j.fault("open", readFault(err), err)
	}
	return j.recognise()
}

func uncopied(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) && noSpace(errno) {
		return fmt.Errorf("copy it for a look at it: %w; set TMPDIR to a directory with room for it", err)
	}
	return fmt.Errorf("copy it for a look at it: %w", err)
}

const (
	copyAttempts = 100
	copyPause    = 20 * time.Millisecond
)

var errChanged = errors.New("it changed all the time; try again")

// copySettled copies a database with its log. A writer may go on meanwhile: what it
// appends to the log is in the copy as far as it was there in time, and SQLite passes
// over what is torn at the end of the log, by its checksums. Only when the log begins
// anew or pages go back into the database is the copy taken once more.
func copySettled(from, to string) error {
	from, err := filepath.EvalSymlinks(from) // the log is beside the file itself
	if err != nil {
		return err
	}
	for attempt := range copyAttempts {
		if attempt > 0 {
			time.Sleep(copyPause)
		}
		err = writers.read(from, func(f *os.File) error { return copyOnce(f, from, to) })
		if !errors.Is(err, errChanged) {
			break
		}
	}
	return err
}

// copyOnce copies the database f, whose name is from, and then its log. The log
// comes last, so that no commit is missing in it that pages of the copy are from.
func copyOnce(f *os.File, from, to string) error {
	before, err := momentOf(f, from)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := copyTo(to, f); err != nil {
		return err
	}
	for _, suffix := range logSuffixes {
		if err := copyLog(from+suffix, to+suffix); err != nil {
			return err
		}
	}
	after, err := momentOf(f, from)
	if err != nil {
		return err
	}
	if before != after {
		return errChanged
	}
	return nil
}

// Of the two SQLite uses the second only on a journal that was taken out of the mode
// in which this package keeps it.
var logSuffixes = [...]string{"-wal", "-journal"}

// moment is what tells whether pages of a database may have been replaced.
type moment struct {
	bytes               int64
	modifiedNanoseconds int64
	logs                [len(logSuffixes)]string // what they begin with
}

func momentOf(f *os.File, path string) (moment, error) {
	opened, err := f.Stat()
	if err != nil {
		return moment{}, err
	}
	named, err := os.Stat(path)
	if err != nil {
		return moment{}, err
	}
	if !os.SameFile(opened, named) {
		return moment{}, errChanged
	}
	m := moment{bytes: opened.Size(), modifiedNanoseconds: opened.ModTime().UnixNano()}
	for i, suffix := range logSuffixes {
		if m.logs[i], err = logHeader(path + suffix); err != nil {
			return moment{}, err
		}
	}
	return m, nil
}

// logHeader is the header of a log, with the salt that SQLite draws whenever it
// begins the log anew. It is empty if there is no log.
func logHeader(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	header, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
	return string(header), errors.Join(err, f.Close())
}

// copyLog copies a log, or removes the copy if there is no log.
func copyLog(from, to string) error {
	f, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return removeAll(to)
	}
	if err != nil {
		return err
	}
	return errors.Join(copyTo(to, f), f.Close())
}

// copyTo copies as much of f as there is now; a log may grow all the time.
func copyTo(to string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	t, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(t, io.LimitReader(f, info.Size()))
	return errors.Join(err, t.Close())
}
