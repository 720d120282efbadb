// Package clone makes one device of a source and a destination, and decides what
// may happen to a region: when it is copied, when it counts as hydrated, and when
// its source may be destroyed. All safety of the program is in this package. Guests,
// who use the device while it hydrates, read, write, trim and flush through it.
//
// # States
//
//	             Hydrate            copied             Commit          DiscardSource
//	Unhydrated ──────────► Hydrating ──────► Dirty ───────────► Hydrated ───────────► Discarded
//	    ▲                     │                │                (durable)             (noted late)
//	    ├──── copy failed ────┘                │
//	    └──── flush or commit failed ──────────┘
//
// A guest's write or trim of an Unhydrated region takes it along the same arrows: it
// is Hydrating while the guest's bytes go to the destination, and Dirty after that.
// What covers whole regions skips the copy, what covers a part has the rest copied.
// Dirty and Hydrated regions are written to in place and stay what they are.
//
// A crash makes Hydrating and Dirty regions Unhydrated. Hydrated stays. Discarded
// may fall back to Hydrated, and is then discarded once more.
//
//	transition                 function             what holds after it
//	Unhydrated → Hydrating     regions.claim        nobody else fills the region
//	  the same, for a guest    regions.beginChange
//	Hydrating  → Unhydrated    regions.release      the destination may hold anything
//	Hydrating  → Dirty         regions.soil         the destination was sent every byte
//	  the same, for a guest    regions.soilChanged  and has the only copy of it
//	Unhydrated → Dirty         regions.adopt        another engine has filled the region; see Adopt
//	Dirty      → sealed        regions.seal         the next flush covers every byte
//	sealed     → Hydrated      regions.publish      destination and journal survive power loss
//	Dirty, sealed → Unhydrated regions.forget       as after a crash; the clone is read-only
//	Hydrated   → handed out    regions.takeCommitted  one discard, and only one, is on its way
//	handed out → Discarded     regions.noteDiscarded  the source may hold anything
//	handed out → Hydrated      regions.giveBack     as before takeCommitted
//	Hydrated → Unhydrated      regions.distrust     in doubt since Open only: the destination has lost
//	                                                the region, the source was seen to hold it
//
// # Guests
//
// A guest sees a disk with a volatile write cache. What Flush has returned for is
// durable. Of what was written, zeroed or trimmed since, a crash leaves each sector
// as it was at the last Flush or as it was written at some time after it; a region
// that was not Hydrated then falls back as a whole to what the source holds, which is
// what it held at the last Flush. A trimmed range reads as zeros, in parts of regions
// as well; after a Flush the source's bytes never come back.
//
// Reads have one rule: the destination answers for what is Hydrated and for what a
// guest has changed; the source answers for the rest, Dirty regions among it, since
// the destination may drop what no flush has covered.
//
//	state        read from                  write, zero, trim
//	Unhydrated   source, hydrated next      whole: to the destination; part: copied first
//	Hydrating    source                     waits for the region
//	Dirty        source, or destination     in place; the destination answers from then on
//	             once a guest changed it
//	sealed       as Dirty                   in place; waits for a commit if a checksum
//	                                        is on its way to the journal
//	Hydrated     destination                in place; waits for a commit if the journal
//	                                        has a checksum
//
// The journal keeps checksums of regions as they were copied. Before a guest's first
// write to a region in place, a transaction that takes the checksum out has to be
// durable, so that no crash leaves a wrong one behind. It does so for all of a block
// of Config.BufferBytes at once: guests wait for a commit once in each block, and again
// once after a restart. A region that was copied for a guest, or is written to while
// Dirty, never gets a checksum; one that was trimmed as a whole is recorded as zeros.
//
// When a flush or a commit fails, the clone is read-only. Dirty regions belong to the
// source again, and acknowledged writes to them that no Flush had covered are lost,
// as with a disk that loses its cache: each such region is as at the last Flush that
// succeeded. Hydrated regions show what the destination has, each sector as at that
// Flush or as written later. So nothing that was flushed is lost or mixed with what
// is older, and a restart shows the same, or more of what was written. In between,
// from the moment when the destination loses something until its Flush has returned
// with the error, reads of what guests have changed show what the destination shows;
// a read that the failure overtakes is made again.
//
// # Guests that outlive the process
//
// A file system on a block device lives on, with all that it has in memory, when the
// process dies that serves the device. It asks again for what was not answered, but
// never for what was: an answered write that no flush had covered must not be lost,
// unless the power fails. Config.GuestsOutlive keeps that promise:
//
//	A guest's change is answered only when the journal has all of its regions as
//	Hydrated.
//
// A region that is Hydrated already is written to in place, and the write waits for
// nothing more: the destination keeps what it was sent as long as it has power. The
// first change of any other region ends with a commit, which all changes share that
// wait for it. So nothing that was answered is Dirty, and what a dead process takes
// with it are regions that no answered change is in. Flushes, power cuts and failures
// mean the same as for other guests.
//
// A trim is answered at once, since file systems make many and wait for each: nobody
// relies on what it leaves. A range that no flush has covered since may show what it held
// before, once the process has died.
//
// # Invariants
//
//	I1   A region is journaled hydrated only after a destination flush that began
//	     after its last copied byte was written.                      Commit
//	I2   A source region is discarded only after the transaction that records it
//	     has committed durably.                                       Commit, Committed
//	I3   No read of a source region is in flight when it is discarded, those of
//	     guests included.                                             beginRead, drainReaders
//	I4   A guest's flush returns only after a commit that covers every write
//	     acknowledged before it began. Flushes share commits, but none joins one
//	     that has begun.                                              Commit, turns
//	I5   Hydration never writes a region that is Dirty or Hydrated, and nobody but
//	     who claimed it writes one that is Hydrating.                 claim, beginChange
//	I6   Nothing writes to the source. Discards are whole regions inside the
//	     device.                                                      Source, discardRegions
//	I7   A failed flush or commit is never retried in place; modes only go down.
//	                                                                  abort
//	I8   The journal belongs to this source and this destination.     package service
//	I9   The journal does not live on the destination.                package service
//	I10  A hole or zeros are skipped only where the destination is known to read
//	     zeros; otherwise they are zeroed.                            claim, put, zero, send
//	I11  Before the first discard of a transaction the source says durably that it
//	     may have begun.                                              discardRegions, Marker
//	I12  What is copied bypasses the page cache, and what guests write to a block
//	     device: lack of space answers at the write.                  packages loopdev, thin; Cache
//	I13  When in doubt nothing more is discarded, and everything can be read.
//	                                                                  writable
//
// And a checksum in the journal is that of what its region holds, whenever the power may
// fail (inPlace, announce).
//
// Check tests what of this can be tested from outside; package clonetest tests the
// rest by cutting the power at every step, and clone/model is the same protocol as
// a model that is searched exhaustively.
//
// # After a crash or a repair
//
// A thin pool whose metadata had to be repaired may lose what it had flushed once. So
// what a process finds committed, and not noted as discarded, is not believed: Recheck
// reads it back, by the checksums of the journal, before its source is discarded. That
// is about two transactions at most where sources are discarded. What the destination
// has lost is copied again if the source is proven to hold it, also by its checksum;
// the journal goes on to count it as hydrated until it is committed once more, and a
// crash in between leads to another Recheck. What neither end holds ends all discards.
// What is noted as discarded has only one copy, and nothing to fall back to. The same
// holds for what guests have written: it has no checksum, and is believed.
//
// Until a region has been rechecked its checksum stays in the journal and no guest
// changes it: a guest's write or trim there has it rechecked first. What is Unhydrated
// again is for guests as any Unhydrated region. Until it is committed once more the
// journal keeps the checksum of what the source holds: after a crash that is what
// Recheck falls back to, whatever was sent to the destination meanwhile. So guests may
// read, after a crash, only what was rechecked.
//
// # Locks
//
// No lock is held during I/O on the ends, but those that put commits, discards, rechecks
// of regions and records of the journal one after the other. The state of the regions has a mutex of
// its own, which is never held while anything is waited for but a change of that state.
// Guests and hydration wait for single regions, and hold none while they wait for
// another one or for a commit.
//
// # What is assumed of the media
//
// A sector of 512 bytes is written whole or not at all, or reads with an error. A
// successful flush means durable; a medium that lies about this is caught only by
// Config.Verify, and only for what it shows at once and for what was copied: what
// guests write is not read back. What a discard returned for may come back or not
// after a crash. The journal is atomic and durable at Commit.
package clone
