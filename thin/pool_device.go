package thin

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"decant/dm"
)

// poolDevice is an active thin-pool device of the kernel, whoever made it. Its
// methods only look.
type poolDevice struct {
	control *dm.Control
	name    string // of the device in /dev/mapper, not of the pool
}

// errNotPool: the device is there, and is something else.
var errNotPool = errors.New("is not a thin pool")

// status is the pool's state. With commit the pool first commits its metadata, so
// that what was discarded counts as free; it can take as long as a flush.
func (d poolDevice) status(commit bool) (TargetStatus, error) {
	ask := d.control.StatusNoFlush
	if commit {
		ask = d.control.Status
	}
	targets, err := ask(d.name)
	if err != nil {
		return TargetStatus{}, err
	}
	if len(targets) != 1 || targets[0].Type != poolTarget {
		return TargetStatus{}, fmt.Errorf("device %s %w", d.name, errNotPool)
	}
	return ParseTargetStatus(targets[0].Params)
}

// currentStatus is the pool's state now. One that has run out of space notices what
// was given back only when it commits.
func (d poolDevice) currentStatus() (TargetStatus, error) {
	s, err := d.status(false)
	if err == nil && s.Mode == OutOfDataSpace {
		return d.status(true)
	}
	return s, err
}

// table is the pool's active table.
func (d poolDevice) table() (PoolTable, error) {
	targets, err := d.control.Table(d.name)
	if err != nil {
		return PoolTable{}, err
	}
	if len(targets) != 1 || targets[0].Type != poolTarget {
		return PoolTable{}, fmt.Errorf("device %s %w", d.name, errNotPool)
	}
	return ParsePoolTable(targets[0].Params)
}

// NoSpaceTimeout is how long the kernel keeps writes to a pool without space waiting for
// it to grow before it fails them. It is 0 if they wait for ever, or if that cannot be
// read.
func NoSpaceTimeout() time.Duration {
	text, err := os.ReadFile("/sys/module/dm_thin_pool/parameters/no_space_timeout")
	if err != nil {
		return 0
	}
	seconds, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// minMappingsPerBlock is how many mappings a metadata block surely has room for: a
// leaf of the kernel's btree takes 252 and may be half empty.
const minMappingsPerBlock = 126

// FreeBytes is how much may be written into unmapped blocks of a pool with blocks of
// this size: what is left of its data device, or what its metadata device can keep
// track of, if that is less. It is 0 unless the pool is in mode ReadWrite.
func (s TargetStatus) FreeBytes(blockBytes int64) int64 {
	if s.Mode != ReadWrite || s.NeedsCheck {
		return 0
	}
	blocks := s.DataBlocks - s.DataUsedBlocks
	if metadata := s.MetadataBlocks - s.MetadataUsedBlocks; metadata < blocks/minMappingsPerBlock {
		blocks = metadata * minMappingsPerBlock
	}
	return blocks * blockBytes
}
