// Package journal records the metadata of one migration in one SQLite file: which
// two devices it belongs to, which regions are hydrated, by which transaction and
// with which checksum, and which have been discarded on the source.
//
// What Commit has recorded survives a power loss; the source of a region may be
// destroyed on the strength of it.
package journal

import (
	"time"

	"decant/region"
)

// TxID is the number of a metadata transaction. The first is 1; zero is the
// state before it.
type TxID uint64

// Superblock says what a journal belongs to. It is written once, when the journal
// is created.
type Superblock struct {
	ID          string // name of the migration, unique on a host
	Geometry    region.Geometry
	Source      Identity
	Destination Identity
	Options     []byte // JSON of the options that the migration was started with
	Created     time.Time
	// SourceStartBytes is the space that the source took when the migration
	// began; peak_extra_bytes is counted from it.
	SourceStartBytes int64
}

// Identity names a device by what does not change with a reboot, a rename or
// another attachment order.
type Identity struct {
	Kind   string `json:"kind"`   // file, loop, block, volume, lvm, nbd
	Name   string `json:"name"`   // as the user wrote it, for people only
	Path   string `json:"path"`   // where it was found; may lead elsewhere later
	Key    string `json:"key"`    // equal for the same object, different for any other
	Bytes  int64  `json:"bytes"`  // size of the device
	Offset int64  `json:"offset"` // where the device begins in its backing file
	// ModifiedNanoseconds is the modification time of a source file when the
	// migration began, in nanoseconds of Unix time; 0 where there is none.
	ModifiedNanoseconds int64 `json:"modified_ns,omitempty"`
}

// Checksum is the XXH3 (64 bit) of the bytes of one region. A hydrated region
// without a recorded checksum holds zeros only.
type Checksum struct {
	Nr  region.Nr
	Sum uint64
}

// WrittenSum stands where the checksum of a region would, once users of the device
// have written there or may have: what the region holds is theirs, and nothing says
// what it has to be. A region whose real sum is this counts as written, too.
const WrittenSum = ^uint64(0)

// Transaction is what one Commit records.
type Transaction struct {
	Hydrated       *region.Set
	Checksums      []Checksum // ascending by Nr
	CopiedBytes    int64      // bytes that were copied for it, holes not counted
	PeakExtraBytes int64      // highest use of space so far (see Superblock.SourceStartBytes)
}

// Direction says which way the data flows.
type Direction uint8

// A migration runs forward until somebody reverses it, and from then on only
// backward.
const (
	Forward Direction = iota
	Backward
)

// Phase is how far a migration has come in its direction.
type Phase string

// The phases of a migration. Running covers everything between the first commit
// and the last, whether a process works on it or not.
const (
	Running   Phase = "running"
	Done      Phase = "done"      // every region is hydrated, discards are finished
	Cancelled Phase = "cancelled" // given up before any discard; source whole
	Reversed  Phase = "reversed"  // brought back; source whole, destination released
)

// State is what a journal knows of the direction in which the migration runs.
type State struct {
	Tx        TxID
	Direction Direction
	Phase     Phase
	// Hydrated are the regions that the receiving end owns. Discarded are those
	// of them that are known to be discarded on the giving end; it may lag.
	Hydrated, Discarded *region.Set
	PeakExtraBytes      int64
	CopiedBytes         int64 // sum over all transactions of this direction
}

// BadRange is a run of regions that could not be read.
type BadRange struct {
	Range region.Range
	Error string
}

// RegionRecord is all that a journal knows of one region.
type RegionRecord struct {
	Hydrated, Discarded bool
	Tx                  TxID      // the transaction that recorded it; 0 if none did
	Committed           time.Time // of that transaction
	DiscardedAt         time.Time // zero if not noted
	Sum                 uint64    // 0: nothing but zeros; see also WrittenSum
	HasSum              bool
}

// TransactionRecord is one committed transaction, as listed.
type TransactionRecord struct {
	Tx          TxID
	Direction   Direction
	Committed   time.Time
	DiscardedAt time.Time // when its discards were noted; zero before
	Regions     uint64
	CopiedBytes int64
}
