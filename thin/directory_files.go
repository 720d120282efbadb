package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"decant/loopdev"
)

const (
	// defaultBlockBytes stands in for a file system that does not tell.
	defaultBlockBytes = 4096
	maxBlockBytes     = 1 << 20
)

// networkFileSystems do not keep the promises that the catalog and the locks are
// built on.
var networkFileSystems = map[uint32]string{
	unix.NFS_SUPER_MAGIC:  "NFS",
	unix.SMB_SUPER_MAGIC:  "SMB",
	unix.CIFS_SUPER_MAGIC: "CIFS",
	unix.SMB2_SUPER_MAGIC: "SMB",
	unix.V9FS_MAGIC:       "9p",
	unix.CODA_SUPER_MAGIC: "Coda",
	unix.AFS_SUPER_MAGIC:  "AFS",
	unix.CEPH_SUPER_MAGIC: "Ceph",
}

// fillDirectory makes the files of a pool without volumes in the empty directory.
func fillDirectory(dir, name string, sizeBytes int64) error {
	const op = "create pool"
	if err := checkEmpty(op, dir); err != nil {
		return err
	}
	blockBytes, err := suitable(op, dir)
	if err != nil {
		return err
	}
	if sizeBytes < blockBytes {
		return &Error{
			Op: op, Object: name, State: fmt.Sprintf("a size of %d bytes is less than a block of the file system", sizeBytes), Err: ErrInvalid,
			Hint: fmt.Sprintf("give it %d bytes or more", blockBytes),
		}
	}
	l, err := newLock(dir, lockFile)
	if err != nil {
		return &Error{Op: op, Object: dir, Err: err}
	}
	err = l.with(func() error {
		if err := checkEmpty(op, dir); err != nil {
			return err // somebody was faster
		}
		if err := probeFiles(op, dir, blockBytes); err != nil {
			return err
		}
		return createCatalog(dir, poolRecord{name: name, uuid: newUUID(), sizeBytes: sizeBytes, created: time.Now()})
	})
	return wrap(errors.Join(err, l.Close()), op, dir)
}

// checkEmpty is ErrExists if dir holds a pool, and ErrNotEmpty if it holds anything
// that is not left of an attempt to make one.
func checkEmpty(op, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return &Error{Op: op, Object: dir, Err: err}
	}
	var other string
	for _, entry := range entries {
		switch entry.Name() {
		case catalogFile:
			return &Error{Op: op, Object: dir, State: "holds a pool already", Err: ErrExists, Hint: "open it with thinctl pool open --dir " + dir}
		case lockFile, usersDir, "lost+found",
			newCatalogFile, newCatalogFile + "-wal", newCatalogFile + "-shm", newCatalogFile + "-journal":
		default:
			other = entry.Name()
		}
	}
	if other != "" {
		return &Error{Op: op, Object: dir, State: fmt.Sprintf("is not empty, %q is in it", other), Err: ErrNotEmpty, Hint: "name an empty or a new directory"}
	}
	return nil
}

// suitable is the block size of the file system that dir lies on, or ErrInvalid if
// no pool can be there.
func suitable(op, dir string) (blockBytes int64, err error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, &Error{Op: op, Object: dir, Err: err}
	}
	if name, found := networkFileSystems[uint32(stat.Type)]; found {
		return 0, &Error{
			Op: op, Object: dir, State: "lies on the network file system " + name, Err: ErrInvalid,
			Hint: "locks and the catalog need a local file system",
		}
	}
	blockBytes = stat.Frsize
	if blockBytes < 512 || blockBytes > maxBlockBytes || blockBytes&(blockBytes-1) != 0 {
		return defaultBlockBytes, nil
	}
	return blockBytes, nil
}

// probeFiles is ErrInvalid if files in dir cannot be punched, do not have holes,
// or do not tell where. It uses the name of the new catalog, which is made next.
func probeFiles(op, dir string, blockBytes int64) error {
	if err := loopdev.ProbePunch(dir); errors.Is(err, loopdev.ErrCannotPunch) {
		return &Error{Op: op, Object: dir, State: "the file system cannot punch holes into files", Err: errors.Join(ErrInvalid, err), Hint: "use ext4, XFS or btrfs"}
	} else if err != nil {
		return err
	}
	path := filepath.Join(dir, newCatalogFile)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	sparse, err := writesSparse(file, blockBytes)
	if err := errors.Join(err, file.Close(), os.Remove(path)); err != nil {
		return err
	}
	if !sparse {
		return &Error{
			Op: op, Object: dir, State: "the file system has no sparse files, or does not say where their data is", Err: ErrInvalid,
			Hint: "use ext4, XFS or btrfs",
		}
	}
	return nil
}

// writesSparse says whether the empty file keeps a hole before what is written
// behind it.
func writesSparse(file *os.File, blockBytes int64) (bool, error) {
	at := 256 * blockBytes
	if _, err := file.WriteAt(make([]byte, blockBytes), at); err != nil {
		return false, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return false, err
	}
	data, err := unix.Seek(int(file.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return data == at && stat.Blocks*512 < at, nil
}

// bury finishes what retiring a pool began: its name and its files go. It may be
// repeated. The caller holds the pool's lock.
func (r Registry) bury(name, dir string) error {
	err := r.locked(func() error {
		if registered, err := os.Readlink(r.link(name)); err != nil || registered != dir {
			return nil //nolint:nilerr // not registered, or it is another pool's name by now
		}
		return r.remove("destroy pool", name)
	})
	if err != nil {
		return err
	}
	// The write-ahead log goes before the catalog: a later catalog must not find
	// it. The lock goes last, so that whoever waits for it sees that all is gone.
	for _, file := range []string{usersDir, catalogFile + "-wal", catalogFile + "-shm", catalogFile, lockFile} {
		if err := os.RemoveAll(filepath.Join(dir, file)); err != nil {
			return err
		}
	}
	if err := syncPath(dir); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		return err // not empty: somebody else's files; busy: a mount point
	}
	return nil
}
