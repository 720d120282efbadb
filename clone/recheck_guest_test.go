package clone_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/journal"
	"decant/region"
)

var guestOps = []clonetest.GuestOp{clonetest.GuestWrite, clonetest.GuestZero, clonetest.GuestDiscard}

// changesOf are a guest's changes that touch region 1 of plain setups.
var changesOf = map[string][2]int64{
	"a part": {9 << 10, 1 << 10}, "all of it": {8 << 10, 8 << 10}, "it and its neighbours": {1 << 10, 20 << 10},
}

// fault 38, fault 80: a guest changes what the destination has lost, and the power
// fails at each step from then on to the end. What was flushed is there, nothing of
// what was lost shows.
func TestFault38GuestChangesWhatWasLost(t *testing.T) {
	for place, r := range changesOf {
		for _, op := range guestOps {
			t.Run(fmt.Sprintf("%s, %d", place, op), func(t *testing.T) {
				s := plain(4)
				s.Guests = true
				for n := 1; ; n++ {
					m := committed(t, s, region.Range{})
					lose(t, m, 1)
					lose(t, m, 3)
					m.CrashAfter(m.Steps() + n)
					rng := random(2, uint64(n))
					err := changeAndGoOn(m, op, r)
					if errors.Is(err, clonetest.ErrViolation) || err != nil && !m.PowerIsCut() {
						t.Fatal(err)
					}
					if !m.PowerIsCut() {
						return
					}
					for _, form := range clonetest.CrashForms {
						after := m.Crash(rng, form)
						c := open(t, after)
						if err := errors.Join(c.Check(), after.Settle(c)); err != nil {
							t.Fatalf("step %d, %v: %v", n, form, err)
						}
						if err := errors.Join(after.Drive(c, random(4, uint64(n))), after.Finished()); err != nil {
							t.Fatalf("step %d, %v: %v", n, form, err)
						}
					}
				}
			})
		}
	}
}

// changeAndGoOn rechecks, makes a guest's change, flushes, and hydrates the rest.
func changeAndGoOn(m *clonetest.Machine, op clonetest.GuestOp, r [2]int64) error {
	c, err := m.Open()
	if err != nil {
		return err
	}
	if err := m.Change(c, op, r[0], r[1], random(1, 1)); err != nil {
		return err
	}
	if err := errors.Join(c.Check(), m.ReadBack(c, 0, c.Bytes())); err != nil {
		return err
	}
	if err := m.Flush(c.Flush); err != nil {
		return err
	}
	if err := m.Drive(c, random(3, 3)); err != nil {
		return err
	}
	return errors.Join(c.Check(), m.Finished())
}

// fault 38: a guest's change of what nobody has rechecked has it rechecked first. It
// takes away no checksum of the regions beside, which are judged by theirs.
func TestFault38GuestChangesWhatIsInDoubt(t *testing.T) {
	for place, r := range changesOf {
		for _, op := range guestOps {
			t.Run(fmt.Sprintf("%s, %d", place, op), func(t *testing.T) {
				s := plain(8)
				s.BufferBytes = 8 * s.RegionBytes // one block, whose checksums go at once
				m := committed(t, s, region.Range{})
				lose(t, m, 1)
				lose(t, m, 3)
				c := openUnchecked(t, m.Config())
				change(t, m, c, clonetest.GuestWrite, 5*s.RegionBytes, 512) // which is whole
				change(t, m, c, op, r[0], r[1])
				again, err := c.Recheck(context.Background())
				if want := fmt.Sprint([]region.Range{{First: 3, Count: 1}}); err != nil || fmt.Sprint(again) != want {
					t.Fatalf("recheck: %v, %v, want %v", again, err, want)
				}
				if err := c.Check(); err != nil {
					t.Error(err)
				}
				readAll(t, m, c)
				if err := m.Flush(c.Flush); err != nil {
					t.Fatal(err)
				}
				for _, form := range clonetest.CrashForms {
					after := m.Crash(random(3, 3), form)
					readAll(t, after, open(t, after))
					finish(t, after, random(4, 4))
				}
			})
		}
	}
}

// What guests have written has no checksum and is nowhere else: it is believed, unless
// it cannot be read.
func TestFault38RecheckBelievesGuests(t *testing.T) {
	s := plain(3)
	m := committed(t, s, region.Range{})
	c := open(t, m)
	change(t, m, c, clonetest.GuestWrite, s.RegionBytes+512, 512)
	change(t, m, c, clonetest.GuestDiscard, 2*s.RegionBytes, s.RegionBytes)
	if err := m.Flush(c.Flush); err != nil {
		t.Fatal(err)
	}
	m = m.Crash(random(1, 1), clonetest.LoseAll)
	broken := errors.New("broken")
	cfg := m.Config()
	cfg.Destination = unreadable{cfg.Destination, broken}
	if _, err := openUnchecked(t, cfg).Recheck(context.Background()); !errors.Is(err, broken) {
		t.Errorf("recheck: %v", err)
	}
	c = openUnchecked(t, m.Config())
	if again, err := c.Recheck(context.Background()); err != nil || len(again) != 0 {
		t.Errorf("recheck: %v, %v", again, err)
	}
	if n := c.TakeCommitted().Regions(); n != 3 {
		t.Errorf("%d regions handed out, want 3", n)
	}
	readAll(t, m, c)
}

// fault 38: where bytes are at neither end guests change nothing more, whoever finds
// it; they can still read.
func TestFault38NoChangesAfterALoss(t *testing.T) {
	for name, find := range map[string]func(*clone.Clone) error{
		"recheck": func(c *clone.Clone) error { _, err := c.Recheck(context.Background()); return err },
		"a guest": func(c *clone.Clone) error { return c.Discard(9<<10, 512) },
	} {
		t.Run(name, func(t *testing.T) {
			m := clonetest.New(plain(5)) // of which the last region is not hydrated
			first := open(t, m)
			hydrate(t, first, region.Range{Count: 4})
			commit(t, first)
			m = m.Restart()
			lose(t, m, 1)
			cfg := m.Config()
			cfg.Source = damaged{cfg.Source}
			c := openUnchecked(t, cfg)
			var lost *clone.LostError
			if err := find(c); !errors.As(err, &lost) || len(lost.Offsets) != 1 || lost.Offsets[0] != 8<<10 {
				t.Fatalf("found: %v", err)
			}
			calls := m.Steps()
			for nr := range int64(5) {
				if _, err := c.WriteAt(make([]byte, 8<<10), nr*8<<10); !errors.Is(err, clone.ErrReadOnly) {
					t.Errorf("a write to region %d: %v", nr, err)
				}
			}
			if err := c.Flush(); !errors.Is(err, clone.ErrReadOnly) {
				t.Errorf("flush: %v", err)
			}
			if m.Steps() != calls {
				t.Error("a medium was changed")
			}
			changesNothing(t, m, c)
			if _, err := c.ReadAt(make([]byte, 512), 20<<10); err != nil {
				t.Error(err)
			}
		})
	}
}

// overtaken is a journal in which something happens between the reading of checksums
// and their use, once.
type overtaken struct {
	clone.Journal
	happens *func()
}

func (o overtaken) Checksums(d journal.Direction, within region.Range) iter.Seq2[journal.Checksum, error] {
	return func(yield func(journal.Checksum, error) bool) {
		var sums []journal.Checksum
		for s, err := range o.Journal.Checksums(d, within) {
			if err != nil {
				yield(s, err)
				return
			}
			sums = append(sums, s)
		}
		if do := *o.happens; do != nil {
			*o.happens = nil
			do()
		}
		for _, s := range sums {
			if !yield(s, nil) {
				return
			}
		}
	}
}

// fault 38: a guest changes a region between the moment when Recheck has read its
// checksum and that when it would look at its bytes.
func TestFault38GuestOvertakesRecheck(t *testing.T) {
	s := plain(3)
	m := committed(t, s, region.Range{})
	cfg := m.Config()
	var happens func()
	cfg.Journal = overtaken{cfg.Journal, &happens}
	c := openUnchecked(t, cfg)
	happens = func() { change(t, m, c, clonetest.GuestWrite, s.RegionBytes+512, 512) }
	if again, err := c.Recheck(context.Background()); err != nil || len(again) != 0 {
		t.Errorf("recheck: %v, %v", again, err)
	}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	readAll(t, m, c)
}

// Guests need not wait for the end of Recheck: what they write meanwhile is not taken
// for a loss.
func TestFault38GuestsBesideRecheck(t *testing.T) {
	s := plain(64)
	s.BufferBytes = 4 * s.RegionBytes
	m := committed(t, s, region.Range{Count: 2})
	for nr := region.Nr(3); nr < 64; nr += 7 {
		lose(t, m, nr)
	}
	c := openUnchecked(t, m.Config())
	var all sync.WaitGroup
	for g := range int64(4) {
		all.Go(func() {
			for nr := g; nr < 64; nr += 4 {
				if err := m.Change(c, guestOps[nr%3], nr*s.RegionBytes+1024, 512, random(7, uint64(nr))); err != nil {
					t.Errorf("region %d: %v", nr, err)
				}
			}
		})
	}
	if _, err := c.Recheck(context.Background()); err != nil {
		t.Error(err)
	}
	all.Wait()
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	readAll(t, m, c)
	if err := m.Flush(c.Flush); err != nil {
		t.Fatal(err)
	}
	after := m.Crash(random(1, 1), clonetest.LoseAll)
	readAll(t, after, open(t, after))
	finish(t, after, random(4, 4))
}
