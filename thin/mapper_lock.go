package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// hostLockDir is where the locks of dm-thin pools are: the devices are the host's, and
// so are the locks, whatever state directory a process uses. It is empty after a
// reboot, as is the kernel's list of devices.
const hostLockDir = "/run/decant/pools"

// activationLock is held while a pool that is not active is looked at or made
// active. It is taken after the lock of a pool.
const activationLock = ".activation.lock"

// newHostLock opens one of the locks. It does not take it.
func newHostLock(name string) (*lock, error) {
	// Others have business in the upper directory.
	if err := os.MkdirAll(filepath.Dir(hostLockDir), 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(hostLockDir, 0o700); err != nil {
		return nil, err
	}
	return newLock(hostLockDir, name)
}

// withActivation runs f while no other process activates a pool.
func withActivation(f func() error) error {
	l, err := newHostLock(activationLock)
	if err != nil {
		return err
	}
	return errors.Join(l.with(f), l.Close())
}

// newMapperLock is the lock that excludes other processes from changing a pool.
func newMapperLock(uuid string) (*lock, error) { return newHostLock(uuid + ".lock") }

// handleFile is held shared by every open handle of a pool.
type handleFile struct{ file *os.File }

// openHandleFile counts a new handle among the users of the pool. The caller holds
// the pool's lock.
func openHandleFile(uuid string) (handleFile, error) {
	file, err := os.OpenFile(filepath.Join(hostLockDir, uuid+".users"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return handleFile{}, err
	}
	h := handleFile{file: file}
	if err := h.lock(unix.LOCK_SH); err != nil {
		return h, errors.Join(err, file.Close())
	}
	return h, nil
}

func (h handleFile) lock(how int) error {
	for {
		err := unix.Flock(int(h.file.Fd()), how|unix.LOCK_NB)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("lock %s: %w", h.file.Name(), err)
		}
		return nil
	}
}

// others names the other open handles of the pool, and is empty if there are none.
// The caller holds the pool's lock, so none is opened meanwhile.
func (h handleFile) others() (string, error) {
	err := h.lock(unix.LOCK_EX)
	holders := ""
	if errors.Is(err, unix.EWOULDBLOCK) {
		// The kernel gave up this handle's lock for the attempt.
		holders, err = lockHolders(h.file), nil
	}
	return holders, errors.Join(err, h.lock(unix.LOCK_SH))
}

// checkAlone is ErrInUse if another handle is open.
func (h handleFile) checkAlone(op, object string) error {
	others, err := h.others()
	if err != nil || others == "" {
		return err
	}
	return &Error{Op: op, Object: object, State: "is in use by " + others, Err: ErrInUse, Hint: "end that process first"}
}

func (h handleFile) Close() error { return h.file.Close() }
