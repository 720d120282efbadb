package clone_test

import (
	"context"
	"errors"
	"testing"

	"github.com/zeebo/xxh3"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/journal"
	"decant/region"
)

func TestOpenRefusesWhatDoesNotFit(t *testing.T) {
	geometry := func(bytes int64) region.Geometry {
		g, err := region.NewGeometry(bytes, 8<<10)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	for name, change := range map[string]func(*clone.Config){
		"fault 28: destination smaller": func(c *clone.Config) {
			c.Destination = clonetest.New(plain(1)).Config().Destination
		},
		"source smaller":    func(c *clone.Config) { c.Geometry = geometry(3 * 8 << 10) },
		"source larger":     func(c *clone.Config) { c.Geometry = geometry(8 << 10) },
		"buffer too small":  func(c *clone.Config) { c.BufferBytes = 2 << 10 },
		"buffer not a 2^n":  func(c *clone.Config) { c.BufferBytes = 12 << 10 },
		"buffer of 0 bytes": func(c *clone.Config) { c.BufferBytes = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := clonetest.New(plain(2)).Config()
			change(&cfg)
			if c, err := clone.Open(cfg); !errors.Is(err, clone.ErrGeometry) {
				t.Errorf("opened: %v, %v", c, err)
			}
		})
	}
}

// fault 29: a larger destination is fine, and is not touched behind the end.
func TestFault29DestinationLarger(t *testing.T) {
	s := plain(2)
	s.ExtraBytes, s.Garbage = 12345, true
	m := clonetest.New(s)
	finish(t, m, random(1, 1))
}

// A journal that has regions behind the end of the device belongs to another one.
func TestOpenRefusesForeignJournal(t *testing.T) {
	m := clonetest.New(plain(5))
	c := open(t, m)
	hydrate(t, c, c.Geometry.All())
	commit(t, c)
	cfg := clonetest.New(plain(2)).Config()
	cfg.Journal = m.Config().Journal
	if c, err := clone.Open(cfg); !errors.Is(err, clone.ErrCheck) {
		t.Errorf("opened: %v, %v", c, err)
	}
}

// What is Dirty can be asked for, and is no more when it was committed.
func TestDirtyUntilCommitted(t *testing.T) {
	c := open(t, clonetest.New(plain(5)))
	some := region.Range{First: 1, Count: 3}
	hydrate(t, c, some)
	dirty := c.Dirty()
	if !dirty.Equal(region.NewSet(some)) {
		t.Errorf("%d regions are dirty, not 3", dirty.Count())
	}
	dirty.Remove(some) // the set is the caller's
	commit(t, c)
	if n := c.Dirty().Count(); n != 0 || c.Status().Hydrated != 3 {
		t.Errorf("after the commit %d regions are dirty, %+v", n, c.Status())
	}
}

// Ranges that reach beyond the device stop at its end.
func TestWorkStopsAtTheEnd(t *testing.T) {
	beyond := region.Range{First: 1, Count: 1 << 20}
	for name, work := range map[string]func(*clone.Clone) error{
		"Hydrate": func(c *clone.Clone) error {
			_, err := c.Hydrate(context.Background(), beyond)
			return err
		},
		"HydrateHole": func(c *clone.Clone) error { return c.HydrateHole(context.Background(), beyond) },
		"Next": func(c *clone.Clone) error {
			work, ok, err := c.Next(region.Range{First: 1, Count: 7}, 100)
			if want := (region.Range{First: 1, Count: 2}); work.Range != want || !ok {
				t.Errorf("next work %v, want %v", work.Range, want)
			}
			if _, ok, _ := c.Next(region.Range{First: 3, Count: 1}, 100); ok {
				t.Error("there is work behind the end")
			}
			_, hydrateErr := c.Hydrate(context.Background(), work.Range)
			return errors.Join(err, hydrateErr)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, clonetest.New(plain(3)))
			if err := errors.Join(work(c), c.Commit()); err != nil {
				t.Fatal(err)
			}
			if n := c.Status().Hydrated; n != 2 {
				t.Errorf("%d regions hydrated, want 2", n)
			}
		})
	}
}

// fault 48, fault 49: with Verify, bytes that the destination stored wrongly are
// never hydrated, and the source keeps the region.
func TestFault49VerifyFindsWrongBytes(t *testing.T) {
	for _, content := range []clonetest.Content{clonetest.Data, clonetest.Zeros, clonetest.Hole} {
		for _, sparse := range []bool{false, true} {
			s := plain(3)
			s.Verify, s.Garbage, s.Sparse = true, true, sparse
			s.Content[2], s.Content[3] = content, content
			m := clonetest.New(s)
			m.Corrupt = func(off, n int64) bool { return off < 2*s.RegionBytes && off+n > s.RegionBytes }
			c := open(t, m)
			if err := m.Drive(c, random(1, 1)); !errors.Is(err, clone.ErrMismatch) {
				t.Errorf("content %d: run: %v", content, err)
			}
			if err := errors.Join(m.ReadBack(c, 0, s.DeviceBytes), m.Crash(random(1, 1), clonetest.KeepAll).Owners()); err != nil {
				t.Errorf("content %d: %v", content, err)
			}
		}
	}
}

// overwriter changes the memory that it is to write, and writes that.
type overwriter struct{ clone.Destination }

func (o overwriter) WriteAt(p []byte, off int64) (int, error) {
	p[len(p)/2] ^= 0xa5
	return o.Destination.WriteAt(p, off)
}

// sumKeeper keeps the checksums of what is committed.
type sumKeeper struct {
	clone.Journal
	sums map[region.Nr]uint64
}

func (j sumKeeper) Commit(t journal.Transaction) (journal.TxID, error) {
	for _, s := range t.Checksums {
		j.sums[s.Nr] = s.Sum
	}
	return j.Journal.Commit(t)
}

// fault 49: a stack that corrupts what it is given to write corrupts the memory as
// well. What counts is what was read from the source.
func TestFault49MemoryChangesUnderAWrite(t *testing.T) {
	for _, verify := range []bool{true, false} {
		s := plain(3)
		s.Verify = verify
		cfg := clonetest.New(s).Config()
		sums := map[region.Nr]uint64{}
		cfg.Destination, cfg.Journal = overwriter{cfg.Destination}, sumKeeper{cfg.Journal, sums}
		c, err := clone.Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		_, err = c.Hydrate(context.Background(), c.Geometry.All())
		if verify {
			if !errors.Is(err, clone.ErrMismatch) || c.Status().Dirty != 0 {
				t.Errorf("with Verify: %v, status %+v", err, c.Status())
			}
			continue
		}
		if err := errors.Join(err, c.Commit()); err != nil {
			t.Fatal(err)
		}
		for nr := range region.Nr(c.Geometry.Regions()) {
			off, n := c.Geometry.Bytes(region.Range{First: nr, Count: 1})
			if want := xxh3.Hash(s.Image()[off : off+n]); sums[nr] != want {
				t.Errorf("checksum of region %d is %x, its source's is %x", nr, sums[nr], want)
			}
		}
	}
}

// A canceled copy leaves its regions to the next one.
func TestHydrateCanceled(t *testing.T) {
	m := clonetest.New(plain(3))
	c := open(t, m)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if n, err := c.Hydrate(ctx, c.Geometry.All()); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("hydrate: %d, %v", n, err)
	}
	if st := c.Status(); st.Hydrating != 0 || st.Dirty != 0 {
		t.Errorf("status %+v", st)
	}
	finish(t, m, random(1, 1))
}
