package clone_test

import (
	"errors"
	"slices"
	"syscall"
	"testing"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/region"
)

// watchedCache is the destination under another name.
type watchedCache struct {
	clone.Destination
	ops []string
}

func (w *watchedCache) ReadAt(p []byte, off int64) (int, error) {
	w.ops = append(w.ops, "read")
	return w.Destination.ReadAt(p, off)
}

func (w *watchedCache) WriteAt(p []byte, off int64) (int, error) {
	w.ops = append(w.ops, "write")
	return w.Destination.WriteAt(p, off)
}

// Guests use the cache for what the destination owns, and nobody else uses it. After a
// failed flush only the medium tells what is left.
func TestCacheIsForGuests(t *testing.T) {
	m := clonetest.New(plain(6))
	cfg := m.Config()
	w := &watchedCache{Destination: cfg.Destination}
	cfg.Cache = w
	c, err := clone.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	used := func(what string, do func(), want ...string) {
		t.Helper()
		w.ops = nil
		do()
		if !slices.Equal(w.ops, want) {
			t.Errorf("%s: %v, want %v", what, w.ops, want)
		}
	}
	const r = 8 << 10
	read := func() {
		if _, err := c.ReadAt(make([]byte, 512), 0); err != nil {
			t.Error(err)
		}
	}
	used("a read of the source", read)
	used("hydration and a commit", func() {
		hydrate(t, c, region.Range{Count: 3})
		if err := c.Commit(); err != nil {
			t.Error(err)
		}
	})
	used("a read of what is hydrated", read, "read")
	used("a write to it", func() { change(t, m, c, clonetest.GuestWrite, 512, 512) }, "write")
	used("a write to all of a region", func() { change(t, m, c, clonetest.GuestWrite, 3*r, r) }, "write")
	used("a write to a part of one", func() { change(t, m, c, clonetest.GuestWrite, 4*r+512, 512) })
	used("a trim", func() { change(t, m, c, clonetest.GuestDiscard, 0, r) })
	used("a flush", func() {
		if err := m.Flush(c.Flush); err != nil {
			t.Error(err)
		}
	})
	used("a failed flush", func() {
		change(t, m, c, clonetest.GuestDiscard, 5*r, r)
		m.Inject(clonetest.Fault{Call: m.Calls() + 1})
		if err := m.Flush(c.Flush); !errors.Is(err, syscall.EIO) {
			t.Errorf("flush: %v", err)
		}
		m.Inject(clonetest.Fault{})
	})
	used("a read after it", read)
}
