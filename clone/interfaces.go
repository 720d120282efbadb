package clone

import (
	"io"
	"iter"

	"decant/journal"
	"decant/region"
)

// Source is the device that is emptied. Nothing is ever written to it (I6).
// All methods may be called concurrently.
type Source interface {
	// ReadAt never returns made-up bytes: if the medium holds fewer than asked
	// for, it is an error.
	io.ReaderAt
	// Bytes is the size of the device; it does not change.
	Bytes() int64
	// Discard gives the space of the range back as far as the medium can.
	// It is idempotent, later reads of the range may return anything, and it
	// need not be durable. Only DiscardSource calls it.
	Discard(off, n int64) error
}

// Sparse is a Source or Destination that knows where it holds no data. What a
// destination tells is asked for once, when the clone is opened (I10), unless it is a
// LiveSparse.
type Sparse interface {
	// NextData is the first range with data in [off, Bytes()). Without any,
	// both are Bytes(). What lies outside reads as zeros.
	NextData(off int64) (start, end int64, err error)
}

// LiveSparse is a Sparse destination that may be able to tell at any time.
type LiveSparse interface {
	Sparse
	// TellsAtAnyTime says whether NextData is cheap, and knows of all that was written
	// before it was called.
	TellsAtAnyTime() bool
}

// Destination is the device that is filled. All methods may be called
// concurrently; ranges of concurrent writes do not overlap.
type Destination interface {
	// ReadAt reads past every cache of this host, so that it tells what the
	// medium holds and not what was sent to it.
	io.ReaderAt
	// WriteAt need not be durable before Flush.
	io.WriterAt
	// Bytes is the size of the device; it does not change, and is at least the
	// source's.
	Bytes() int64
	// Zero makes the range read as zeros. It need not provision space, and
	// need not be durable before Flush.
	Zero(off, n int64) error
	// Flush returns nil only if all that was written and zeroed before it
	// began survives a power loss. After an error nothing is known of what was
	// written since the last good Flush, and Flush is never retried.
	Flush() error
}

// Cache is a Destination through a cache in the memory of this host. Each shows what was
// written or zeroed through the other before, the Destination's Flush covers both, and
// what the cache could not write to the medium makes that Flush fail. It keeps nothing but
// what was read and written here: regions that are being copied are none of that (I5). Its
// methods may be called concurrently; of writes that overlap any may be the last. It
// outlives this process: what was written goes the way of the medium's own cache, with the
// power and no sooner.
type Cache interface {
	// ReadAt may tell what the medium does not hold yet.
	io.ReaderAt
	// WriteAt fails for lack of space at once, or not at all.
	io.WriterAt
}

// Journal is the record of the migration. Only one process has it open for
// writing. Commit and MarkDiscarded are not called concurrently.
type Journal interface {
	Load() (journal.State, error)
	// Commit returns nil only if the transaction survives a power loss. After
	// an error it is unknown whether it does, until the journal is opened anew.
	Commit(journal.Transaction) (journal.TxID, error)
	// MarkDiscarded notes discards; losing it repeats a discard, no more.
	MarkDiscarded([]region.Range) error
	// Checksums yields what was committed of the bytes of regions, ascending. A
	// region that a transaction of this direction hydrated and that has none holds
	// zeros only.
	Checksums(d journal.Direction, within region.Range) iter.Seq2[journal.Checksum, error]
}

// Marker keeps the mark on the source (I11).
type Marker interface {
	// Mark records on the source itself that discards of transactions up to tx
	// may have begun. It returns nil only if that survives a power loss.
	Mark(tx journal.TxID) error
}
