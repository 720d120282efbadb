package nbd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoKernel says that the kernel offers no client that can be asked by netlink: the
// module nbd is not there or not loaded.
var ErrNoKernel = errors.New("the kernel has no nbd client; load it with: modprobe nbd")

// KernelError is what the kernel's client answered. Unwrap leads to the errno.
type KernelError struct {
	Op    string // connect, reconfigure, disconnect, status
	Index int    // of /dev/nbdN; -1 for any
	Err   error
}

// Error is a sentence without a full stop.
func (e *KernelError) Error() string {
	if e.Index < 0 {
		return fmt.Sprintf("%s a network block device: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Op, KernelDevicePath(e.Index), e.Err)
}

// Unwrap is the cause.
func (e *KernelError) Unwrap() error { return e.Err }

func kernelFailure(op string, index int, err error) error {
	if err == nil {
		return nil
	}
	var answer *netlink.OpError
	if errors.As(err, &answer) {
		err = answer.Err // what it adds is for programmers
	}
	return &KernelError{Op: op, Index: index, Err: err}
}

// KernelDevicePath is the node of a network block device.
func KernelDevicePath(index int) string { return fmt.Sprintf("/dev/nbd%d", index) }

// KernelDevice is how the kernel's client is to use an export.
type KernelDevice struct {
	// Index is the number of /dev/nbdN; -1 takes a free one.
	Index int
	Bytes int64
	// BlockBytes is the logical block size: a power of two from 512 to the page size.
	BlockBytes int64
	// Backend is a text that sysfs shows and that Reconfigure has to repeat (since
	// Linux 5.14): it tells whose device this is.
	Backend string
	// ReadOnly makes the block device read-only.
	ReadOnly bool
	// DeadTime is how long I/O waits for Reconfigure after the connection was lost,
	// before it fails with EIO. It is rounded up to seconds. 0 fails at once.
	DeadTime time.Duration
	// AskTime is how often the kernel looks at requests that are not answered. It has
	// two effects: that long after Reconfigure at most it sends again what the old
	// connection has not answered, and that often it says in its log that a request
	// takes long. 0 leaves it as it is, which is 30 s, and so does a kernel that does
	// not let it be set.
	AskTime time.Duration
}

// Attributes and commands of <linux/nbd-netlink.h>.
const (
	kernelFamily = "nbd"

	kernelAttrIndex       = 1
	kernelAttrSizeBytes   = 2
	kernelAttrBlockBytes  = 3
	kernelAttrTimeout     = 4
	kernelAttrServerFlags = 5
	kernelAttrSockets     = 7
	kernelAttrDeadTime    = 8
	kernelAttrDeviceList  = 9
	kernelAttrBackend     = 10

	kernelAttrItem      = 1 // of a list of sockets or devices
	kernelAttrSocketFD  = 1
	kernelAttrDevIndex  = 1
	kernelAttrConnected = 2

	kernelConnect     = 1
	kernelDisconnect  = 2
	kernelReconfigure = 3
	kernelStatus      = 5
)

// ConnectKernel gives the kernel's client the device and a connection that is past the
// handshake, and returns the index of the block device. socket may be closed after
// that; the kernel keeps it.
//
// There is one connection, and no time limit for an answer: with a limit, or with
// several connections, the kernel takes a request that is merely slow away from a
// server that is still at work on it, and sends it a second time. A write that the
// server finishes after that could undo a later one.
func ConnectKernel(d KernelDevice, socket *os.File) (index int, err error) {
	answer, err := askKernel(kernelConnect, netlink.Request, func(ae *netlink.AttributeEncoder) {
		if d.Index >= 0 {
			ae.Uint32(kernelAttrIndex, uint32(d.Index))
		}
		ae.Uint64(kernelAttrSizeBytes, uint64(d.Bytes))
		ae.Uint64(kernelAttrBlockBytes, uint64(d.BlockBytes))
		ae.Uint64(kernelAttrTimeout, 0)
		ae.Uint64(kernelAttrServerFlags, uint64(d.serverFlags()))
		d.addCommon(ae, socket)
	})
	if err != nil {
		return -1, kernelFailure("connect", d.Index, err)
	}
	index = -1
	for _, m := range answer {
		if i, ok := kernelIndex(m.Data); ok {
			index = i
		}
	}
	if index < 0 {
		return -1, kernelFailure("connect", d.Index, errors.New("the kernel did not say which device it took"))
	}
	d.setAskTime(index)
	return index, nil
}

// ReconfigureKernel gives a connection to the block device d.Index whose old one is
// dead. Requests that were not answered are sent to it, those among them that the old
// server may have carried out. The kernel says nothing if the old connection is not
// dead yet: then it does not take the new one, whose other end sees it closed at once.
func ReconfigureKernel(d KernelDevice, socket *os.File) error {
	_, err := askKernel(kernelReconfigure, netlink.Request|netlink.Acknowledge, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(kernelAttrIndex, uint32(d.Index))
		d.addCommon(ae, socket)
	})
	return kernelFailure("reconfigure", d.Index, err)
}

// DisconnectKernel takes a block device out of use. Whoever still has it open gets
// errors from then on. A device that is not connected is an error with EINVAL.
func DisconnectKernel(index int) error {
	_, err := askKernel(kernelDisconnect, netlink.Request|netlink.Acknowledge, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(kernelAttrIndex, uint32(index))
	})
	return kernelFailure("disconnect", index, err)
}

// KernelConnected says whether the kernel has a use of the block device going, alive or
// waiting for Reconfigure.
func KernelConnected(index int) (bool, error) {
	answer, err := askKernel(kernelStatus, netlink.Request, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(kernelAttrIndex, uint32(index))
	})
	if err != nil {
		return false, kernelFailure("status", index, err)
	}
	for _, m := range answer {
		if connected, ok := kernelConnectedIn(m.Data, index); ok {
			return connected, nil
		}
	}
	return false, nil
}

// addCommon adds what both ConnectKernel and ReconfigureKernel say.
func (d KernelDevice) addCommon(ae *netlink.AttributeEncoder, socket *os.File) {
	ae.Uint64(kernelAttrDeadTime, uint64((d.DeadTime+time.Second-1)/time.Second))
	if d.Backend != "" {
		ae.String(kernelAttrBackend, d.Backend)
	}
	ae.Nested(kernelAttrSockets, func(list *netlink.AttributeEncoder) error {
		list.Nested(kernelAttrItem, func(item *netlink.AttributeEncoder) error {
			item.Uint32(kernelAttrSocketFD, uint32(socket.Fd()))
			return nil
		})
		return nil
	})
}

func (d KernelDevice) serverFlags() uint16 {
	flags := flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagCanMultiConn
	if d.ReadOnly {
		flags |= flagReadOnly
	}
	return flags
}

// setAskTime goes by sysfs: the attribute of netlink means something else.
func (d KernelDevice) setAskTime(index int) {
	if d.AskTime == 0 {
		return
	}
	path := filepath.Join(kernelSysfs(index), "queue", "io_timeout")
	// Where it cannot be set, in a service to which sysfs is read-only for example, the
	// kernel's own time holds.
	_ = os.WriteFile(path, fmt.Appendf(nil, "%d", d.AskTime.Milliseconds()), 0)
}

// askKernel makes one request on a connection of its own.
func askKernel(command uint8, flags netlink.HeaderFlags, attributes func(*netlink.AttributeEncoder)) ([]genetlink.Message, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // what was asked has been answered
	family, err := c.GetFamily(kernelFamily)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoKernel
	}
	if err != nil {
		return nil, err
	}
	ae := netlink.NewAttributeEncoder()
	attributes(ae)
	data, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	m := genetlink.Message{Header: genetlink.Header{Command: command, Version: family.Version}, Data: data}
	for {
		// The kernel may be interrupted by signals, of which the Go runtime sends some.
		answer, err := c.Execute(m, family.ID, flags)
		if !errors.Is(err, unix.EINTR) {
			return answer, err
		}
	}
}

// kernelIndex reads the answer to a connect.
func kernelIndex(data []byte) (int, bool) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return 0, false
	}
	index, found := 0, false
	for ad.Next() {
		if ad.Type() == kernelAttrIndex {
			index, found = int(ad.Uint32()), true
		}
	}
	return index, found && ad.Err() == nil
}

// kernelConnectedIn reads the answer to a status.
func kernelConnectedIn(data []byte, index int) (connected, found bool) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return false, false
	}
	for ad.Next() {
		if ad.Type() != kernelAttrDeviceList {
			continue
		}
		ad.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				list.Nested(func(item *netlink.AttributeDecoder) error {
					its, up := -1, false
					for item.Next() {
						switch item.Type() {
						case kernelAttrDevIndex:
							its = int(item.Uint32())
						case kernelAttrConnected:
							up = item.Uint8() != 0
						}
					}
					if its == index {
						connected, found = up, true
					}
					return item.Err()
				})
			}
			return list.Err()
		})
	}
	return connected, found && ad.Err() == nil
}
