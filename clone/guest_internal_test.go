package clone

import (
	"errors"
	"io"
	"testing"

	"decant/journal"
	"decant/region"
)

// idle is a destination on which every operation succeeds at once.
type idle struct {
	Destination
	flush func()
}

func (idle) Bytes() int64                                               { return 1 << 30 }
func (idle) ReadAt(p []byte, _ int64) (int, error)                      { return len(p), nil }
func (idle) WriteAt(p []byte, _ int64) (int, error)                     { return len(p), nil }
func (idle) Zero(int64, int64) error                                    { return nil }
func (d idle) Flush() error                                             { d.flush(); return nil }
func (idle) Discard(int64, int64) error                                 { return nil }
func (j fixedJournal) Commit(journal.Transaction) (journal.TxID, error) { return j.state.Tx + 1, nil }

// idleClone has the given regions of 1 MiB hydrated and discarded, so that none is in doubt.
func idleClone(t testing.TB, hydrated region.Range, flush func()) *Clone {
	g, err := region.NewGeometry(1<<30, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	state := journal.State{Tx: 1, Hydrated: region.NewSet(hydrated), Discarded: region.NewSet(hydrated)}
	d := idle{flush: flush}
	c, err := Open(Config{Source: d, Destination: d, Journal: fixedJournal{state: state}, Geometry: g, BufferBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Calls that wait for a commit to end share the next one; nobody joins one that has
// begun, since it need not cover what was written meanwhile.
func TestFlushesShareCommits(t *testing.T) {
	var c *Clone
	inside := 0
	c = idleClone(t, region.Range{}, func() {
		if inside++; inside > 1 {
			return
		}
		second, mine := c.turns.join()
		third, also := c.turns.join()
		if !mine || also || second != third {
			t.Errorf("during a commit: the second makes one %v, the third %v, the same: %v", mine, also, second == third)
		}
		c.turns.begin()
		second.end(io.EOF)
		if err := third.err; !errors.Is(err, io.EOF) {
			t.Errorf("the third was told %v", err)
		}
	})
	for range 2 {
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if inside != 2 {
		t.Errorf("%d flushes, want 2", inside)
	}
}

// A guest's request to a region that is settled costs a look at the state and the
// request itself.
func TestGuestRequestsDoNotAllocate(t *testing.T) {
	c := idleClone(t, region.Range{Count: 512}, func() {})
	p := make([]byte, 4096)
	request := map[string]func() error{
		"read":    func() error { _, err := c.ReadAt(p, 12288); return err },
		"write":   func() error { _, err := c.WriteAt(p, 12288); return err },
		"zero":    func() error { return c.Zero(12288, 4096) },
		"discard": func() error { return c.Discard(12288, 4096) },
	}
	for name, do := range request {
		if err := do(); err != nil { // the first one may commit
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() { _ = do() }); n != 0 { // what fails is seen above
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkGuestRead(b *testing.B) {
	c := idleClone(b, region.Range{Count: 1024}, func() {})
	p := make([]byte, 4096)
	for i := range b.N {
		_, _ = c.ReadAt(p, int64(i)*4096%(1<<30)) // cannot fail
	}
}

func BenchmarkGuestWrite(b *testing.B) {
	c := idleClone(b, region.Range{Count: 1024}, func() {})
	p := make([]byte, 4096)
	for i := range b.N {
		_, _ = c.WriteAt(p, int64(i)*4096%(1<<30)) // cannot fail
	}
}

// Hydration follows what guests read: first the regions that they have read, in that
// order, then some that follow the last one, then the rest.
func TestNextFollowsReads(t *testing.T) {
	c := idleClone(t, region.Range{Count: 100}, func() {})
	p := make([]byte, 4096)
	for _, nr := range []int64{50, 500, 501, 700} {
		if _, err := c.ReadAt(p, nr<<20); err != nil {
			t.Fatal(err)
		}
	}
	all := c.Geometry.All()
	take := func(within region.Range, first region.Nr, count uint64, wanted bool) {
		t.Helper()
		work, ok, err := c.Next(within, 4)
		if err != nil || !ok || work.Range != (region.Range{First: first, Count: count}) || work.Wanted != wanted {
			t.Errorf("work %+v, %v, %v; want %d regions at %d, wanted %v", work, ok, err, count, first, wanted)
		}
		c.regions.claim(work.Range)
	}
	take(all, 500, 4, true) // 50 is hydrated
	take(all, 700, 4, true) // 501 is being hydrated
	take(all, 704, 4, true)
	take(all, 708, 4, true)
	take(all, 100, 4, false) // readahead has ended
	for nr := int64(1000); nr < 1000+2*maxWanted && nr < 1024; nr++ {
		_, _ = c.ReadAt(p, nr<<20) // cannot fail
	}
	take(region.Range{Count: 200}, 104, 4, false) // what is wanted lies outside
}

// The number of remembered reads is bounded, and the newest count.
func TestWantedIsBounded(t *testing.T) {
	var w wanted
	for nr := range region.Nr(10 * maxWanted) {
		w.add(nr)
		w.add(nr)
	}
	if len(w.queue) != maxWanted || w.queue[0] != 9*maxWanted {
		t.Errorf("%d regions from %d on", len(w.queue), w.queue[0])
	}
}

// What cannot be read is not asked for again and again.
func TestFailedCopiesAreNotWanted(t *testing.T) {
	c := idleClone(t, region.Range{}, func() {})
	bad := region.Range{First: 7, Count: 1}
	c.regions.claim(bad)
	c.regions.release(bad)
	p := make([]byte, 4096)
	if _, err := c.ReadAt(p, 7<<20); err != nil {
		t.Fatal(err)
	}
	if work, _, _ := c.Next(c.Geometry.All(), 1); work.Wanted || work.Range.First != 0 {
		t.Errorf("work %+v, want the first region in order", work)
	}
}
