// Package clone makes one device of a source and a destination, and decides what
// may happen to a region: when it is copied, when it counts as hydrated, and when
// its source may be destroyed. All safety of the program is in this package.
//
// # States
//
//	             Hydrate            copied             Commit          DiscardSource
//	Unhydrated ──────────► Hydrating ──────► Dirty ───────────► Hydrated ───────────► Discarded
//	    ▲                     │                │                (durable)             (noted late)
//	    ├──── copy failed ────┘                │
//	    └──── flush or commit failed ──────────┘
//
// A crash makes Hydrating and Dirty regions Unhydrated. Hydrated stays. Discarded
// may fall back to Hydrated, and is then discarded once more.
//
//	transition                 function             what holds after it
//	Unhydrated → Hydrating     regions.claim        nobody else copies the region
//	Hydrating  → Unhydrated    regions.release      the destination may hold anything
//	Hydrating  → Dirty         regions.soil         the destination was sent every byte
//	Dirty      → sealed        regions.seal         the next flush covers every byte
//	sealed     → Hydrated      regions.publish      destination and journal survive power loss
//	Dirty, sealed → Unhydrated regions.forget       as after a crash; the clone is read-only
//	Hydrated   → handed out    regions.takeCommitted  one discard, and only one, is on its way
//	handed out → Discarded     regions.noteDiscarded  the source may hold anything
//	handed out → Hydrated      regions.giveBack     as before takeCommitted
//	Hydrated → Unhydrated      regions.distrust     after Open only: the destination has lost
//	                                                the region, the source was seen to hold it
//
// # Invariants
//
//	I1   A region is journaled hydrated only after a destination flush that began
//	     after its last copied byte was written.                      Commit
//	I2   A source region is discarded only after the transaction that records it
//	     has committed durably.                                       Commit, Committed
//	I3   No read of a source region is in flight when it is discarded. beginRead, drainReaders
//	I5   Hydration never writes a region that is Dirty or Hydrated.   claim
//	I6   Nothing writes to the source. Discards are whole regions inside the
//	     device.                                                      Source, discardRegions
//	I7   A failed flush or commit is never retried in place; modes only go down.
//	                                                                  abort
//	I8   The journal belongs to this source and this destination.     package service
//	I9   The journal does not live on the destination.                package service
//	I10  A hole or zeros are skipped only where the destination is known to read
//	     zeros; otherwise they are zeroed.                            claim, put, zero
//	I11  Before the first discard of a transaction the source says durably that it
//	     may have begun.                                              discardRegions, Marker
//	I12  Destination data bypasses the page cache.                    packages loopdev, thin
//	I13  When in doubt nothing more is discarded, and everything can be read.
//	                                                                  writable
//
// I4, on flushes by users of the device, waits for writes by users.
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
// What is noted as discarded has only one copy, and nothing to fall back to.
//
// # What is assumed of the media
//
// A sector of 512 bytes is written whole or not at all, or reads with an error. A
// successful flush means durable; a medium that lies about this is caught only by
// Config.Verify, and only for what it shows at once. What a discard returned for
// may come back or not after a crash. The journal is atomic and durable at Commit.
package clone
