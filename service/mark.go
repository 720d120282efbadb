package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/loopdev"
)

// The roles that a mark can give its object.
const (
	givingRole    = loopdev.GivingRole // it is being emptied: its holes are not data
	receivingRole = "destination"      // it is being filled: it is not whole yet
)

// marks reads and writes the mark of an end: on the object itself, or where that
// cannot carry one, in a record beside the journal (I11).
type marks struct {
	s *Service
	e *end
}

func (m marks) read() (loopdev.Mark, bool, error) {
	mark, ok, err := m.e.ReadMark()
	if ok || err != nil && !errors.Is(err, loopdev.ErrNoMark) {
		return mark, ok, err
	}
	data, err := os.ReadFile(m.path())
	if errors.Is(err, os.ErrNotExist) {
		return loopdev.Mark{}, false, nil
	}
	if err != nil {
		return loopdev.Mark{}, false, err
	}
	if err := json.Unmarshal(data, &mark); err != nil || mark.ID == "" {
		return loopdev.Mark{}, false, fmt.Errorf("%s is no mark: %w", m.path(), err)
	}
	return mark, true, nil
}

// write returns nil only if the mark survives a power loss.
func (m marks) write(mark loopdev.Mark) error {
	err := m.e.WriteMark(mark)
	if !errors.Is(err, loopdev.ErrNoMark) {
		return err
	}
	data, err := json.Marshal(mark)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(m.path()), 0o700); err != nil {
		return err
	}
	return replaceDurably(m.path(), data)
}

func (m marks) remove() error {
	err := m.e.RemoveMark()
	if err != nil && !errors.Is(err, loopdev.ErrNoMark) {
		return err
	}
	if err := os.Remove(m.path()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (m marks) path() string { return m.s.markPath(m.e.Info().Key) }

// replaceDurably makes path hold data, or what it held before, whatever happens.
func replaceDurably(path string, data []byte) error {
	temporary, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temporary.Name()) }() // gone already if all went well
	_, err = temporary.Write(data)
	if err = errors.Join(err, temporary.Sync(), temporary.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary.Name(), path); err != nil {
		return err
	}
	return syncDirs(filepath.Dir(path), filepath.Dir(filepath.Dir(path)))
}

func syncDirs(dirs ...string) error {
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

// marker keeps the mark of one run on the giving end. It is the clone.Marker.
type marker struct {
	marks
	id          string
	journalPath string
	journalFile os.FileInfo // as it was when it was opened
}

// Mark records that discards of transactions up to tx may have begun. It refuses
// if the journal that would say so is no longer where the next run looks for it.
func (m *marker) Mark(tx journal.TxID) error {
	now, err := os.Stat(m.journalPath)
	if err != nil {
		return fmt.Errorf("the journal is gone: %w", err)
	}
	if !os.SameFile(now, m.journalFile) {
		return fmt.Errorf("the journal %s was replaced: %w", m.journalPath, unix.ESTALE)
	}
	return m.write(loopdev.Mark{ID: m.id, Role: givingRole, Tx: uint64(tx), Since: time.Now()})
}
