package loopdev

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Mark is left on a file by the migration that discards or fills it, so that
// nobody takes its holes for data when the journal is gone.
type Mark struct {
	ID    string    `json:"id"`    // of the migration
	Role  string    `json:"role"`  // what the file is to it
	Tx    uint64    `json:"tx"`    // the highest transaction whose discards may have begun
	Since time.Time `json:"since"` // when it was written, or the last Discard began
	// Discarding: a Discard has begun and has not put the modification time back.
	Discarding bool `json:"discarding,omitempty"`
}

// GivingRole is the role of a file that is being emptied, so that its holes are no
// data.
const GivingRole = "source"

// mostMarkBytes is more than any mark has.
const mostMarkBytes = 1 << 10

// The attribute that any file system with attributes can hold, and the one for
// those that have none for users.
var markNames = [...]string{"user.decant.mark", "trusted.decant.mark"}

// WriteMark puts the mark on the (backing) file in place of an older one of the
// same migration, and returns nil only if it survives a power loss. A mark of
// another migration is left alone: ErrMarked. A block device, or a file system
// without extended attributes, is ErrNoMark: the record must be kept elsewhere.
func (d *Device) WriteMark(m Mark) error {
	return d.failure("mark", 0, 0, d.writeMark(m))
}

func (d *Device) writeMark(m Mark) error {
	if d.info.Kind == Block {
		return ErrNoMark
	}
	if !d.write {
		return ErrReadOnly
	}
	d.discarding.Lock()
	defer d.discarding.Unlock()
	old, marked, err := d.readMark()
	if err != nil {
		return err
	}
	if marked && old.ID != m.ID {
		return fmt.Errorf("%w: %s, as %s since %s", ErrMarked, old.ID, old.Role, old.Since.Format(time.RFC3339))
	}
	if old.Discarding { // that has to be put right first, and until then to be known
		m.Discarding, m.Since = true, old.Since
	}
	if err := d.setMark(m); err != nil {
		return err
	}
	return d.sync(unix.Fsync) // attributes are no data that fdatasync would care for
}

// setMark is not durable by itself, but file systems with a journal keep it in
// order with later changes of the same file.
func (d *Device) setMark(m Mark) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	for _, name := range markNames {
		err = onFD(d.main, func(fd int) error { return unix.Fsetxattr(fd, name, text, 0) })
		if !unsupported(err) {
			return err
		}
	}
	return because(ErrNoMark, err)
}

// noteDiscarding says in the mark, if there is one, that a Discard begins now or has
// ended.
func (d *Device) noteDiscarding(begins bool) error {
	m, marked, err := d.readMark()
	if err != nil || !marked || !begins && !m.Discarding {
		return err
	}
	if begins {
		m.Since = time.Now()
	}
	m.Discarding = begins
	return d.setMark(m)
}

// ReadMark is the mark on the (backing) file, and whether there is one. What
// cannot carry a mark has none.
func (d *Device) ReadMark() (Mark, bool, error) {
	m, marked, err := d.readMark()
	return m, marked, d.failure("read the mark of", 0, 0, err)
}

func (d *Device) readMark() (Mark, bool, error) {
	if d.info.Kind == Block {
		return Mark{}, false, nil
	}
	for _, name := range markNames {
		text := make([]byte, mostMarkBytes)
		var n int
		err := onFD(d.main, func(fd int) (err error) {
			n, err = unix.Fgetxattr(fd, name, text)
			return err
		})
		if errors.Is(err, unix.ENODATA) || unsupported(err) {
			continue
		}
		if err != nil {
			return Mark{}, false, err
		}
		m, err := parseMark(text[:n])
		return m, err == nil, err
	}
	return Mark{}, false, nil
}

// parseMark refuses what is no mark rather than to take it for none.
func parseMark(text []byte) (Mark, error) {
	var m Mark
	if err := json.Unmarshal(text, &m); err != nil {
		return Mark{}, fmt.Errorf("its mark %q cannot be understood: %w", text, err)
	}
	if m.ID == "" {
		return Mark{}, fmt.Errorf("its mark %q names no migration", text)
	}
	return m, nil
}

// RemoveMark takes the mark off, and returns nil only if that survives a power
// loss. What has no mark, or cannot carry one, is left as it is.
func (d *Device) RemoveMark() error {
	return d.failure("remove the mark of", 0, 0, d.removeMark())
}

func (d *Device) removeMark() error {
	if d.info.Kind == Block {
		return nil
	}
	if !d.write {
		return ErrReadOnly
	}
	d.discarding.Lock()
	defer d.discarding.Unlock()
	for _, name := range markNames {
		err := onFD(d.main, func(fd int) error { return unix.Fremovexattr(fd, name) })
		if err != nil && !errors.Is(err, unix.ENODATA) && !unsupported(err) {
			return err
		}
	}
	return d.sync(unix.Fsync)
}
