package clone

import (
	"cmp"
	"slices"

	"decant/journal"
)

// Commit ends the current metadata transaction. The order is the safety of the
// program:
//
//	seal     regions that become Dirty from here on belong to the next transaction
//	flush    the destination holds every byte of the sealed regions               (I1)
//	journal  the sealed regions are recorded hydrated, and that survives power loss (I1)
//	publish  from here on their source may be discarded                           (I2)
//
// It returns nil only if all regions that were Dirty when it began are Hydrated.
// A clone whose flush or journal failed is read-only from then on.
func (c *Clone) Commit() error {
	c.commit.Lock()
	defer c.commit.Unlock()
	if err := c.writable(); err != nil {
		return err
	}
	sealed := c.regions.seal()
	if err := c.Destination.Flush(); err != nil {
		return c.abort("flush the destination", err)
	}
	if sealed.regions.Count() == 0 {
		return nil
	}
	tx, err := c.journalCommit(sealed)
	if err != nil {
		return c.abort("commit the metadata transaction", err)
	}
	c.regions.publish(tx)
	return nil
}

func (c *Clone) journalCommit(sealed *transaction) (journal.TxID, error) {
	t := c.asTransaction(sealed)
	c.record.Lock()
	defer c.record.Unlock()
	return c.Journal.Commit(t)
}

// asTransaction is a sealed transaction as the journal wants it.
func (c *Clone) asTransaction(sealed *transaction) journal.Transaction {
	sums := make([]journal.Checksum, 0, len(sealed.checksums))
	for nr, sum := range sealed.checksums {
		sums = append(sums, journal.Checksum{Nr: nr, Sum: sum})
	}
	slices.SortFunc(sums, func(a, b journal.Checksum) int { return cmp.Compare(a.Nr, b.Nr) })
	t := journal.Transaction{Hydrated: sealed.regions, Checksums: sums, CopiedBytes: sealed.copiedBytes}
	if c.PeakExtraBytes != nil {
		t.PeakExtraBytes = c.PeakExtraBytes()
	}
	return t
}
