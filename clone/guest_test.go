package clone_test

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/journal"
	"decant/region"
)

// change makes a guest's change that has to work.
func change(t *testing.T, m *clonetest.Machine, c *clone.Clone, op clonetest.GuestOp, off, n int64) {
	t.Helper()
	if err := m.Change(c, op, off, n, random(uint64(off), uint64(n))); err != nil {
		t.Fatalf("change of %d bytes at %d: %v", n, off, err)
	}
}

// readAll compares the whole device with what it may hold.
func readAll(t *testing.T, m *clonetest.Machine, c *clone.Clone) {
	t.Helper()
	if err := m.ReadBack(c, 0, c.Bytes()); err != nil {
		t.Error(err)
	}
}

// counted counts the calls of each operation.
func counted(m *clonetest.Machine) *[16]atomic.Int64 {
	var calls [16]atomic.Int64
	m.Meanwhile = func(op clonetest.Op) { calls[op].Add(1) }
	return &calls
}

// A guest's change is seen at once, whatever the state of the region.
func TestGuestReadsItsWrites(t *testing.T) {
	one := region.Range{First: 1, Count: 1}
	for name, before := range map[string]func(*clone.Clone) error{
		"unhydrated": func(*clone.Clone) error { return nil },
		"dirty": func(c *clone.Clone) error {
			_, err := c.Hydrate(context.Background(), one)
			return err
		},
		"hydrated": func(c *clone.Clone) error {
			_, err := c.Hydrate(context.Background(), one)
			return errors.Join(err, c.Commit())
		},
		"trimmed": func(c *clone.Clone) error { return c.Discard(8<<10, 8<<10) },
	} {
		for _, op := range []clonetest.GuestOp{clonetest.GuestWrite, clonetest.GuestZero, clonetest.GuestDiscard} {
			for place, r := range map[string][2]int64{
				"a part": {9 << 10, 1 << 10}, "all of it": {8 << 10, 8 << 10}, "it and its neighbours": {1 << 10, 20 << 10},
			} {
				t.Run(name+", "+place, func(t *testing.T) {
					s := plain(3)
					s.Garbage = true
					m := clonetest.New(s)
					c := open(t, m)
					if err := before(c); err != nil {
						t.Fatal(err)
					}
					if name == "trimmed" { // which the machine has to know
						change(t, m, c, clonetest.GuestDiscard, 8<<10, 8<<10)
					}
					change(t, m, c, op, r[0], r[1])
					readAll(t, m, c)
					if err := m.Flush(c.Flush); err != nil {
						t.Fatal(err)
					}
					readAll(t, m, c)
					if err := m.Crash(random(1, 1), clonetest.LoseAll).Owners(); err != nil {
						t.Errorf("after the flush: %v", err)
					}
				})
			}
		}
	}
}

// A write or trim of whole regions needs nothing of the source, and a trim of what
// reads zeros nothing of the destination either.
func TestGuestChangeOfWholeRegionsSkipsTheCopy(t *testing.T) {
	s := plain(4)
	s.KnownZero = true
	m := clonetest.New(s)
	calls := counted(m)
	c := open(t, m)
	change(t, m, c, clonetest.GuestWrite, 0, 16<<10)
	change(t, m, c, clonetest.GuestDiscard, 16<<10, 16<<10)
	if reads, zeros := calls[clonetest.SourceRead].Load(), calls[clonetest.DestinationZero].Load(); reads != 0 || zeros != 0 {
		t.Errorf("%d reads of the source, %d zeroings of what is zero", reads, zeros)
	}
	if writes := calls[clonetest.DestinationWrite].Load(); writes != 1 {
		t.Errorf("%d writes for two whole regions, want 1", writes)
	}
	if err := errors.Join(m.Flush(c.Flush), c.DiscardSource(context.Background(), c.TakeCommitted()), m.Finished()); err != nil {
		t.Error(err)
	}
}

// What the journal says of the content of a region is never wrong, and never thrown
// away where nobody wrote: the checksums of written regions go, those of others stay.
func TestGuestWritesTakeChecksumsAway(t *testing.T) {
	s := plain(8) // in blocks of BufferBytes, each of a single region
	cfg := clonetest.New(s).Config()
	sums := map[region.Nr]uint64{}
	cfg.Journal = sumKeeper{cfg.Journal, sums}
	c, err := clone.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	hydrate(t, c, region.Range{Count: 3})
	write := func(nr int64) error {
		_, err := c.WriteAt(make([]byte, 512), nr*s.RegionBytes+512)
		return err
	}
	if err := errors.Join(write(1), c.Flush(), write(2), write(3), c.Discard(4*s.RegionBytes, s.RegionBytes)); err != nil {
		t.Fatal(err)
	}
	hydrate(t, c, c.Geometry.All())
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	for nr := range region.Nr(8) {
		sum, some := sums[nr]
		if written := nr >= 1 && nr <= 3; written != (sum == journal.WrittenSum) || some == (nr == 4) {
			t.Errorf("region %d: checksum %x, recorded: %v", nr, sum, some)
		}
	}
}

// The first write to a block costs a commit, which takes the checksums of the whole
// block; the next ones cost nothing.
func TestGuestWritesAnnounceBlocks(t *testing.T) {
	s := plain(8)
	s.BufferBytes = 32 << 10
	m := clonetest.New(s)
	calls := counted(m)
	c := open(t, m)
	hydrate(t, c, c.Geometry.All())
	commit(t, c)
	for i, want := range []int64{2, 2, 2, 2, 3, 3} {
		change(t, m, c, clonetest.GuestWrite, int64(i)*s.RegionBytes, 512)
		if n := calls[clonetest.DestinationFlush].Load(); n != want {
			t.Errorf("%d commits after the write to region %d, want %d", n, i, want)
		}
	}
}

// fault 36: a guest gets ENOSPC, the rest of the device is as before, and the same
// write works when there is room.
func TestFault36NoSpaceForGuests(t *testing.T) {
	s := plain(3)
	for name, r := range map[string][2]int64{"part": {512, 512}, "whole": {0, 8 << 10}} {
		m := clonetest.New(s)
		c := open(t, m)
		next := m.Calls() + 1
		if name == "part" {
			next++ // after the read of the source
		}
		m.Inject(clonetest.Fault{Call: next, Err: syscall.ENOSPC})
		if err := m.Change(c, clonetest.GuestWrite, r[0], r[1], random(1, 1)); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v, want ENOSPC", name, err)
		}
		if op, _ := m.FaultHit(); op != clonetest.DestinationWrite {
			t.Errorf("%s: the fault hit %v", name, op)
		}
		readAll(t, m, c)
		if st := c.Status(); st.Mode != clone.ReadWrite || st.Hydrating != 0 || st.Dirty != 0 {
			t.Fatalf("%s: status %+v", name, st)
		}
		change(t, m, c, clonetest.GuestWrite, r[0], r[1])
		if err := errors.Join(m.Flush(c.Flush), m.Crash(random(1, 1), clonetest.LoseAll).Owners()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// fault 24: where the source cannot be read, a write of whole regions heals it, and a
// write of a part fails and changes nothing.
func TestFault24GuestWritesWhereTheSourceIsBad(t *testing.T) {
	s := plain(2)
	m := clonetest.New(s)
	c := open(t, m)
	m.Inject(clonetest.Fault{Call: m.Calls() + 1, Err: syscall.EIO})
	err := m.Change(c, clonetest.GuestWrite, 512, 512, random(1, 1))
	var ioErr *clone.IOError
	if !errors.As(err, &ioErr) || ioErr.Side != clone.SourceSide {
		t.Errorf("write of a part: %v", err)
	}
	m.Inject(clonetest.Fault{})
	readAll(t, m, c)
	calls := m.Calls()
	change(t, m, c, clonetest.GuestWrite, 0, s.RegionBytes)
	if m.Calls() != calls+1 {
		t.Errorf("%d calls for the write of a whole region, want the write alone", m.Calls()-calls)
	}
	readAll(t, m, c)
}

// After a failed flush guests are told at every change, and read what no flush has
// promised as it was before.
func TestGuestChangesNothingWhenReadOnly(t *testing.T) {
	m := clonetest.New(plain(4))
	c := open(t, m)
	change(t, m, c, clonetest.GuestWrite, 0, 8<<10)
	if err := m.Flush(c.Flush); err != nil {
		t.Fatal(err)
	}
	change(t, m, c, clonetest.GuestWrite, 512, 1024)
	change(t, m, c, clonetest.GuestWrite, 8<<10, 8<<10)
	m.Inject(clonetest.Fault{Call: m.Calls() + 1})
	if err := m.Flush(c.Flush); !errors.Is(err, syscall.EIO) {
		t.Fatalf("flush: %v", err)
	}
	m.Inject(clonetest.Fault{})
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	readAll(t, m, c)
	before := m.Steps()
	for off := int64(0); off < c.Bytes(); off += 4 << 10 {
		for op := clonetest.GuestWrite; op <= clonetest.GuestDiscard; op++ {
			if err := m.Change(c, op, off, 512, random(1, 1)); !errors.Is(err, clone.ErrReadOnly) {
				t.Errorf("change at %d: %v", off, err)
			}
		}
	}
	if err := c.Flush(); !errors.Is(err, clone.ErrReadOnly) {
		t.Errorf("flush: %v", err)
	}
	if m.Steps() != before {
		t.Error("something was changed")
	}
}

// A guest that waits for a region while a flush fails is told, and waits no more.
func TestGuestDoesNotWaitForeverForARegion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := clonetest.New(plain(2))
		gate, stop := make(chan struct{}), atomic.Bool{}
		m.Meanwhile = func(op clonetest.Op) {
			if op == clonetest.SourceRead && stop.CompareAndSwap(true, false) {
				<-gate
			}
		}
		c := open(t, m)
		stop.Store(true)
		hydrated, changed := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := c.Hydrate(context.Background(), region.Range{Count: 1})
			hydrated <- err
		}()
		synctest.Wait()
		go func() { changed <- m.Change(c, clonetest.GuestWrite, 0, 512, random(1, 1)) }()
		synctest.Wait()
		m.Inject(clonetest.Fault{Call: m.Calls() + 1})
		if err := c.Commit(); err == nil {
			t.Error("the commit did not fail")
		}
		m.Inject(clonetest.Fault{})
		if err := <-changed; !errors.Is(err, clone.ErrReadOnly) {
			t.Errorf("change: %v", err)
		}
		close(gate)
		if err := <-hydrated; !errors.Is(err, clone.ErrReadOnly) {
			t.Errorf("hydrate: %v", err)
		}
	})
}

// fault 47: a read of what a guest has written, which a failing flush overtakes,
// shows no bytes that the destination has lost.
func TestFault47GuestReadOvertakenByFailingFlush(t *testing.T) {
	s := plain(2)
	s.Garbage = true
	m := clonetest.New(s)
	c := open(t, m)
	change(t, m, c, clonetest.GuestWrite, 0, 8<<10)
	failed := false
	m.Meanwhile = func(op clonetest.Op) {
		if op != clonetest.DestinationRead || failed {
			return
		}
		failed = true
		m.Inject(clonetest.Fault{Call: m.Calls() + 1})
		if err := c.Commit(); err == nil {
			t.Error("the commit did not fail")
		}
		m.Inject(clonetest.Fault{})
	}
	readAll(t, m, c)
	if !failed {
		t.Error("the write was not read from the destination")
	}
}

// fault 82: a guest's read of the source that is stopped in its middle, while the
// region is trimmed, flushed and everything else is moved, still holds the discard
// up, and shows the bytes from before.
func TestFault82ReadHeldAcrossTrim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plain(3)
		m := clonetest.New(s)
		gate, stop := make(chan struct{}), atomic.Bool{}
		m.Meanwhile = func(op clonetest.Op) {
			if op == clonetest.SourceRead && stop.CompareAndSwap(true, false) {
				<-gate
			}
		}
		c := open(t, m)
		stop.Store(true)
		p, read, discarded := make([]byte, s.RegionBytes), make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := c.ReadAt(p, 0)
			read <- err
		}()
		synctest.Wait()
		change(t, m, c, clonetest.GuestDiscard, 0, s.RegionBytes)
		hydrate(t, c, c.Geometry.All())
		if err := m.Flush(c.Flush); err != nil {
			t.Fatal(err)
		}
		readAll(t, m, c)
		go func() { discarded <- c.DiscardSource(context.Background(), c.TakeCommitted()) }()
		synctest.Wait()
		if len(discarded) > 0 {
			t.Errorf("the discard ended during the read: %v", <-discarded)
		}
		close(gate)
		if err := errors.Join(<-read, <-discarded, m.Finished()); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(p, s.Image()[:s.RegionBytes]) {
			t.Error("the read shows other bytes than the source's")
		}
	})
}

func TestGuestChangeOutsideTheDevice(t *testing.T) {
	m := clonetest.New(plain(2))
	c := open(t, m)
	before := m.Steps()
	for _, r := range [][2]int64{{-1, 1}, {0, 16<<10 + 1}, {16 << 10, 1}, {16<<10 + 1, 0}, {1 << 62, 1 << 62}} {
		if r[1] < 1<<20 {
			if n, err := c.WriteAt(make([]byte, r[1]), r[0]); n != 0 || !errors.Is(err, clone.ErrOutside) {
				t.Errorf("write of %d at %d: %d, %v", r[1], r[0], n, err)
			}
		}
		if err := errors.Join(c.Zero(r[0], r[1])); !errors.Is(err, clone.ErrOutside) {
			t.Errorf("zero of %d at %d: %v", r[1], r[0], err)
		}
		if err := c.Discard(r[0], r[1]); !errors.Is(err, clone.ErrOutside) {
			t.Errorf("discard of %d at %d: %v", r[1], r[0], err)
		}
	}
	if err := c.Discard(0, -1); !errors.Is(err, clone.ErrOutside) {
		t.Errorf("discard of -1 bytes: %v", err)
	}
	if n, err := c.WriteAt(nil, 16<<10); n != 0 || err != nil {
		t.Errorf("write of nothing at the end: %d, %v", n, err)
	}
	if m.Steps() != before {
		t.Error("something was changed")
	}
}
