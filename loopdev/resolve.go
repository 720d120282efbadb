package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// handle is an object that a path was resolved to, once. It can be looked at but
// neither read nor written, so that opening it has no effect on a fifo or a tape.
type handle struct {
	file *os.File
	path string // absolute, without symbolic links
	stat unix.Stat_t
}

func (h *handle) close() {
	h.file.Close() //nolint:errcheck // a descriptor without I/O has nothing to lose
}

// resolve follows ordinary symbolic links, and refuses those of /proc that lead
// to whatever a process has open.
func resolve(path string) (*handle, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Openat2(unix.AT_FDCWD, path, how)
		return err
	})
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: give the path of the image itself, not a link of /proc or /dev/fd", err)
	}
	if err != nil {
		return nil, err
	}
	return newHandle(fd, path)
}

func newHandle(fd int, path string) (*handle, error) {
	h := &handle{file: os.NewFile(uintptr(fd), path)}
	err := unix.Fstat(fd, &h.stat)
	if err == nil {
		h.path, err = os.Readlink(fdPath(fd))
	}
	if err != nil {
		h.close()
		return nil, bare(err)
	}
	return h, nil
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// reopen opens the object of the handle for I/O; its path is not looked at again.
func (h *handle) reopen(flags int) (*os.File, error) {
	var fd int
	err := onFD(h.file, func(path int) (err error) {
		fd, err = unix.Open(fdPath(path), flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	// O_NONBLOCK was for the open only; with it package os would try to poll.
	if err := setFlag(fd, unix.O_NONBLOCK, false); err != nil {
		unix.Close(fd) //nolint:errcheck // nothing was written through it
		return nil, err
	}
	return os.NewFile(uintptr(fd), h.path), nil
}

// unopened names the reason why the file cannot be opened, where it is none of its
// permissions.
func (h *handle) unopened(err error) error {
	var i Info
	switch {
	case errors.Is(err, unix.ENOKEY):
		return fmt.Errorf("%w: it is encrypted, and its directory is locked", err)
	case !errors.Is(err, unix.EPERM):
		return err
	case i.describeAttributes(h.file) == nil && i.Verity:
		return fmt.Errorf("%w: fs-verity protects it against every change", err)
	}
	return fmt.Errorf("%w: an immutable or append-only file cannot be opened for writing, see lsattr", err)
}

func setFlag(fd, flag int, on bool) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if flags &^= flag; on {
		flags |= flag
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
	return err
}

// create makes a sparse file that did not exist before, and makes its size and
// its name durable. What it made is removed again if it fails.
func create(path string, bytes int64, within *Confine) (*handle, error) {
	dir, err := within.resolve(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.close()
	parent, err := dir.reopen(unix.O_RDONLY | unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer parent.Close() //nolint:errcheck // opened for reading
	name := filepath.Base(path)
	var h *handle
	err = onFD(parent, func(at int) error {
		fd, err := unix.Openat(at, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		if h, err = sizeAndSync(fd, path, bytes, parent); err != nil {
			unix.Unlinkat(at, name, 0) //nolint:errcheck // best effort; the first error is the one to report
		}
		return err
	})
	return h, err
}

func sizeAndSync(fd int, path string, bytes int64, parent *os.File) (*handle, error) {
	h, err := newHandle(fd, path)
	if err != nil {
		return nil, err
	}
	err = h.file.Truncate(bytes)
	if err == nil {
		err = h.file.Sync()
	}
	if err == nil {
		err = parent.Sync()
	}
	if err == nil {
		err = unix.Fstat(fd, &h.stat)
	}
	if err != nil {
		h.close()
		return nil, bare(err)
	}
	return h, nil
}

// virtualFileSystems hold files that look regular but are a view of the kernel.
var virtualFileSystems = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.DEBUGFS_MAGIC: true, unix.TRACEFS_MAGIC: true,
	unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true, unix.SECURITYFS_MAGIC: true,
	unix.SELINUX_MAGIC: true, unix.EFIVARFS_MAGIC: true, unix.BPF_FS_MAGIC: true, unix.PSTOREFS_MAGIC: true,
	unix.BINFMTFS_MAGIC: true, unix.NSFS_MAGIC: true,
}

// checkRegular refuses files of the kernel.
func (h *handle) checkRegular() error {
	var st unix.Statfs_t
	if err := onFD(h.file, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return err
	}
	if virtualFileSystems[int64(st.Type)] {
		return fmt.Errorf("%w but a view of the kernel", ErrWrongType)
	}
	return nil
}

// typeName is what a refused object is, for the error message.
func (h *handle) typeName() string {
	switch h.stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFIFO:
		return "a fifo"
	case unix.S_IFCHR:
		return "a character device"
	case unix.S_IFSOCK:
		return "a socket"
	}
	return fs.FileMode(h.stat.Mode & unix.S_IFMT).String()
}
