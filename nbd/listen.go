package nbd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrSocket says that a server cannot listen at a path. Nothing was changed there.
var ErrSocket = errors.New("cannot listen")

// maxSocketPathBytes is the longest path by which the kernel lets clients connect.
const maxSocketPathBytes = 107

// ListenUnix listens on a Unix socket that only the user of this process may connect
// to: mode 0600, from its first moment on. A socket that an earlier process of the same
// user left behind is replaced. Anything else at the path is refused with ErrSocket,
// as is a directory in which others could replace the socket.
//
// While it listens, PATH.lock is locked, so that two processes never take the path from
// one another. Close removes the socket, if it is still this one, and the lock.
func ListenUnix(path string) (net.Listener, error) {
	refuse := func(err error) (net.Listener, error) {
		return nil, fmt.Errorf("%w on %s: %w", ErrSocket, path, err)
	}
	if err := checkSocketPath(path); err != nil {
		return refuse(err)
	}
	dir, err := openSocketDir(filepath.Dir(path))
	if err != nil {
		return refuse(err)
	}
	defer dir.Close() //nolint:errcheck // nothing is written through it
	name := filepath.Base(path)
	lock, err := lockSocket(dir, name+".lock")
	if err != nil {
		return refuse(err)
	}
	l := &unixListener{path: path, lock: lock, lockPath: path + ".lock"}
	if err = removeStale(dir, name); err == nil {
		l.UnixListener, err = bindPrivately(dir, name)
	}
	if err == nil {
		err = unix.Lstat(path, &l.stat)
	}
	if err != nil {
		l.unlock()
		return refuse(err)
	}
	return l, nil
}

// CheckUnix finds out whether ListenUnix would refuse the path right now, and changes
// nothing. The error is an ErrSocket.
func CheckUnix(path string) error {
	err := checkSocket(path)
	if err != nil {
		return fmt.Errorf("%w on %s: %w", ErrSocket, path, err)
	}
	return nil
}

func checkSocket(path string) error {
	if err := checkSocketPath(path); err != nil {
		return err
	}
	dir, err := openSocketDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // nothing is written through it
	if err := unix.Access(dir.Name(), unix.W_OK); err != nil {
		return fmt.Errorf("no socket can be made in %s: %w", dir.Name(), err)
	}
	name := filepath.Base(path)
	fd, err := unix.Openat(int(dir.Fd()), name+".lock", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == nil {
		err = unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB)
		unix.Close(fd) //nolint:errcheck // nothing was written
		if err != nil {
			return errOtherProcess
		}
	} else if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("open %s: %w", name+".lock", err)
	}
	_, err = findStale(dir, name)
	return err
}

// checkSocketPath refuses what cannot be the path of a socket.
func checkSocketPath(path string) error {
	if len(path) > maxSocketPathBytes {
		return fmt.Errorf("the path has %d bytes, and that of a socket at most %d; take a shorter one", len(path), maxSocketPathBytes)
	}
	if base := filepath.Base(path); base == "/" || base == "." || base == ".." {
		return errors.New("it is not the path of a socket")
	}
	return nil
}

// openSocketDir opens a directory in which nobody else can replace what is ours.
func openSocketDir(path string) (*os.File, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &stat); err != nil {
		dir.Close() //nolint:errcheck // only read
		return nil, err
	}
	foreign := stat.Uid != 0 && int(stat.Uid) != os.Geteuid()
	open := stat.Mode&(unix.S_IWGRP|unix.S_IWOTH) != 0 && stat.Mode&unix.S_ISVTX == 0
	if foreign || open {
		dir.Close() //nolint:errcheck // only read
		return nil, fmt.Errorf("others may write to %s; take a directory of your own, with mode 0700", path)
	}
	return dir, nil
}

var errOtherProcess = errors.New("another process listens there")

// lockSocket takes the lock of a socket, or says who has it.
func lockSocket(dir *os.File, name string) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", name, err)
		}
		lock := os.NewFile(uintptr(fd), name)
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			lock.Close() //nolint:errcheck // nothing was written
			return nil, errOtherProcess
		}
		// Whoever had it before may have removed it after we opened it.
		var opened, there unix.Stat_t
		err = unix.Fstat(fd, &opened)
		if err == nil && unix.Fstatat(int(dir.Fd()), name, &there, unix.AT_SYMLINK_NOFOLLOW) == nil &&
			opened.Ino == there.Ino && opened.Dev == there.Dev {
			return lock, nil
		}
		lock.Close() //nolint:errcheck // nothing was written
		if err != nil {
			return nil, err
		}
	}
}

// removeStale removes a socket of ours on which nobody listens any more.
func removeStale(dir *os.File, name string) error {
	found, err := findStale(dir, name)
	if err != nil || !found {
		return err
	}
	return unix.Unlinkat(int(dir.Fd()), name, 0)
}

// findStale says whether there is a socket of ours on which nobody listens any more.
// Anything else but nothing is an error.
func findStale(dir *os.File, name string) (bool, error) {
	var stat unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, err
	case stat.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return false, errors.New("there is something else than a socket; remove it, or take another path")
	case int(stat.Uid) != os.Geteuid():
		return false, fmt.Errorf("the socket there belongs to user %d", stat.Uid)
	}
	probe, err := net.Dial("unix", procPath(dir, name)) //nolint:noctx // answers at once, or not at all
	if err == nil {
		probe.Close() //nolint:errcheck // nothing was sent
		return false, errors.New("another program listens there")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return false, fmt.Errorf("find out whether anybody listens there: %w", err)
	}
	return true, nil
}

// bindPrivately makes the socket in a directory of its own, where nobody can connect
// before it has its mode, and moves it to its name without replacing anything. The
// mask of the process is for all of its threads and stays what it is.
func bindPrivately(dir *os.File, name string) (*net.UnixListener, error) {
	private, err := os.MkdirTemp(procPath(dir, ""), ".nbd-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private) //nolint:errcheck // an empty directory with a telling name
	inside, err := os.OpenFile(private, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer inside.Close() //nolint:errcheck // nothing is written through it
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: procPath(inside, "s"), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // its name is not the one of the socket
	if err = unix.Fchmodat(int(inside.Fd()), "s", 0o600, 0); err == nil {
		err = unix.Renameat2(int(inside.Fd()), "s", int(dir.Fd()), name, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		l.Close() //nolint:errcheck // nobody has seen it
		return nil, err
	}
	return l, nil
}

// procPath is a path through an open directory: it cannot be led elsewhere, and it is
// short enough for a socket.
func procPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// unixListener removes its socket when it is closed.
type unixListener struct {
	*net.UnixListener
	path     string
	stat     unix.Stat_t
	lock     *os.File
	lockPath string
	once     sync.Once
}

// Close stops listening and removes the socket. Connections stay.
func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	l.once.Do(func() {
		var stat unix.Stat_t
		if unix.Lstat(l.path, &stat) == nil && stat.Ino == l.stat.Ino && stat.Dev == l.stat.Dev {
			os.Remove(l.path) //nolint:errcheck // the next one to listen removes it
		}
		l.unlock()
	})
	return err
}

// Addr is the path that clients use.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) unlock() {
	os.Remove(l.lockPath) //nolint:errcheck // an unlocked lock keeps nobody away
	l.lock.Close()        //nolint:errcheck // gives the lock back
}
