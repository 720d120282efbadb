package clone_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/region"
)

// plain is a setup without anything special: data regions of 8 KiB.
func plain(regions int) clonetest.Setup {
	s := clonetest.Setup{
		Seed: 1, RegionBytes: 8 << 10, BufferBytes: 4 << 10, BatchRegions: 1, CommitEvery: 1,
		DeviceBytes: int64(regions) * 8 << 10,
	}
	for range regions * 2 {
		s.Content = append(s.Content, clonetest.Data)
	}
	return s
}

func hydrate(t *testing.T, c *clone.Clone, r region.Range) {
	t.Helper()
	if _, err := c.Hydrate(context.Background(), r); err != nil {
		t.Fatalf("hydrate %v: %v", r, err)
	}
}

func commit(t *testing.T, c *clone.Clone) {
	t.Helper()
	if err := c.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

// fault 82: a read of the source that is stopped in its middle holds up the discard
// of what it reads, and of nothing before that.
func TestFault82DiscardWaitsForRead(t *testing.T) {
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
		read, discarded := make(chan error, 1), make(chan error, 1)
		go func() { read <- m.ReadBack(c, s.RegionBytes+100, 1000) }()
		synctest.Wait()

		hydrate(t, c, c.Geometry.All())
		commit(t, c)
		go func() { discarded <- c.DiscardSource(context.Background(), c.TakeCommitted()) }()
		synctest.Wait()
		if len(discarded) > 0 {
			t.Errorf("the discard ended during the read: %v", <-discarded)
		}
		close(gate)
		if err := errors.Join(<-read, <-discarded, m.Finished()); err != nil {
			t.Error(err)
		}
	})
}

// The end of its context ends the waiting of a discard, and the regions can be
// discarded later.
func TestDiscardGivesUpWaiting(t *testing.T) {
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
		read, discarded := make(chan error, 1), make(chan error, 1)
		go func() { read <- m.ReadBack(c, 0, 1000) }()
		synctest.Wait()
		hydrate(t, c, c.Geometry.All())
		commit(t, c)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { discarded <- c.DiscardSource(ctx, c.TakeCommitted()) }()
		synctest.Wait()
		cancel()
		if err := <-discarded; !errors.Is(err, context.Canceled) {
			t.Errorf("canceled discard: %v", err)
		}
		close(gate)
		if err := <-read; err != nil {
			t.Error(err)
		}
		done := c.TakeCommitted()
		if done.Regions() != 3 {
			t.Errorf("%d regions to discard, want all 3", done.Regions())
		}
		if err := errors.Join(c.DiscardSource(context.Background(), done), m.Finished()); err != nil {
			t.Error(err)
		}
	})
}

// fault 47: while a flush fails and drops what it should have kept, reads show the
// source's bytes.
func TestFault47ReadDuringFailingFlush(t *testing.T) {
	s := plain(4)
	m := clonetest.New(s)
	c := open(t, m)
	hydrate(t, c, region.Range{Count: 2})
	commit(t, c)
	hydrate(t, c, c.Geometry.All())
	var during error
	m.Meanwhile = func(op clonetest.Op) {
		if op == clonetest.DestinationFlush {
			during = m.ReadBack(c, 0, s.DeviceBytes)
		}
	}
	m.Inject(clonetest.Fault{Call: m.Calls() + 1})
	if err := c.Commit(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("commit: %v", err)
	}
	if err := errors.Join(during, m.ReadBack(c, 0, s.DeviceBytes)); err != nil {
		t.Error(err)
	}
	changesNothing(t, m, c)
	if st := c.Status(); st.Hydrated != 2 || st.Dirty != 0 || st.Mode != clone.ReadOnly {
		t.Errorf("status %+v, want 2 regions hydrated, none dirty, read-only", st)
	}
}

// Any read at any moment shows the image, and io.EOF exactly when it reaches beyond
// the end.
func TestReadAtAnyOffset(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := clonetest.Setups().Draw(rt, "setup")
		m := clonetest.New(s)
		c := open(rt, m)
		all := c.Geometry.All()
		first := rapid.Uint64Range(0, all.Count-1).Draw(rt, "first")
		r := region.Between(region.Nr(first), all.End())
		if _, err := c.Hydrate(context.Background(), r); err != nil {
			rt.Fatalf("hydrate: %v", err)
		}
		if err := c.Commit(); err != nil {
			rt.Fatalf("commit: %v", err)
		}
		off := rapid.Int64Range(0, s.DeviceBytes+10).Draw(rt, "off")
		p := make([]byte, rapid.IntRange(0, int(s.DeviceBytes)+10).Draw(rt, "n"))
		n, err := c.ReadAt(p, off)
		image := s.Image()
		want := image[min(off, s.DeviceBytes):min(off+int64(len(p)), s.DeviceBytes)]
		if !bytes.Equal(p[:n], want) {
			rt.Fatalf("read %d bytes at %d: %d bytes, want %d of the image", len(p), off, n, len(want))
		}
		if short := n < len(p); short != errors.Is(err, io.EOF) || err != nil && !short {
			rt.Fatalf("read %d bytes at %d of %d: %d, %v", len(p), off, s.DeviceBytes, n, err)
		}
	})
}

// A read of no bytes leaves nothing unread, also where there is nothing to read.
func TestReadOfNothing(t *testing.T) {
	c := open(t, clonetest.New(plain(1)))
	for _, off := range []int64{0, 1, c.Bytes() - 1, c.Bytes(), c.Bytes() + 1, math.MaxInt64} {
		for _, p := range [][]byte{nil, {}} {
			if n, err := c.ReadAt(p, off); n != 0 || err != nil {
				t.Errorf("a read of nothing at %d of %d: %d, %v", off, c.Bytes(), n, err)
			}
		}
	}
}

func TestReadAtNegativeOffset(t *testing.T) {
	c := open(t, clonetest.New(plain(1)))
	if n, err := c.ReadAt(make([]byte, 1), -1); n != 0 || err == nil {
		t.Errorf("read at -1: %d, %v", n, err)
	}
}
