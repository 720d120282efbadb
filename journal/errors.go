package journal

import (
	"database/sql"
	"errors"
	"fmt"
	"syscall"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"
)

// What can be wrong with a journal. Every error of this package that has one of
// these reasons is an *Error and matches its reason with errors.Is.
var (
	// ErrNotJournal: the file is something else, or its first page is destroyed.
	ErrNotJournal = errors.New("not a journal of decant")
	// ErrNewer: a later version of the program made it.
	ErrNewer = errors.New("made by a newer version of decant")
	// ErrOlder: it has an old version that this program does not know.
	ErrOlder = errors.New("made by an unknown old version of decant")
	// ErrDamaged: what it holds contradicts itself, or cannot be read as SQLite.
	ErrDamaged = errors.New("damaged")
	// ErrNotDurable: the settings under which a commit survives a power loss
	// could not be had.
	ErrNotDurable = errors.New("commits would not survive a power loss")
	// ErrFull: no space for the change. Nothing of it was recorded, and the
	// same change can succeed once there is space.
	ErrFull = errors.New("no space left for the journal")
	// ErrUnknownOutcome: an input or output error hit a change; it may or may
	// not be recorded. The journal takes no further change and has no state to
	// tell until it is opened anew.
	ErrUnknownOutcome = errors.New("unknown whether the change was recorded")
	// ErrOtherWriter: somebody else has the journal open, or has changed it since
	// it was opened. Nothing was recorded, and it takes no further change until it
	// is opened anew.
	ErrOtherWriter = errors.New("another process writes to it")
	// ErrReadOnly: the journal was opened by OpenReadOnly.
	ErrReadOnly = errors.New("opened for reading only")
	// ErrInvalid: the change makes no sense for this journal. Nothing was
	// recorded.
	ErrInvalid = errors.New("refused, nothing recorded")
	// ErrLeftover: files of an earlier journal of the same name are still there.
	ErrLeftover = errors.New("remains of an earlier journal are in the way")
)

// Error says what failed on which journal, and for which reason.
type Error struct {
	Path   string // of the journal
	Doing  string // what was being done
	Reason error  // one of the Err variables of this package; may be nil
	Cause  error  // what was found or what the system said; may be nil
}

// Error names the journal, what failed, and what to do.
func (e *Error) Error() string {
	text := fmt.Sprintf("journal %s: %s", e.Path, e.Doing)
	for _, err := range e.Unwrap() {
		text += ": " + err.Error()
	}
	if hint := e.Hint(); hint != "" {
		text += "; " + hint
	}
	return text
}

// Unwrap gives the reason and the cause, as far as there are any.
func (e *Error) Unwrap() []error {
	var all []error
	for _, err := range []error{e.Reason, e.Cause} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// Hint is what a person can do about it, or empty.
func (e *Error) Hint() string {
	switch {
	case errors.Is(e.Reason, ErrNotJournal):
		return "check the path; if this was the journal, restore it from a backup and never start the migration afresh"
	case errors.Is(e.Reason, ErrNewer):
		return "use the version that made it, or a later one"
	case errors.Is(e.Reason, ErrOlder):
		return "use the version that made it"
	case errors.Is(e.Reason, ErrDamaged):
		return "the source may be partly discarded: keep the file with its -wal, discard nothing, and look at it read-only"
	case errors.Is(e.Reason, ErrNotDurable):
		return "put the state directory on a local file system such as ext4 or XFS"
	case errors.Is(e.Reason, ErrFull):
		return "free space there and resume"
	case errors.Is(e.Reason, ErrUnknownOutcome):
		return "check the file system that holds it, then resume: the journal is read anew"
	case errors.Is(e.Reason, ErrOtherWriter):
		return "let only one process run the migration, then resume"
	case errors.Is(e.Reason, ErrLeftover):
		return "a migration may have lost its journal: put the journal back beside them, or move them away"
	default:
		return ""
	}
}

func (j *Journal) fault(doing string, reason, cause error) error {
	return &Error{Path: j.path, Doing: doing, Reason: reason, Cause: cause}
}

// readFault is the reason why something could not be read. What is no answer of
// SQLite about its files is a value that no journal holds.
func readFault(err error) (reason error) {
	var s sqlite3.Error
	switch {
	case errors.As(err, &s) && (s.Code == sqlite3.ErrFull || noSpace(s.SystemErrno)):
		return ErrFull // SQLite needs a log beside the file
	case errors.As(err, &s) && s.Code == sqlite3.ErrBusy:
		return ErrOtherWriter
	case errors.As(err, &s) && s.Code == sqlite3.ErrNotADB:
		return ErrNotJournal
	case errors.As(err, &s) && (s.Code == sqlite3.ErrCorrupt || s.Code == sqlite3.ErrError):
		return ErrDamaged
	case errors.As(err, &s), errors.Is(err, sql.ErrConnDone):
		return nil
	default:
		return ErrDamaged
	}
}

// writeFault is the reason why a change failed. Only where it is certain that
// nothing was recorded is it something other than ErrUnknownOutcome.
//
// A full disk is certain: SQLite writes the frame that makes a transaction valid
// as the last of all, and syncs after it. The same error from the sync, or from
// the index that follows it, comes too late to be sure.
func writeFault(err error) (reason error) {
	var s sqlite3.Error
	fromSQLite := errors.As(err, &s)
	switch {
	case errors.Is(err, errGeneration), fromSQLite && s.Code == sqlite3.ErrBusy:
		return ErrOtherWriter
	case !fromSQLite:
		return ErrUnknownOutcome
	case s.Code == sqlite3.ErrFull, s.ExtendedCode == sqlite3.ErrIoErrWrite && noSpace(s.SystemErrno):
		return ErrFull
	case s.Code == sqlite3.ErrCorrupt:
		return ErrDamaged
	default:
		return ErrUnknownOutcome
	}
}

func noSpace(errno syscall.Errno) bool {
	return errno == unix.ENOSPC || errno == unix.EDQUOT || errno == unix.EFBIG
}

func isSQLite(err error) bool {
	var s sqlite3.Error
	return errors.As(err, &s)
}
