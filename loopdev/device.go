package loopdev

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is what a device turned out to be.
type Kind string

// The kinds. A loop device over a block device is a Block.
const (
	File  Kind = "file"  // a regular file, all of it
	Loop  Kind = "loop"  // a loop device over a regular file, or a partition of one
	Block Kind = "block" // any other block device
)

// Options says what a device is opened for.
type Options struct {
	// Write is needed for a destination, and for a source that will be discarded.
	Write bool
	// Exclusive refuses a device that somebody else uses, with ErrInUse, and
	// keeps others of this program out until Close. A regular file, also the one
	// behind a loop device, is locked by flock on its inode; a block device and
	// the loop device itself are opened with O_EXCL, which fails if they are
	// mounted or part of another device, but for one of our own (see Stacked). With Write, a partition of a loop device
	// claims the whole disk, so that none of its other partitions is in use.
	Exclusive bool
	// CreateBytes, if not 0, makes a sparse regular file of this size that must
	// not exist yet. File and name are durable when Open returns.
	CreateBytes int64
	// Confine limits what the path may lead to, and how; nil: as usual.
	Confine *Confine
}

// Info describes a device as it was when it was opened.
type Info struct {
	Kind Kind
	// Path is absolute and without symbolic links.
	Path string
	// BackingPath is the file behind a loop device; of a File it is Path, of a
	// Block it is empty.
	BackingPath string
	// Offset is the byte of the backing file at which the device begins.
	Offset int64
	// Bytes is the size of the device. A loop device without a size limit is as
	// long as the rest of its file, also where the kernel leaves off a last
	// piece that fills no sector.
	Bytes int64
	// Key is the same for the same object after a rename, a reboot or another
	// order of attachment, and different for any other object.
	Key string
	// Dev and Inode are of the (backing) file; a Block has its own device number
	// as Dev and no inode. They hold until the next reboot only.
	Dev   uint64
	Inode uint64
	// Links, UID and Modified are of the (backing) file.
	Links    uint64
	UID      uint32
	Modified time.Time
	// FSType is the file system that the (backing) file lies on, as in
	// /proc/self/mountinfo; empty for a Block.
	FSType string
	// Encrypted, Verity and Compressed are what the file system does with the
	// (backing) file: fscrypt, fs-verity (which lets nobody write to it), and
	// compression, as far as the file itself is set to it; see CompressedBytes.
	Encrypted, Verity, Compressed bool
	// LogicalBlockBytes is the smallest unit that can be read or written past
	// the page cache, and no smaller than a block of the loop device.
	LogicalBlockBytes int64
	// DirectIO says whether data goes past the page cache.
	DirectIO bool
}

// Device is an open image file, loop device or block device. All methods may be
// called concurrently; ranges of concurrent writes must not overlap. All offsets
// are from the start of the device. After Close every method fails with
// os.ErrClosed.
type Device struct {
	info        Info
	write       bool
	exclusive   bool
	unitBytes   int64    // of direct I/O: what offsets and lengths are multiples of
	memoryBytes int64    // of direct I/O: what addresses are multiples of
	blockBytes  int64    // what can be given back: block of the file system or device
	main        *os.File // direct if possible; holds the lock
	loops       []*os.File

	cachedLock sync.RWMutex
	cached     *os.File // buffered, opened when it is first needed

	edges sync.Mutex // one unaligned write to a block device at a time
	seek  sync.Mutex // the file position, which SEEK_DATA moves

	flushing sync.Mutex
	flushErr error // the first failure to make data durable; nothing is known after it

	discarding sync.Mutex // modification time and mark of the file
	keep       bool
	kept       time.Time // what every Discard restores
	own        time.Time // what an interrupted Discard of ours has left instead
	watch      *watch    // of who opens the file; nil without KeepModified, or without inotify
	opened     bool      // since it was last certain that nobody else may write

	// step is called between the steps of a Discard with the name of the one that has
	// just ended, or of a question that it asks. Tests do there what others might.
	step func(name string)
}

// Open finds out what path leads to and opens it. Ordinary symbolic links are
// followed once. A path to anything but a regular file or a block device is
// refused with ErrWrongType, without side effects on what it leads to.
func Open(path string, o Options) (*Device, error) {
	d, err := open(path, o)
	return d, failure("open", path, 0, 0, err)
}

func open(path string, o Options) (d *Device, err error) {
	h, err := find(path, o)
	if err != nil {
		return nil, err
	}
	defer h.close()
	d = &Device{write: o.Write, exclusive: o.Exclusive, step: func(string) {}}
	switch h.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		d.info = Info{Kind: File, Path: h.path, BackingPath: h.path}
		err = d.openFile(h)
		d.info.Bytes = h.stat.Size
	case unix.S_IFBLK:
		err = d.openNode(h)
	default:
		err = fmt.Errorf("%w but %s", ErrWrongType, h.typeName())
	}
	if err != nil {
		d.Close() //nolint:errcheck // nothing was written yet, and the first error is the one to report
		if o.CreateBytes > 0 {
			os.Remove(h.path) //nolint:errcheck // best effort to leave nothing behind; it was made a moment ago by us
		}
		return nil, err
	}
	return d, nil
}

func find(path string, o Options) (*handle, error) {
	if o.CreateBytes > 0 {
		return create(path, o.CreateBytes, o.Confine)
	}
	return o.Confine.resolve(path)
}

// openFile opens the regular file that holds the data, and describes it.
func (d *Device) openFile(h *handle) (err error) {
	if err := h.checkRegular(); err != nil {
		return err
	}
	if err := d.awaitLock(h); err != nil {
		return err
	}
	if d.main, err = h.reopen(d.access() | unix.O_DIRECT); errors.Is(err, unix.EINVAL) {
		d.main, err = h.reopen(d.access())
	}
	if err != nil {
		return h.unopened(err)
	}
	if err := d.lock(d.main); err != nil {
		return err
	}
	// Only now is it certain that no other instance of this program changes it.
	if err := onFD(d.main, func(fd int) error { return unix.Fstat(fd, &h.stat) }); err != nil {
		return err
	}
	d.info.Dev, d.info.Inode, d.info.Links = h.stat.Dev, h.stat.Ino, uint64(h.stat.Nlink)
	d.info.UID, d.info.Modified = h.stat.Uid, time.Unix(h.stat.Mtim.Unix())
	if err := d.info.describeAttributes(d.main); err != nil {
		return err
	}
	if d.info.FSType, err = fileSystemType(d.main); err != nil {
		return err
	}
	if d.info.Key, err = fileKey(d.main); err != nil {
		return err
	}
	if d.blockBytes, err = fileBlockBytes(d.main); err != nil {
		return err
	}
	return d.alignFile(h.stat.Size)
}

func (d *Device) access() int {
	if d.write {
		return unix.O_RDWR
	}
	return unix.O_RDONLY
}

// awaitLock takes the lock of a file that is going to be opened for writing, and
// gives it up at once: whoever empties the file must see nobody open it for writing
// who cannot have it (see Discard).
func (d *Device) awaitLock(h *handle) error {
	if !d.exclusive || !d.write {
		return nil
	}
	f, err := h.reopen(unix.O_RDONLY)
	if err != nil {
		return h.unopened(err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	if err = d.lock(f); errors.Is(err, unix.EBADF) {
		return nil // a network file system that locks only what can be written
	}
	return err
}

// lock keeps other instances of this program out, and whoever else honours flock.
// It is patient for a moment: udev locks a block device while it looks at it, and a
// process that was killed keeps its locks until its last input or output has ended.
func (d *Device) lock(f *os.File) error {
	if !d.exclusive {
		return nil
	}
	const attempts, pause = 20, 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		err := onFD(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if attempt == attempts {
			return fmt.Errorf("%w: another process, perhaps another migration, holds a lock on it: %w", ErrInUse, err)
		}
		time.Sleep(pause)
	}
}

// openBlock opens the block device that holds the data.
func (d *Device) openBlock(h *handle, n node) (err error) {
	d.info = Info{Kind: Block, Path: h.path, Dev: n.dev}
	flags := d.access() | unix.O_DIRECT
	if d.exclusive {
		flags |= unix.O_EXCL
	}
	d.main, err = h.reopen(flags)
	if d.exclusive && errors.Is(err, unix.EBUSY) {
		d.main, err = openBeside(h, n, flags, err)
	}
	if err != nil {
		return claimed(err)
	}
	if err := d.lock(d.main); err != nil {
		return err
	}
	var readOnly int
	err = onFD(d.main, func(fd int) (err error) {
		if readOnly, err = unix.IoctlGetInt(fd, unix.BLKROGET); err != nil {
			return err
		}
		if d.info.Bytes, err = blockDeviceBytes(fd); err != nil {
			return err
		}
		sector, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
		d.info.LogicalBlockBytes = int64(sector)
		return err
	})
	if err != nil {
		return err
	}
	if d.write && readOnly != 0 {
		return fmt.Errorf("the block device is read-only: %w", unix.EROFS)
	}
	d.unitBytes, d.memoryBytes, d.blockBytes = d.info.LogicalBlockBytes, d.info.LogicalBlockBytes, d.info.LogicalBlockBytes
	d.info.DirectIO = true
	if d.info.Bytes%d.unitBytes != 0 {
		return fmt.Errorf("its size of %d bytes is no multiple of its blocks of %d bytes", d.info.Bytes, d.unitBytes)
	}
	if d.info.Bytes == 0 {
		return fmt.Errorf("the block device has no size, nothing is attached to it: %w", unix.ENXIO)
	}
	d.info.Key, err = blockKey(n)
	return err
}

// claimed names the reason why O_EXCL failed.
func claimed(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: mounted, swap, or part of another device: %w", ErrInUse, err)
	}
	return err
}

// Info describes the device as it was when it was opened.
func (d *Device) Info() Info { return d.info }

// Bytes is the size of the device when it was opened; it does not change.
func (d *Device) Bytes() int64 { return d.info.Bytes }

// Close gives up locks and claims. It does not flush. I/O under way goes
// on to its end. A second Close fails with os.ErrClosed.
func (d *Device) Close() error {
	defer d.stopWatch() // last, for it waits for a Discard, which may need what is locked here
	d.cachedLock.Lock()
	defer d.cachedLock.Unlock()
	var err error
	if d.main != nil { // it is nil if Open itself gives up
		err = d.main.Close()
	}
	if d.cached != nil {
		d.cached.Close() //nolint:errcheck // durability is what Flush tells, and only Flush
		d.cached = nil
	}
	for _, loop := range d.loops {
		// Others shall see through the loop device what was written behind its
		// back. If it fails they read what was there before.
		onFD(loop, dropCache) //nolint:errcheck // the data itself is not concerned
	}
	d.closeLoops()
	return d.failure("close", 0, 0, err)
}

// inside refuses a range that does not lie on the device.
func (d *Device) inside(off, n int64) error {
	if off < 0 || n < 0 || off > d.info.Bytes || n > d.info.Bytes-off {
		return fmt.Errorf("not inside the device of %d bytes: %w", d.info.Bytes, unix.EINVAL)
	}
	return nil
}

// writable refuses a range that may not be written, and a device that was opened
// for reading.
func (d *Device) writable(off, n int64) error {
	if !d.write {
		return ErrReadOnly
	}
	return d.inside(off, n)
}
