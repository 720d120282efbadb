package journal

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrNetworkFS: the file system is not this kernel's own down to the disk,
	// so that its locks, shared memory and syncs are not to be relied on.
	ErrNetworkFS = errors.New("network or layered file system")
	// ErrVolatileFS: the file system loses everything when the host restarts.
	ErrVolatileFS = errors.New("file system in memory, lost at a restart")
)

// FileSystemError says that a directory is on a file system that cannot keep a
// journal. It matches ErrNetworkFS or ErrVolatileFS with errors.Is.
type FileSystemError struct {
	Dir        string
	FileSystem string // its common name, such as nfs or tmpfs
	Reason     error  // ErrNetworkFS or ErrVolatileFS
}

// Error names the directory and its file system, and what to do.
func (e *FileSystemError) Error() string {
	return fmt.Sprintf("directory %s is on %s: %v; keep journals on a local disk, on ext4, XFS or btrfs", e.Dir, e.FileSystem, e.Reason)
}

// Unwrap is the reason.
func (e *FileSystemError) Unwrap() error { return e.Reason }

type unfit struct {
	name   string
	reason error
}

// Those that x/sys/unix has no name for are from the kernel's own sources.
var unfitFileSystems = map[uint32]unfit{
	unix.NFS_SUPER_MAGIC:       {"nfs", ErrNetworkFS},
	unix.CIFS_SUPER_MAGIC:      {"cifs", ErrNetworkFS},
	unix.SMB2_SUPER_MAGIC:      {"smb2", ErrNetworkFS},
	unix.SMB_SUPER_MAGIC:       {"smb", ErrNetworkFS},
	unix.V9FS_MAGIC:            {"9p", ErrNetworkFS},
	unix.AFS_FS_MAGIC:          {"afs", ErrNetworkFS},
	unix.AFS_SUPER_MAGIC:       {"afs", ErrNetworkFS},
	unix.CEPH_SUPER_MAGIC:      {"ceph", ErrNetworkFS},
	unix.CODA_SUPER_MAGIC:      {"coda", ErrNetworkFS},
	unix.NCP_SUPER_MAGIC:       {"ncp", ErrNetworkFS},
	unix.OVERLAYFS_SUPER_MAGIC: {"overlay", ErrNetworkFS},
	0x0BD00BD0:                 {"lustre", ErrNetworkFS},
	0x01161970:                 {"gfs2", ErrNetworkFS},
	unix.TMPFS_MAGIC:           {"tmpfs", ErrVolatileFS},
	unix.RAMFS_MAGIC:           {"ramfs", ErrVolatileFS},
}

// CheckFileSystem says whether journals can be kept in dir, which must exist. It
// is a *FileSystemError if not; a caller may accept one that matches
// ErrVolatileFS where nobody minds losing the migration at a restart.
func CheckFileSystem(dir string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("find the file system of directory %s: %w", dir, err)
	}
	return checkMagic(dir, uint32(s.Type))
}

func checkMagic(dir string, magic uint32) error {
	if found, bad := unfitFileSystems[magic]; bad {
		return &FileSystemError{Dir: dir, FileSystem: found.name, Reason: found.reason}
	}
	return nil
}
