package clone_test

import (
	"context"
	"errors"
	"testing"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/journal"
	"decant/region"
)

// Batches may be discarded in another order than they were committed; the mark on
// the source never goes down (I11).
func TestMarkNeverGoesDown(t *testing.T) {
	m := clonetest.New(plain(2))
	c := open(t, m)
	var batches []clone.Committed
	for nr := range region.Nr(2) {
		hydrate(t, c, region.Range{First: nr, Count: 1})
		commit(t, c)
		batches = append(batches, c.TakeCommitted())
	}
	if batches[0].Tx() != 1 || batches[1].Tx() != 2 {
		t.Fatalf("transactions %d and %d, want 1 and 2", batches[0].Tx(), batches[1].Tx())
	}
	for _, done := range []clone.Committed{batches[1], batches[0]} {
		if err := c.DiscardSource(context.Background(), done); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Finished(); err != nil {
		t.Error(err)
	}
}

func TestDiscardNeedsMarker(t *testing.T) {
	m := clonetest.New(plain(2))
	cfg := m.Config()
	cfg.Marker = nil
	c, err := clone.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Check(); err != nil {
			t.Error(err)
		}
	})
	hydrate(t, c, c.Geometry.All())
	commit(t, c)
	before := m.Steps()
	if err := c.DiscardSource(context.Background(), c.TakeCommitted()); !errors.Is(err, clone.ErrNoMarker) {
		t.Errorf("discard without a marker: %v", err)
	}
	if m.Steps() != before {
		t.Error("something was changed without a marker")
	}
	if n := c.TakeCommitted().Regions(); n != 2 {
		t.Errorf("%d regions to discard, want 2 again", n)
	}
}

// Nothing is handed out before it is committed, and nothing twice.
func TestTakeCommittedHandsOutOnce(t *testing.T) {
	m := clonetest.New(plain(3))
	c := open(t, m)
	hydrate(t, c, region.Range{Count: 2})
	if n := c.TakeCommitted().Regions(); n != 0 {
		t.Errorf("%d regions handed out before the commit", n)
	}
	commit(t, c)
	done := c.TakeCommitted()
	if done.Regions() != 2 || done.CopiedBytes() != 16<<10 {
		t.Errorf("%d regions of %d bytes handed out, want 2 of 16384", done.Regions(), done.CopiedBytes())
	}
	if n := c.TakeCommitted().Regions(); n != 0 {
		t.Errorf("%d regions handed out twice", n)
	}
	if n := (clone.Committed{}).Regions(); n != 0 {
		t.Errorf("a zero Committed has %d regions", n)
	}
	if err := c.DiscardSource(context.Background(), clone.Committed{}); err != nil || m.Steps() == 0 {
		t.Errorf("discard of nothing: %v", err)
	}
}

// A flush or a commit that fails while a discard waits for its turn ends the
// discard before the next region (I13).
func TestDiscardEndsWhenCommitFails(t *testing.T) {
	m := clonetest.New(plain(6))
	c := open(t, m)
	for _, nr := range []region.Nr{0, 2, 4} {
		hydrate(t, c, region.Range{First: nr, Count: 1})
	}
	commit(t, c)
	hydrate(t, c, region.Range{First: 5, Count: 1})
	discards := 0
	m.Meanwhile = func(op clonetest.Op) {
		if op != clonetest.SourceDiscard {
			return
		}
		if discards++; discards == 1 {
			m.Inject(clonetest.Fault{Call: m.Calls() + 1})
			if err := c.Commit(); err == nil {
				t.Error("the commit did not fail")
			}
			m.Inject(clonetest.Fault{})
		}
	}
	if err := c.DiscardSource(context.Background(), c.TakeCommitted()); !errors.Is(err, clone.ErrReadOnly) {
		t.Errorf("discard: %v", err)
	}
	if discards != 1 {
		t.Errorf("%d discards, want the one that was under way", discards)
	}
	if n := c.Status().Discarded; n != 1 {
		t.Errorf("%d regions discarded, want 1", n)
	}
}

// What a process did not discard, the next one is handed after Open.
func TestOpenHandsOutWhatWasNotDiscarded(t *testing.T) {
	m := clonetest.New(plain(3))
	c := open(t, m)
	hydrate(t, c, region.Range{Count: 2})
	commit(t, c)
	c = open(t, m.Restart())
	if done := c.TakeCommitted(); done.Regions() != 2 || done.Tx() != journal.TxID(1) || done.CopiedBytes() != 0 {
		t.Errorf("%d regions up to transaction %d, %d bytes; want 2, 1, 0", done.Regions(), done.Tx(), done.CopiedBytes())
	}
}
