package thin

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"
)

// The catalog of a dm-thin pool is an array of records on its thin device 0. The
// record with index 0 is the pool's own; the others belong to the thin id that is
// their index. A record of zeros is free. Numbers are little-endian.
//
//	pool   0 magic [8]       8 crc32c u32   12 version u32
//	      16 uuid [16]      32 block bytes u64          40 low water blocks u64
//	      48 next volume id u64   56 records in use u64   64 created i64, Unix seconds
//	      72 state u8       73 length of name u8        74 name [100]   174 zeros
//
//	volume 0 magic [4]       4 crc32c u32
//	       8 id u64         16 thin id u32 (24 bits)    20 state u8
//	      21 length of name u8   22 length of blob u16  24 size in bytes u64
//	      32 id of origin u64    40 transaction id u64  48 created i64, Unix seconds
//	      56 name [100]    156 zeros [100]             256 blob [256]
//
// A record is as large as a sector because that is what a drive writes whole or not
// at all. The checksum covers all that follows it; it is there for drives that do
// not, and for devices that hold something else. The magic comes first so that a
// person finds a catalog in a dump. What is zeros here belongs to later versions,
// and a record with anything else there is refused.
const (
	recordBytes   = 512
	recordVersion = 1

	poolMagic   = "DECANTTP"
	volumeMagic = "DTV1"

	maxThinID = 1<<24 - 1
	// noOrigin is the origin of a volume that is nobody's snapshot.
	noOrigin = 0
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	// errRecord: a record that is damaged, or of another program or version.
	errRecord = errors.New("is no record of this program's catalog")
)

// recordStates are the states as they are written.
var recordStates = map[State]byte{Creating: 1, Active: 2, Deleting: 3}

func recordState(b byte) (State, error) {
	for state, code := range recordStates {
		if code == b {
			return state, nil
		}
	}
	return "", fmt.Errorf("%w: it has the state %d", errRecord, b)
}

// mapperHeader is the record of the pool itself.
type mapperHeader struct {
	uuid           string
	name           string
	blockBytes     int64
	lowWaterBlocks int64
	nextID         uint64
	records        int64 // in use at any time so far, this one included
	state          State // Active, or what is being done to the pool
	created        time.Time
}

// mapperRecord is the record of a volume.
type mapperRecord struct {
	id          uint64
	thinID      uint32
	name        string
	blob        []byte
	sizeBytes   int64
	origin      uint64 // id of a volume, or noOrigin
	state       State
	transaction uint64 // of the pool, from the last change of the volume on
	created     time.Time
}

// encode is the record as it is written.
func (h mapperHeader) encode() ([]byte, error) {
	b := make([]byte, recordBytes)
	uuid, err := hex.DecodeString(strings.ReplaceAll(h.uuid, "-", ""))
	if err != nil || len(uuid) != 16 || len(h.name) > MaxNameBytes || recordStates[h.state] == 0 {
		return nil, fmt.Errorf("record of pool %q: cannot be written", h.name)
	}
	copy(b, poolMagic)
	le := binary.LittleEndian
	le.PutUint32(b[12:], recordVersion)
	copy(b[16:], uuid)
	le.PutUint64(b[32:], uint64(h.blockBytes))
	le.PutUint64(b[40:], uint64(h.lowWaterBlocks))
	le.PutUint64(b[48:], h.nextID)
	le.PutUint64(b[56:], uint64(h.records))
	le.PutUint64(b[64:], uint64(h.created.Unix()))
	b[72], b[73] = recordStates[h.state], byte(len(h.name))
	copy(b[74:], h.name)
	le.PutUint32(b[8:], crc32.Checksum(b[12:], castagnoli))
	return b, nil
}

// decodeHeader reads the record of a pool.
func decodeHeader(b []byte) (h mapperHeader, err error) {
	le := binary.LittleEndian
	switch {
	case len(b) != recordBytes || string(b[:8]) != poolMagic:
		return h, fmt.Errorf("record of the pool: %w", errRecord)
	case le.Uint32(b[8:]) != crc32.Checksum(b[12:], castagnoli):
		return h, fmt.Errorf("record of the pool: %w: its checksum is wrong", errRecord)
	case le.Uint32(b[12:]) != recordVersion:
		return h, fmt.Errorf("record of the pool: %w: it has version %d and this program knows version %d only", errRecord, le.Uint32(b[12:]), recordVersion)
	}
	if h.state, err = recordState(b[72]); err != nil {
		return h, fmt.Errorf("record of the pool: %w", err)
	}
	h.uuid = formatUUID(b[16:32])
	h.blockBytes = int64(le.Uint64(b[32:]))
	h.lowWaterBlocks = int64(le.Uint64(b[40:]))
	h.nextID = le.Uint64(b[48:])
	h.records = int64(le.Uint64(b[56:]))
	h.created = time.Unix(int64(le.Uint64(b[64:])), 0).UTC()
	if h.name, err = fixedText(b[74:174], int(b[73])); err != nil {
		return h, fmt.Errorf("record of the pool: %w", err)
	}
	if checkBlockBytes(h.blockBytes) != nil || h.lowWaterBlocks < 0 || h.nextID == 0 || h.records < 1 || h.records > maxThinID+1 ||
		ValidateName(h.name) != nil || !isZero(b[174:]) {
		return h, fmt.Errorf("record of the pool: %w: a value is out of bounds", errRecord)
	}
	return h, nil
}

// encode is the record as it is written.
func (r mapperRecord) encode() ([]byte, error) {
	b := make([]byte, recordBytes)
	if r.thinID == 0 || r.thinID > maxThinID || len(r.name) > MaxNameBytes || len(r.blob) > MaxBlobBytes || recordStates[r.state] == 0 {
		return nil, fmt.Errorf("record of volume %q with thin id %d: cannot be written", r.name, r.thinID)
	}
	copy(b, volumeMagic)
	le := binary.LittleEndian
	le.PutUint64(b[8:], r.id)
	le.PutUint32(b[16:], r.thinID)
	b[20], b[21] = recordStates[r.state], byte(len(r.name))
	le.PutUint16(b[22:], uint16(len(r.blob)))
	le.PutUint64(b[24:], uint64(r.sizeBytes))
	le.PutUint64(b[32:], r.origin)
	le.PutUint64(b[40:], r.transaction)
	le.PutUint64(b[48:], uint64(r.created.Unix()))
	copy(b[56:], r.name)
	copy(b[256:], r.blob)
	le.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b, nil
}

// decodeRecord reads the record with that index, above 0. free is true for one that
// belongs to no volume.
func decodeRecord(index int64, b []byte) (r mapperRecord, free bool, err error) {
	if len(b) == recordBytes && isZero(b) {
		return r, true, nil
	}
	le := binary.LittleEndian
	switch {
	case len(b) != recordBytes || string(b[:4]) != volumeMagic:
		return r, false, fmt.Errorf("record %d: %w", index, errRecord)
	case le.Uint32(b[4:]) != crc32.Checksum(b[8:], castagnoli):
		return r, false, fmt.Errorf("record %d: %w: its checksum is wrong", index, errRecord)
	}
	if r.state, err = recordState(b[20]); err != nil {
		return r, false, fmt.Errorf("record %d: %w", index, err)
	}
	if r.name, err = fixedText(b[56:156], int(b[21])); err != nil {
		return r, false, fmt.Errorf("record %d: %w", index, err)
	}
	r.id, r.thinID = le.Uint64(b[8:]), le.Uint32(b[16:])
	r.sizeBytes, r.origin, r.transaction = int64(le.Uint64(b[24:])), le.Uint64(b[32:]), le.Uint64(b[40:])
	r.created = time.Unix(int64(le.Uint64(b[48:])), 0).UTC()
	blobBytes := int(le.Uint16(b[22:]))
	if r.id == 0 || int64(r.thinID) != index || r.sizeBytes <= 0 || ValidateName(r.name) != nil ||
		blobBytes > MaxBlobBytes || !isZero(b[156:256]) || !isZero(b[256+blobBytes:]) {
		return r, false, fmt.Errorf("record %d: %w: a value is out of bounds", index, errRecord)
	}
	r.blob = bytes.Clone(b[256 : 256+blobBytes])
	return r, false, nil
}

// fixedText reads a text of so many bytes from a field that is filled up with zeros.
func fixedText(field []byte, length int) (string, error) {
	if length > len(field) || !isZero(field[length:]) {
		return "", fmt.Errorf("%w: a name is out of bounds", errRecord)
	}
	return string(field[:length]), nil
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
