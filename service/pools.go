package service

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"decant/loopdev"
)

// guarded is the receiving end of a run. Its flush counts only if the pools that keep
// the bytes are still in order afterwards: a pool that has met an error goes back to
// its last transaction, and with it everything that was written since.
type guarded struct {
	*end
	pools      []*thinStore
	leavesRest bool // what is unmapped must not be relied on to read as zeros
	control    *control
}

// guard is the taker for a clone with regions of that size.
func (m *meter) guard(regionBytes int64, discards bool, c *control) guarded {
	g := guarded{end: m.taker, pools: m.mustKeep(discards), control: c}
	if d, ok := m.taker.device.(interface{ LeavesRests(alignBytes int64) bool }); ok {
		g.leavesRest = d.LeavesRests(regionBytes)
	}
	return g
}

// Flush implements clone.Destination.
func (g guarded) Flush() error {
	begun := time.Now()
	err := g.end.Flush()
	if err == nil {
		g.control.flushTook(time.Since(begun))
	}
	for _, p := range g.pools {
		err = errors.Join(err, p.check())
	}
	return err
}

// NextData implements clone.Sparse.
func (g guarded) NextData(off int64) (start, end int64, err error) {
	if g.leavesRest {
		return off, g.Bytes(), nil
	}
	return g.end.NextData(off)
}

// TellsAtAnyTime implements clone.LiveSparse: a file knows where it has holes, and asking
// a pool makes it commit.
func (g guarded) TellsAtAnyTime() bool { return g.base.Info().Kind != loopdev.Block }

// explain adds to the error that ended a run what is wrong with a pool, which may be
// the reason for it: all that a write says is that it failed.
func (m *meter) explain(err error, discards bool) error {
	var trouble *poolError
	if errors.As(err, &trouble) {
		return err
	}
	for _, p := range m.mustKeep(discards) {
		if checked := p.check(); errors.As(checked, &trouble) {
			return errors.Join(err, checked)
		}
	}
	return err
}

// mustKeep are the pools that have to keep what they were sent: with discards those of
// the giver as well.
func (m *meter) mustKeep(discards bool) []*thinStore {
	if !discards {
		return m.takes.pools()
	}
	return append(m.takes.pools(), m.gives.pools()...)
}

// checkPools refuses pools that must not be written to: those of the destination, and
// of the source if that is to be emptied. It also refuses a journal that would stall
// with the pool.
func (a *attempt) checkPools() error {
	if err := refuseTrouble(a.target.name, a.takes); err != nil {
		return err
	}
	if a.request.Options.DiscardSource {
		if err := refuseTrouble(a.source.name, a.gives); err != nil {
			return err
		}
	}
	if a.known != nil {
		return nil // the journal is where it is, and was accepted
	}
	return a.checkJournalPool()
}

func refuseTrouble(name string, c *chain) error {
	for _, p := range c.pools() {
		err := p.check()
		var trouble *poolError
		if errors.As(err, &trouble) {
			return refuse(name, "its "+err.Error(), trouble.hint(), nil)
		}
		if err != nil {
			return refuse(name, "its pool cannot be looked at", "", err)
		}
	}
	return nil
}

// checkJournalPool refuses a journal on a volume of the pool that is to be filled: a
// pool that takes no more would take no record of that either.
func (a *attempt) checkJournalPool() (err error) {
	if len(a.takes.pools()) == 0 {
		return nil
	}
	place, err := nearestPlace(a.s.stateDir)
	if err != nil {
		return refuse(a.s.stateDir, "it cannot be seen where the state directory lies", "", err)
	}
	c := &chain{}
	if err := c.onPlace(place); err != nil {
		return refuse(a.s.stateDir, "it cannot be seen where the state directory lies", "", err)
	}
	defer func() { _ = c.Close() }() // it has only looked
	for _, p := range c.pools() {
		for _, t := range a.takes.pools() {
			if p.key() == t.key() {
				return refuse(a.s.stateDir, fmt.Sprintf("the journal would lie in %s, as the destination does, and stall with it", p.name()),
					"name a directory that is not in that pool with --state-dir", nil)
			}
		}
	}
	return nil
}

// nearestPlace is where a directory lies, or will when it is made.
func nearestPlace(dir string) (*loopdev.Place, error) {
	for {
		place, err := loopdev.PlaceAt(dir)
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return place, err
		}
		dir = filepath.Dir(dir)
	}
}

// warnings say which pools get nothing back from the source, or keep it to themselves.
func (c *chain) warnings() []string {
	var out []string
	for _, l := range c.links {
		p, isPool := l.store.(*thinStore)
		if !isPool {
			continue
		}
		if !l.freed {
			out = append(out, fmt.Sprintf("what is freed on the source does not come back to %s: %s", p.name(), l.why))
			continue
		}
		if s, err := p.Status(false); err == nil && !s.DiscardPassdown && !p.keepsFreed {
			out = append(out, fmt.Sprintf("%s does not pass discards on to its own data device, which takes none that are as small as its blocks; "+
				"what is freed comes back to the pool, not to what lies below it", p.name()))
		}
	}
	return out
}
