package clone_test

import (
	"context"
	"errors"
	"testing"

	"decant/clone"
	"decant/clone/clonetest"
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
