package clone_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/region"
)

func TestExtentsTellHolesAndWhatIsHydrated(t *testing.T) {
	const regionBytes, granule = 8 << 10, 4 << 10
	s := plain(5)
	s.Sparse, s.KnownZero = true, true
	s.Content[3], s.Content[4], s.Content[5] = clonetest.Hole, clonetest.Hole, clonetest.Hole // half of region 1, and region 2
	m := clonetest.New(s)
	c := open(t, m)
	look := func(want ...clone.Extent) {
		t.Helper()
		if got, err := c.Extents(0, c.Bytes()); err != nil || !slices.Equal(got, want) {
			t.Errorf("%+v, %v\nwant\n%+v", got, err, want)
		}
	}
	data := func(n int64) clone.Extent { return clone.Extent{Bytes: n} }
	zero := func(n int64) clone.Extent { return clone.Extent{Bytes: n, Zero: true} }
	there := func(e clone.Extent) clone.Extent { e.Hydrated = true; return e }
	look(data(3*granule), zero(3*granule), data(4*granule))

	// Dirty regions belong to the source still, but for those that a guest has changed.
	hydrate(t, c, region.Range{First: 0, Count: 1})
	hydrate(t, c, region.Range{First: 2, Count: 1})
	look(data(3*granule), zero(3*granule), data(4*granule))
	change(t, m, c, clonetest.GuestDiscard, 3*regionBytes, regionBytes)
	look(data(3*granule), zero(3*granule), there(zero(regionBytes)), data(2*granule))
	commit(t, c)
	look(there(data(regionBytes)), data(granule), zero(granule), there(zero(2*regionBytes)), data(2*granule))
	if err := c.DiscardSource(context.Background(), c.TakeCommitted()); err != nil {
		t.Fatal(err)
	}
	look(there(data(regionBytes)), data(granule), zero(granule), there(zero(2*regionBytes)), data(2*granule))

	if got, err := c.Extents(regionBytes+1, 2); err != nil || !slices.Equal(got, []clone.Extent{data(2)}) {
		t.Errorf("a part of a granule: %+v, %v", got, err)
	}
	if got, err := c.Extents(c.Bytes(), 0); err != nil || len(got) != 0 {
		t.Errorf("nothing: %+v, %v", got, err)
	}
	if _, err := c.Extents(c.Bytes()-1, 2); !errors.Is(err, clone.ErrOutside) {
		t.Errorf("beyond the end: %v", err)
	}
	if work, ok, err := c.Next(c.Geometry.All(), 1); err != nil || !ok || work.Wanted {
		t.Errorf("looking has something hydrated: %+v, %v, %v", work, ok, err)
	}
}

// Without the device's word for it, nothing is a hole; and one call does not go on for ever.
func TestExtentsAreBounded(t *testing.T) {
	s := plain(3)
	s.Content[2] = clonetest.Hole
	c := open(t, clonetest.New(s))
	if got, err := c.Extents(0, c.Bytes()); err != nil || !slices.Equal(got, []clone.Extent{{Bytes: c.Bytes()}}) {
		t.Errorf("%+v, %v", got, err)
	}
	many := plain(600)
	many.Sparse = true
	for i := range many.Content {
		if i%2 == 0 {
			many.Content[i] = clonetest.Hole
		}
	}
	c = open(t, clonetest.New(many))
	got, err := c.Extents(0, c.Bytes())
	if err != nil || len(got) != 256 {
		t.Errorf("%d extents, %v", len(got), err)
	}
}

// fault 82: a hole that a discard makes while somebody looks is none.
func TestFault82LookRacesWithDiscard(t *testing.T) {
	s := plain(2)
	s.Sparse = true
	m := clonetest.New(s)
	c := open(t, m)
	hydrated := make(chan error, 1)
	var asked atomic.Bool
	m.Meanwhile = func(op clonetest.Op) {
		if op != clonetest.SourceNextData || asked.Swap(true) {
			return
		}
		go func() {
			_, err := c.Hydrate(context.Background(), c.Geometry.All())
			if err = errors.Join(err, c.Commit()); err == nil {
				err = c.DiscardSource(context.Background(), c.TakeCommitted())
			}
			hydrated <- err
		}()
		for c.Status().Hydrated == 0 { // the discard follows, and has to wait for us
			runtime.Gosched()
		}
		time.Sleep(time.Millisecond) // time for it to be wrong
	}
	if err := m.Look(c, 0, c.Bytes()); err != nil {
		t.Error(err)
	}
	if err := <-hydrated; err != nil {
		t.Error(err)
	}
}

func TestCopiesGoOnOverHolesThatFillNoRegion(t *testing.T) {
	s := clonetest.Setup{Seed: 7, RegionBytes: 8 << 10, BufferBytes: 8 << 10, BatchRegions: 8, Sparse: true, KnownZero: true}
	for _, kind := range "dhhddhdhhhdd" { // two regions in part, a whole one, one in part, a hole, data
		content := clonetest.Data
		if kind == 'h' {
			content = clonetest.Hole
		}
		s.Content = append(s.Content, content)
	}
	s.DeviceBytes = int64(len(s.Content)) * 4096
	c := open(t, clonetest.New(s))
	next := func(from, count, batch uint64) clone.Work {
		t.Helper()
		work, ok, err := c.Next(region.Range{First: region.Nr(from), Count: count}, batch)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		return work
	}
	if got, want := next(0, 6, 8), (clone.Work{Range: region.Range{First: 0, Count: 4}}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := next(0, 6, 3), (clone.Work{Range: region.Range{First: 0, Count: 3}}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := next(4, 2, 8), (clone.Work{Range: region.Range{First: 4, Count: 1}, Hole: true}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
