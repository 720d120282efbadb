package thin

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"decant/loopdev"
)

// The kinds of pools.
const (
	KindDirectory = "directory" // sparse files in a directory
	KindMapper    = "dm-thin"   // the kernel's, owned by this program
	KindGroup     = "lvm"       // the kernel's, owned by LVM
)

// Pool is an open handle of a pool of any kind. Its methods may be called
// concurrently, and several processes may have handles of one pool. A change that a
// method returned nil for survives a power loss.
type Pool interface {
	// Name is the name of the pool.
	Name() string
	// Info reads the state of the pool.
	Info() (PoolInfo, error)
	// FreeBytes is what could be written into unmapped parts of the pool's volumes
	// through this handle now.
	FreeBytes() (int64, error)
	// Volumes is all volumes of the pool by name, also those that are being created
	// or deleted at this moment.
	Volumes() ([]VolumeInfo, error)
	// Volume is one volume of the pool. It is ErrNotFound if there is none of that
	// name.
	Volume(name string) (VolumeInfo, error)
	// CreateVolume makes a volume that reads as zeros and takes no space. bytes is
	// its size, which the pool may round up to its unit; blob is kept with it. It is
	// ErrExists if there is a volume of that name, and ErrInvalid if the arguments
	// will not do. After a crash there is the whole volume or none.
	CreateVolume(name string, bytes int64, blob []byte) (VolumeInfo, error)
	// OpenVolume opens a volume for reading and writing. While it is open the volume
	// cannot be deleted. An exclusive opening is the only one; it is ErrInUse if
	// there is any other. It is ErrNotFound if there is no volume of that name.
	OpenVolume(name string, exclusive bool) (Volume, error)
	// DeleteVolume removes a volume and gives its space back. It is ErrNotFound if
	// there is none of that name, and ErrInUse while anybody uses it. After a crash
	// the volume is whole or gone.
	DeleteVolume(name string) error
	// Destroy removes a pool without volumes and ends the use of the handle. It is
	// ErrNotEmpty while there are volumes.
	Destroy() error
	// Close ends the use of the handle. It is ErrInUse, and the handle stays open,
	// while volumes are open through it.
	Close() error
}

// Volume is an open volume of a pool of any kind: a device whose space is the
// pool's. All methods may be called concurrently; ranges of concurrent writes must
// not overlap.
type Volume interface {
	io.ReaderAt
	// WriteAt writes p at off. Where the pool has no space for it, the result is
	// ENOSPC. It is durable after Flush.
	io.WriterAt
	Bytes() int64
	// Zero makes the range read as zeros. It takes no space where unmapping does that.
	Zero(off, n int64) error
	// Discard gives the space of the range back to the pool, as far as the range
	// covers whole blocks of it. What was given back reads as anything.
	Discard(off, n int64) error
	// Flush returns nil only if everything written and zeroed before it began
	// survives a power loss, the pool's own metadata included. After the first
	// failure it fails for ever.
	Flush() error
	// NextData is the first range that may hold data in [off, Bytes()). Without any,
	// both are Bytes(). What lies outside reads as zeros.
	NextData(off int64) (start, end int64, err error)
	ReadsZero(off, n int64) (bool, error)
	HoldsData() (bool, error)
	// AllocatedBytes is what the volume takes of its pool; SharedBytes is how much of
	// that belongs to other volumes as well.
	AllocatedBytes() (int64, error)
	SharedBytes() (int64, error)
	CompressedBytes() (int64, error)
	// FreeBytes is that of the pool.
	FreeBytes() (int64, error)
	// SyncFS makes the pool, and what lies under it, count discarded space as free.
	SyncFS() error
	WriteMark(loopdev.Mark) error
	ReadMark() (loopdev.Mark, bool, error)
	RemoveMark() error
	Info() loopdev.Info
	// Base is the file or block device that the volume is.
	Base() *loopdev.Device
	// VolumeInfo describes the volume as it was when it was opened.
	VolumeInfo() VolumeInfo
	// Close gives up locks and claims. It does not flush.
	Close() error
}

var (
	_ Pool   = (*DirectoryPool)(nil)
	_ Pool   = (*MapperPool)(nil)
	_ Volume = (*DirectoryVolume)(nil)
	_ Volume = (*MapperVolume)(nil)
)

// PoolInfo is what there is to know of a pool at one moment.
type PoolInfo struct {
	Name               string `json:"name"`
	Kind               string `json:"kind"`
	BlockBytes         int64  `json:"block_bytes"` // unit in which space is allocated
	DataBlocks         int64  `json:"data_blocks"` // size limit of the pool
	DataUsedBlocks     int64  `json:"data_used_blocks"`
	MetadataBlocks     int64  `json:"metadata_blocks"` // of 4096 bytes; 0: the metadata does not count
	MetadataUsedBlocks int64  `json:"metadata_used_blocks"`
	ReservedBlocks     int64  `json:"reserved_blocks"`
	TransactionID      uint64 `json:"transaction_id"` // counts the changes of the catalog
	Mode               Mode   `json:"mode"`
	Volumes            int    `json:"volumes"` // in whatever state

	UUID      string `json:"-"` // the same wherever the pool is carried to
	Dir       string `json:"-"` // of a directory pool, absolute path
	Data      string `json:"-"` // of a dm-thin pool, absolute path of its data device
	Metadata  string `json:"-"` // of a dm-thin pool, absolute path of its metadata device
	SizeBytes int64  `json:"-"` // size limit as it was asked for, or of the data device in whole blocks
}

// VolumeInfo is what there is to know of a volume at one moment.
type VolumeInfo struct {
	Pool           string    `json:"pool"`
	Name           string    `json:"name"`
	ID             uint64    `json:"id"`      // never used again in this pool
	ThinID         uint64    `json:"thin_id"` // of the device in a dm-thin pool; elsewhere the same as ID
	Origin         string    `json:"origin"`  // the volume that it is a snapshot of, or empty
	SizeBytes      int64     `json:"size_bytes"`
	MappedBytes    int64     `json:"mapped_bytes"`    // allocated
	ExclusiveBytes int64     `json:"exclusive_bytes"` // allocated and shared with no other volume
	ReservedBytes  int64     `json:"reserved_bytes"`
	Blob           []byte    `json:"blob"` // the user's, at most MaxBlobBytes; base64 in JSON
	State          State     `json:"state"`
	Created        time.Time `json:"created"`
	Path           string    `json:"path"` // absolute path of its file or device
}

// newUUID is a random UUID of version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, as documented
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return formatUUID(b[:])
}

// formatUUID writes the 16 bytes of a UUID as people do.
func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// wrap makes an *Error of err unless it is one already.
func wrap(err error, op, object string) error {
	var ours *Error
	if err == nil || errors.As(err, &ours) {
		return err
	}
	return &Error{Op: op, Object: object, Err: err}
}
