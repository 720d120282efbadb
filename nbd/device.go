package nbd

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Device is what the server serves. All methods may be called concurrently, and no
// range reaches beyond Bytes(). A request that a client sees as one may arrive in
// several calls, but never because of the client alone.
//
// An error should hold an errno (unix.ENOSPC, unix.EPERM, ...); the client is told the
// nearest one that the protocol has, and EIO where there is none.
type Device interface {
	// ReadAt that cannot fill p is an error, never made-up bytes.
	io.ReaderAt
	// WriteAt need not be durable before Flush. The bytes of p belong to the server
	// again when it returns.
	io.WriterAt
	// Bytes is the size; it does not change while the device is served.
	Bytes() int64
	// Discard says that the content of the range is needed no more. Reads of it may
	// return anything that the device itself may have there, but after a Flush that
	// began later the same for ever. unix.EOPNOTSUPP counts as success.
	Discard(off, n int64) error
	// Zero makes the range read as zeros. It need not provision space, and need not
	// be durable before Flush. Where it answers unix.EOPNOTSUPP zeros are written.
	Zero(off, n int64) error
	// Flush returns nil only if everything that was written, zeroed and discarded by
	// calls that ended before it began survives a power loss, whichever connection
	// they came from. After an error it is not called again for this export.
	Flush() error
}

// ErrNoAnswer is for a Device that cannot say how a request ends. The client is
// disconnected and gets no answer, to this request and to those that it waits for
// besides: a client that comes back, such as the kernel, makes all of them again.
var ErrNoAnswer = errors.New("the request is left to the next server")

// Extent is a part of a device in one state.
type Extent struct {
	Bytes    int64 // more than 0
	Hole     bool  // nothing is allocated there
	Zero     bool  // it reads as zeros
	Hydrated bool  // its bytes are where they are to stay
}

// Mapped is a Device that knows the state of its parts. The server offers it as block
// status: base:allocation, and decant:hydrated if the export says so.
type Mapped interface {
	// Extents describes consecutive parts from byte off on, at least the first one,
	// and need not reach off+n. It must be cheap enough to be called for each request
	// of a client; how many it returns is for the device to bound, and the server
	// passes on no more than 4096 at a time.
	Extents(off, n int64) ([]Extent, error)
}

// Locked is a Device that may refuse every change. It is asked once for each client.
type Locked interface {
	ReadOnly() bool
}

// Export is a device under a name.
type Export struct {
	// Name is what clients ask for: UTF-8, at most 4096 bytes, no control characters.
	// The empty one is the default export. It is looked up in a table, and is never a
	// path.
	Name string
	// Description is text for people; may be empty.
	Description string
	Device      Device
	// ReadOnly refuses every change with EPERM, whatever the device could do.
	ReadOnly bool
	// FastZero says that Device.Zero costs less than writing the zeros, whatever the
	// range.
	FastZero bool
	// Hydrates offers the context decant:hydrated; the device has to be Mapped.
	Hydrates bool
	// MinBlockBytes is what offsets and lengths of requests have to be multiples of: a
	// power of two up to 64 KiB. 0 means 1.
	MinBlockBytes int64
	// PreferredBlockBytes is the smallest request that costs the device no more than
	// its share: a power of two, at least 512 and MinBlockBytes. 0 means 4096 or
	// MinBlockBytes.
	PreferredBlockBytes int64
}

// ErrExport says that an export cannot be offered as it is described.
var ErrExport = errors.New("the export cannot be offered")

const maxMinBlockBytes = 64 << 10

// withDefaults is the export with every size filled in, or ErrExport.
func (e Export) withDefaults() (Export, error) {
	if e.MinBlockBytes == 0 {
		e.MinBlockBytes = 1
	}
	if e.PreferredBlockBytes == 0 {
		e.PreferredBlockBytes = max(4096, e.MinBlockBytes)
	}
	powerOfTwo := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	_, mapped := e.Device.(Mapped)
	refuse := func(why string) (Export, error) {
		return e, fmt.Errorf("%w: export %q: %s", ErrExport, e.Name, why)
	}
	switch {
	case !validName(e.Name) || !validName(e.Description):
		return refuse("its name and its description have to be UTF-8 of at most 4096 bytes without control characters")
	case e.Device == nil:
		return refuse("it has no device")
	case e.Device.Bytes() < 0:
		return refuse(fmt.Sprintf("the device says that it has %d bytes", e.Device.Bytes()))
	case !powerOfTwo(e.MinBlockBytes) || e.MinBlockBytes > maxMinBlockBytes:
		return refuse(fmt.Sprintf("its least block is %d bytes and has to be a power of two up to 65536", e.MinBlockBytes))
	case !powerOfTwo(e.PreferredBlockBytes) || e.PreferredBlockBytes < max(512, e.MinBlockBytes) ||
		e.PreferredBlockBytes > MaxPayloadBytes:
		return refuse(fmt.Sprintf("its preferred block is %d bytes and has to be a power of two from %d to %d",
			e.PreferredBlockBytes, max(512, e.MinBlockBytes), MaxPayloadBytes))
	case e.Hydrates && !mapped:
		return refuse("its device does not know which of its parts are hydrated")
	}
	return e, nil
}

// validName says whether s may stand in the protocol and in a log.
func validName(s string) bool {
	isControl := func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }
	return len(s) <= maxNameBytes && utf8.ValidString(s) && !strings.ContainsFunc(s, isControl)
}
