package loopdev

import (
	"os"

	"golang.org/x/sys/unix"
)

// describeAttributes notes what a file system does with the bytes of the file on
// their way to the medium. One that does nothing of the kind does not say so, and
// needs not to.
func (i *Info) describeAttributes(f *os.File) error {
	stx, err := statx(f, 0)
	if err != nil {
		return err
	}
	has := func(attribute uint64) bool { return stx.Attributes&attribute != 0 }
	i.Encrypted = has(unix.STATX_ATTR_ENCRYPTED)
	i.Verity = has(unix.STATX_ATTR_VERITY)
	i.Compressed = has(unix.STATX_ATTR_COMPRESSED)
	return nil
}

// CompressedBytes is how many bytes of the device are compressed on their file
// system: of them a discard gives back less than it empties. Where the file system
// cannot tell, it is ErrNotCountable.
func (d *Device) CompressedBytes() (int64, error) {
	if d.info.Kind == Block {
		return 0, d.failure("count the compressed space of", 0, 0, ErrNotCountable)
	}
	n, err := d.mappedBytes(fiemapExtentEncoded)
	return n, d.failure("count the compressed space of", 0, 0, err)
}
