package thin

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	usersDir = "users"
	// userRecordBytes is the size of a file in usersDir. It never changes, so that
	// a record is replaced by one write.
	userRecordBytes = 128
)

// userRecord is what a handle tells the others about itself.
type userRecord struct {
	PID int `json:"pid"`
	// GrantedBytes is what the handle may allocate without asking again. Part of
	// it may be allocated already.
	GrantedBytes int64 `json:"granted_bytes"`
}

// user is an open handle of a pool, as the others see it: a file that is held by
// flock as long as the handle is open. It need not be durable, because after a
// power loss there are no handles.
type user struct {
	file *os.File
}

// enroll makes the file of a new handle. The caller holds the pool's lock, so
// nobody sees the file before it is held.
func enroll(dir string) (*user, error) {
	if err := os.Mkdir(filepath.Join(dir, usersDir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	path := filepath.Join(dir, usersDir, fmt.Sprintf("%d-%s", os.Getpid(), rand.Text()))
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	u := &user{file: file}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), u.leave())
	}
	if err := u.setGrant(0); err != nil {
		return nil, errors.Join(err, u.leave())
	}
	return u, nil
}

// setGrant replaces the record of the handle. The caller holds the pool's lock.
func (u *user) setGrant(bytes int64) error {
	record, err := json.Marshal(userRecord{PID: os.Getpid(), GrantedBytes: bytes})
	if err != nil {
		return err
	}
	_, err = u.file.WriteAt(fmt.Appendf(nil, "%-*s\n", userRecordBytes-1, record), 0)
	return err
}

// leave removes the file of the handle, and with it the grant.
func (u *user) leave() error {
	err := os.Remove(u.file.Name())
	if errors.Is(err, os.ErrNotExist) {
		err = nil // destroying the pool has removed it
	}
	return errors.Join(err, u.file.Close())
}

// otherUsers are the records of all open handles but self, which may be nil.
// Files that dead processes left are removed. The caller holds the pool's lock.
func otherUsers(dir string, self *user) ([]userRecord, error) {
	entries, err := os.ReadDir(filepath.Join(dir, usersDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var records []userRecord
	for _, entry := range entries {
		path := filepath.Join(dir, usersDir, entry.Name())
		if self != nil && path == self.file.Name() {
			continue
		}
		record, alive, err := readUser(path)
		if err != nil {
			return nil, err
		}
		if alive {
			records = append(records, record)
		}
	}
	return records, nil
}

// readUser reads the record at path if a living handle holds it, and else removes
// the file.
func readUser(path string) (record userRecord, alive bool, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return userRecord{}, false, nil // it has just left
	}
	if err != nil {
		return userRecord{}, false, err
	}
	defer file.Close() //nolint:errcheck // only read
	switch err := unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
	case err == nil:
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return userRecord{}, false, err
		}
		return userRecord{}, false, nil
	case !errors.Is(err, unix.EWOULDBLOCK):
		return userRecord{}, false, fmt.Errorf("lock %s: %w", path, err)
	}
	text, err := io.ReadAll(io.LimitReader(file, userRecordBytes))
	if err == nil {
		err = json.Unmarshal(text, &record)
	}
	if err != nil {
		// Without its number there is no telling what is free.
		return userRecord{}, false, fmt.Errorf("read the space granted to another process from %s: %w", path, err)
	}
	return record, true, nil
}
