package clone

import (
	"cmp"
	"slices"
	"sync"

	"decant/journal"
)

// Commit ends the current metadata transaction. The order is the safety of the
// program:
//
//	seal     regions that become Dirty from here on belong to the next transaction
//	flush    the destination holds every byte of the sealed regions, and all that
//	         guests have written elsewhere                                        (I1, I4)
//	journal  the sealed regions are recorded hydrated, and that survives power loss (I1)
//	publish  from here on their source may be discarded                           (I2)
//
// It returns nil only if all regions that were Dirty when it began are Hydrated,
// and all that guests were told before is durable. Calls that wait for their turn
// at the same time share it: the background run and guests alike. A clone whose
// flush or journal failed is read-only from then on.
func (c *Clone) Commit() (err error) {
	turn, mine := c.turns.join()
	if !mine {
		<-turn.ended
		return turn.err
	}
	c.commit.Lock()
	defer c.commit.Unlock()
	c.turns.begin()
	defer func() { turn.end(err) }()

	if err := c.writable(); err != nil {
		return err
	}
	sealed := c.regions.seal()
	if err := c.Destination.Flush(); err != nil {
		return c.abort("flush the destination", err)
	}
	if sealed.empty() {
		return nil
	}
	tx, err := c.journalCommit(sealed)
	if err != nil {
		return c.abort("commit the metadata transaction", err)
	}
	c.regions.publish(tx)
	return nil
}

// turns lets commits that wait for the one before them be made as one.
type turns struct {
	mu   sync.Mutex
	next *turn // has not begun; nil if nobody waits
}

// turn is one commit, which some call makes for all that have joined.
type turn struct {
	ended chan struct{}
	err   error // read after ended
}

// join gives the turn that begins next, and says whether the caller has to make it.
func (t *turns) join() (next *turn, mine bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next != nil {
		return t.next, false
	}
	t.next = &turn{ended: make(chan struct{})}
	return t.next, true
}

// begin ends the joining: whoever comes later wants a commit that begins later.
func (t *turns) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = nil
}

func (t *turn) end(err error) {
	t.err = err
	close(t.ended)
}

func (c *Clone) journalCommit(sealed *transaction) (journal.TxID, error) {
	t := c.asTransaction(sealed)
	c.record.Lock()
	defer c.record.Unlock()
	return c.Journal.Commit(t)
}

// asTransaction is a sealed transaction as the journal wants it. Regions whose
// checksum goes are in it even if an earlier one made them Hydrated.
func (c *Clone) asTransaction(sealed *transaction) journal.Transaction {
	sums := make([]journal.Checksum, 0, len(sealed.checksums))
	for nr, sum := range sealed.checksums {
		sums = append(sums, journal.Checksum{Nr: nr, Sum: sum})
	}
	t := journal.Transaction{Hydrated: sealed.regions, CopiedBytes: sealed.copied.total}
	if sealed.unsummed.Count() > 0 {
		t.Hydrated = sealed.regions.Clone()
		t.Hydrated.Union(sealed.unsummed)
	}
	for run := range sealed.unsummed.Ranges() {
		for nr := run.First; nr < run.End(); nr++ {
			sums = append(sums, journal.Checksum{Nr: nr, Sum: journal.WrittenSum})
		}
	}
	slices.SortFunc(sums, func(a, b journal.Checksum) int { return cmp.Compare(a.Nr, b.Nr) })
	t.Checksums = sums
	if c.PeakExtraBytes != nil {
		t.PeakExtraBytes = c.PeakExtraBytes()
	}
	return t
}
