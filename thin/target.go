package thin

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"decant/dm"
)

// The target types of device-mapper that this package knows.
const (
	poolTarget = "thin-pool"
	thinTarget = "thin"
)

// Mode is what a pool can do at the moment. Only ReadWrite is good; a pool goes from
// there by itself when it runs out of space or meets an error.
type Mode string

// The modes of a pool, as its status names them.
const (
	ReadWrite      Mode = "rw"
	ReadOnly       Mode = "ro"                // the metadata is full or its device failed
	OutOfDataSpace Mode = "out_of_data_space" // writes that need a block wait or fail
	Failed         Mode = "fail"              // neither reads nor writes
)

// metadataBlockBytes is the unit of a pool's metadata device.
const metadataBlockBytes = 4096

// errStatus: a status line or a table that does not have the documented form.
var errStatus = errors.New("is not of a form that this program knows")

// TargetStatus is the status of a thin-pool target; see the kernel's document
// admin-guide/device-mapper/thin-provisioning.
type TargetStatus struct {
	TransactionID                      uint64
	MetadataUsedBlocks, MetadataBlocks int64 // of 4096 bytes
	DataUsedBlocks, DataBlocks         int64 // of the pool's block size
	HeldMetadataRoot                   uint64
	Held                               bool // there is a metadata snapshot
	Mode                               Mode
	DiscardPassdown                    bool
	IgnoreDiscard                      bool
	ErrorIfNoSpace                     bool // else writes wait for space
	NeedsCheck                         bool // thin_check has to look at the metadata before the pool can be written to
	MetadataLowWaterBlocks             int64
}

// ParseTargetStatus reads the status of a thin-pool target.
func ParseTargetStatus(status string) (TargetStatus, error) {
	fields := strings.Fields(status)
	if len(fields) == 1 && (fields[0] == "Fail" || fields[0] == "Error") {
		return TargetStatus{Mode: Failed}, nil
	}
	if len(fields) < 5 {
		return TargetStatus{}, fmt.Errorf("status of a thin pool %q: %w", status, errStatus)
	}
	var s TargetStatus
	var err1, err2, err3, err4 error
	s.TransactionID, err1 = strconv.ParseUint(fields[0], 10, 64)
	s.MetadataUsedBlocks, s.MetadataBlocks, err2 = parseUse(fields[1])
	s.DataUsedBlocks, s.DataBlocks, err3 = parseUse(fields[2])
	if fields[3] != "-" {
		s.Held = true
		s.HeldMetadataRoot, err4 = strconv.ParseUint(fields[3], 10, 64)
	}
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return TargetStatus{}, fmt.Errorf("status of a thin pool %q: %w", status, errors.Join(errStatus, err))
	}
	for _, word := range fields[4:] {
		s.note(word)
	}
	if s.Mode == "" {
		return TargetStatus{}, fmt.Errorf("status of a thin pool %q: %w: it names no mode", status, errStatus)
	}
	return s, nil
}

// note takes one of the words behind the numbers. Later kernels may say more.
func (s *TargetStatus) note(word string) {
	switch word {
	case "rw", "ro", "out_of_data_space":
		s.Mode = Mode(word)
	case "discard_passdown":
		s.DiscardPassdown = true
	case "ignore_discard":
		s.IgnoreDiscard = true
	case "error_if_no_space":
		s.ErrorIfNoSpace = true
	case "needs_check":
		s.NeedsCheck = true
	default: // the last one is a number
		if n, err := strconv.ParseInt(word, 10, 64); err == nil && n >= 0 {
			s.MetadataLowWaterBlocks = n
		}
	}
}

// parseUse reads "used/total".
func parseUse(field string) (used, total int64, err error) {
	before, after, found := strings.Cut(field, "/")
	if !found {
		return 0, 0, fmt.Errorf("%q has no slash", field)
	}
	used, err1 := strconv.ParseInt(before, 10, 64)
	total, err2 := strconv.ParseInt(after, 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, err
	}
	if used < 0 || used > total {
		return 0, 0, fmt.Errorf("%q counts more than there is", field)
	}
	return used, total, nil
}

// VolumeStatus is the status of a thin target.
type VolumeStatus struct {
	MappedBytes int64
	Failed      bool // the pool is gone or does neither read nor write
}

// ParseVolumeStatus reads the status of a thin target.
func ParseVolumeStatus(status string) (VolumeStatus, error) {
	fields := strings.Fields(status)
	if len(fields) == 1 && (fields[0] == "Fail" || fields[0] == "Error" || fields[0] == "-") {
		return VolumeStatus{Failed: true}, nil
	}
	if len(fields) == 0 {
		return VolumeStatus{}, fmt.Errorf("status of a thin volume %q: %w", status, errStatus)
	}
	sectors, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil || sectors < 0 || sectors > 1<<54 {
		return VolumeStatus{}, fmt.Errorf("status of a thin volume %q: %w", status, errStatus)
	}
	return VolumeStatus{MappedBytes: sectors * dm.SectorBytes}, nil
}

// PoolTable is the table line of a thin-pool target.
type PoolTable struct {
	Metadata, Data   string // devices, as paths or MAJOR:MINOR
	BlockBytes       int64
	LowWaterBlocks   int64
	SkipBlockZeroing bool
	IgnoreDiscard    bool
	NoPassdown       bool
	ErrorIfNoSpace   bool
	ReadOnly         bool // the metadata is not changed
}

// ParsePoolTable reads the parameters of a thin-pool target.
func ParsePoolTable(params string) (PoolTable, error) {
	fields := strings.Fields(params)
	if len(fields) < 4 {
		return PoolTable{}, fmt.Errorf("table of a thin pool %q: %w", params, errStatus)
	}
	sectors, err1 := strconv.ParseInt(fields[2], 10, 64)
	low, err2 := strconv.ParseInt(fields[3], 10, 64)
	if err1 != nil || err2 != nil || sectors <= 0 || sectors > 1<<21 || low < 0 {
		return PoolTable{}, fmt.Errorf("table of a thin pool %q: %w", params, errStatus)
	}
	t := PoolTable{Metadata: fields[0], Data: fields[1], BlockBytes: sectors * dm.SectorBytes, LowWaterBlocks: low}
	for _, word := range fields[4:] {
		switch word {
		case "skip_block_zeroing":
			t.SkipBlockZeroing = true
		case "ignore_discard":
			t.IgnoreDiscard = true
		case "no_discard_passdown":
			t.NoPassdown = true
		case "error_if_no_space":
			t.ErrorIfNoSpace = true
		case "read_only":
			t.ReadOnly = true
		}
	}
	return t, nil
}

// String is the parameters of the target.
func (t PoolTable) String() string {
	var features []string
	for _, f := range []struct {
		on   bool
		word string
	}{
		{t.SkipBlockZeroing, "skip_block_zeroing"},
		{t.IgnoreDiscard, "ignore_discard"},
		{t.NoPassdown, "no_discard_passdown"},
		{t.ErrorIfNoSpace, "error_if_no_space"},
		{t.ReadOnly, "read_only"},
	} {
		if f.on {
			features = append(features, f.word)
		}
	}
	s := fmt.Sprintf("%s %s %d %d %d", t.Metadata, t.Data, t.BlockBytes/dm.SectorBytes, t.LowWaterBlocks, len(features))
	return strings.Join(append([]string{s}, features...), " ")
}

// VolumeTable is the table line of a thin target.
type VolumeTable struct {
	Pool           string // device, as a path or MAJOR:MINOR
	ID             uint32 // 24 bits
	ExternalOrigin string // device; empty if there is none
}

// ParseVolumeTable reads the parameters of a thin target.
func ParseVolumeTable(params string) (VolumeTable, error) {
	fields := strings.Fields(params)
	if len(fields) != 2 && len(fields) != 3 {
		return VolumeTable{}, fmt.Errorf("table of a thin volume %q: %w", params, errStatus)
	}
	id, err := strconv.ParseUint(fields[1], 10, 24)
	if err != nil {
		return VolumeTable{}, fmt.Errorf("table of a thin volume %q: %w", params, errStatus)
	}
	t := VolumeTable{Pool: fields[0], ID: uint32(id)}
	if len(fields) == 3 {
		t.ExternalOrigin = fields[2]
	}
	return t, nil
}

// String is the parameters of the target.
func (t VolumeTable) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %d %s", t.Pool, t.ID, t.ExternalOrigin))
}
