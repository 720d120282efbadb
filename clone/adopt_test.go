package clone_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/journal"
	"decant/region"
)

// otherEngine copies regions in place of the clone, and has it adopt them, commit and
// discard: two at a time, until it has them all or something fails. What it has begun
// with is what survived of an engine before it.
func otherEngine(m *clonetest.Machine, c *clone.Clone, s clonetest.Setup, filled *region.Set) error {
	if err := c.DiscardSource(context.Background(), c.TakeCommitted()); err != nil {
		return err
	}
	for nr := region.Nr(0); uint64(nr) < c.Geometry.Regions(); nr++ {
		one := region.Range{First: nr, Count: 1}
		if !filled.Has(nr) {
			off, n := c.Geometry.Bytes(one)
			if _, err := m.Config().Destination.WriteAt(s.Image()[off:off+n], off); err != nil {
				return err
			}
		}
		if nr%2 == 0 && uint64(nr)+1 < c.Geometry.Regions() {
			continue
		}
		// Durable before it is adopted: what the other engine knows survives.
		if err := m.Config().Destination.Flush(); err != nil {
			return err
		}
		filled.Add(region.Between(nr-nr%2, nr+1))
		if err := errors.Join(c.Adopt(filled.Clone(), 1), c.Commit()); err != nil {
			return err
		}
		if err := c.DiscardSource(context.Background(), c.TakeCommitted()); err != nil {
			return err
		}
	}
	return nil
}

func TestAdopt(t *testing.T) {
	s := plain(5)
	m := clonetest.New(s)
	c := open(t, m)
	hydrate(t, c, region.Range{First: 2, Count: 1})
	commit(t, c)
	if err := otherEngine(m, c, s, region.NewSet()); err != nil {
		t.Fatal(err)
	}
	if st := c.Status(); st.Hydrated != 5 || st.Discarded != 5 || st.CopiedBytes != s.RegionBytes+3 {
		t.Errorf("status %+v", st)
	}
	for sum, err := range m.Config().Journal.Checksums(journal.Forward, c.Geometry.All()) {
		if wrong := (sum.Sum == journal.WrittenSum) == (sum.Nr == 2); wrong || err != nil {
			t.Errorf("region %d has checksum %x, %v", sum.Nr, sum.Sum, err)
		}
	}
	if err := errors.Join(c.Check(), m.Finished(), m.Violations(), m.ReadBack(c, 0, s.DeviceBytes)); err != nil {
		t.Error(err)
	}
}

// fault 63: the power is cut after every step. Every region is whole on the side that
// the journal names, and what the other engine knows is never less than the journal.
func TestAdoptSurvivesEveryCut(t *testing.T) {
	s := plain(5)
	whole := clonetest.New(s)
	if err := otherEngine(whole, open(t, whole), s, region.NewSet()); err != nil {
		t.Fatal(err)
	}
	for step := 1; step < whole.Steps(); step++ {
		for _, form := range clonetest.CrashForms {
			t.Run(fmt.Sprintf("step %d, form %v", step, form), func(t *testing.T) {
				m := clonetest.New(s)
				m.CrashAfter(step)
				filled := region.NewSet()
				_ = otherEngine(m, open(t, m), s, filled) // ends with the power
				m = m.Crash(random(uint64(step), 1), form)
				if err := errors.Join(m.Owners(), m.Violations()); err != nil {
					t.Fatal(err)
				}
				c := open(t, m)
				if _, err := c.Recheck(context.Background()); err != nil {
					t.Fatal(err)
				}
				if err := otherEngine(m, c, s, filled); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(c.Check(), m.Finished(), m.Crash(random(1, 2), clonetest.LoseAll).Owners()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A commit that fails leaves the source alone.
func TestAdoptAndCommitFails(t *testing.T) {
	m := clonetest.New(plain(3))
	c := open(t, m)
	m.Inject(clonetest.Fault{Call: m.Calls() + 1, Forever: true})
	if err := c.Adopt(region.NewSet(c.Geometry.All()), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(); err == nil {
		t.Fatal("the flush was to fail")
	}
	if st := c.Status(); st.Mode != clone.ReadOnly || st.Hydrated != 0 || st.Dirty != 0 || c.TakeCommitted().Regions() != 0 {
		t.Errorf("status %+v", st)
	}
	if err := c.Adopt(region.NewSet(c.Geometry.All()), 0); !errors.Is(err, clone.ErrReadOnly) {
		t.Errorf("adopt after that: %v", err)
	}
}

func TestAdoptRefuses(t *testing.T) {
	m := clonetest.New(plain(3))
	c := open(t, m)
	if err := c.Adopt(region.NewSet(region.Range{First: 2, Count: 2}), 0); !errors.Is(err, clone.ErrAdopt) {
		t.Errorf("behind the end: %v", err)
	}
	if st := c.Status(); st.Dirty != 0 {
		t.Errorf("status %+v", st)
	}
}
