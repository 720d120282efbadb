package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Version of the ioctl protocol or of a target type.
type Version struct{ Major, Minor, Patch uint32 }

// String is like "4.47.0".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// AtLeast says whether v has the same major version as want and is not older.
func (v Version) AtLeast(want Version) bool {
	if v.Major != want.Major {
		return false
	}
	return v.Minor > want.Minor || v.Minor == want.Minor && v.Patch >= want.Patch
}

var (
	oldest    = Version{Major: unix.DM_VERSION_MAJOR, Minor: 37} // events in lists, and poll
	withUUIDs = Version{Major: unix.DM_VERSION_MAJOR, Minor: 45} // UUIDs in lists
)

// How much room answers get. The state of a device and a pool's status, which are asked
// for most, fit into the first buffer; the last one is a bound on what a faulty kernel can
// make us take. A message is never repeated, so its answer has one size.
const (
	firstAnswerBytes   = 512
	lastAnswerBytes    = 16 << 20
	messageAnswerBytes = 16 << 10
)

// Control is an open connection to the kernel's device-mapper. All methods may be
// called from several goroutines at a time; the kernel puts those that concern the
// same device into an order.
type Control struct {
	file    *os.File
	version Version
	nodes   nodes
}

// Open connects to the device-mapper. It needs root, and makes the node
// /dev/mapper/control if the kernel has a device-mapper and nobody made the node.
func Open() (*Control, error) {
	nodes := systemNodes()
	file, err := nodes.openControl()
	if err != nil {
		return nil, failure("open", "", err)
	}
	c := &Control{file: file, nodes: nodes}
	if err := c.checkVersion(); err != nil {
		_ = c.Close() // was only asked for its version
		return nil, failure("open", "", err)
	}
	return c, nil
}

// Close ends the connection once the calls in flight have returned. Devices stay.
func (c *Control) Close() error { return failure("close", "", c.file.Close()) }

// Version is that of the kernel's side of the ioctl protocol.
func (c *Control) Version() Version { return c.version }

func (c *Control) checkVersion() error {
	a, err := c.call(&request{command: unix.DM_VERSION})
	if err != nil {
		return err
	}
	v := a.header.Version
	c.version = Version{Major: v[0], Minor: v[1], Patch: v[2]}
	if !c.version.AtLeast(oldest) {
		return fmt.Errorf("%w: it has version %v, %v is asked for", ErrTooOld, c.version, oldest)
	}
	return nil
}

// call carries out a request whose answer is the header, or is of no interest.
func (c *Control) call(r *request) (*answer, error) {
	buffer := r.encode(0)
	if err := c.ioctl(r.command, buffer); err != nil {
		return nil, err
	}
	return decodeAnswer(buffer)
}

// query carries out a request with data in its answer. It is repeated with a larger
// buffer until the answer fits, so it must be one that changes nothing.
func (c *Control) query(r *request) (*answer, error) {
	for size := firstAnswerBytes; size <= lastAnswerBytes; size *= 8 {
		buffer := r.encode(size)
		if err := c.ioctl(r.command, buffer); err != nil {
			return nil, err
		}
		a, err := decodeAnswer(buffer)
		if err != nil || !a.has(unix.DM_BUFFER_FULL_FLAG) {
			return a, err
		}
	}
	return nil, ErrAnswerTooLong
}

// ioctl keeps the descriptor open for as long as the kernel works on it, also if
// Close is called meanwhile.
func (c *Control) ioctl(command uint, buffer []byte) error {
	connection, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var errno error
	if connection.Control(func(fd uintptr) { errno = ioctl(fd, command, buffer) }) != nil {
		return os.ErrClosed // what Control minds can be nothing else
	}
	return errno
}

// ioctl goes on after a signal: an interrupted request has not taken effect, and the
// Go runtime sends signals of its own. The kernel leaves the buffer of a request that
// failed as it was, save for the version.
func ioctl(fd uintptr, command uint, buffer []byte) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(command), uintptr(unsafe.Pointer(unsafe.SliceData(buffer))))
		runtime.KeepAlive(buffer)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// openControl opens the control node, and makes it where there is none.
func (n nodes) openControl() (*os.File, error) {
	path := filepath.Join(n.dir, unix.DM_CONTROL_NODE)
	// Not os.OpenFile: the descriptor must stay out of the runtime's poller, which
	// would be woken by every event of every device.
	fd, err := openControlNode(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = n.makeControl(path); err == nil {
			fd, err = openControlNode(path)
		}
	}
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("%w (%s: %w)", ErrNoDeviceMapper, path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w; it takes root", err)
	case err != nil:
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func openControlNode(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// makeControl makes the control node if the kernel names its number.
func (n nodes) makeControl(path string) error {
	misc, err := os.ReadFile(n.misc)
	if err != nil {
		return fmt.Errorf("%w (%w)", ErrNoDeviceMapper, err)
	}
	for line := range strings.Lines(string(misc)) {
		var minor uint32
		var name string
		if _, err := fmt.Sscan(line, &minor, &name); err != nil || name != "device-mapper" {
			continue // lines of other drivers, in whatever form
		}
		const miscMajor = 10
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return err
		}
		err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(miscMajor, minor)))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &fs.PathError{Op: "mknod", Path: path, Err: err}
		}
		return nil
	}
	return fmt.Errorf("%w (%s does not list it)", ErrNoDeviceMapper, n.misc)
}
