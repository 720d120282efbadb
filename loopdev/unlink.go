package loopdev

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrReplaced: another object has the name by now.
var ErrReplaced = errors.New("another object has this name by now")

// Unlink removes the name of a regular file. Nothing is removed if the name leads to
// another object by now, or if its directory was exchanged for a link: that is
// ErrReplaced, or the error of looking there. The device stays open.
func (d *Device) Unlink() error {
	return d.failure("remove", 0, 0, d.unlink())
}

func (d *Device) unlink() error {
	if d.info.Kind != File {
		return ErrWrongType
	}
	// The path has no symbolic links, so none is followed.
	dir, err := (&Confine{}).resolve(filepath.Dir(d.info.Path))
	if err != nil {
		return err
	}
	defer dir.close()
	name := filepath.Base(d.info.Path)
	return onFD(dir.file, func(at int) error {
		var st unix.Stat_t
		if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Dev != d.info.Dev || st.Ino != d.info.Inode {
			return fmt.Errorf("%w: it is left alone", ErrReplaced)
		}
		return unix.Unlinkat(at, name, 0)
	})
}
