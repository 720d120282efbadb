package service

import (
	"errors"
	"os"

	"decant/loopdev"
	"decant/thin"
)

// link is a store of an end, and whether what is freed at the end comes back to it.
type link struct {
	store
	freed bool
	why   string // not, for people
}

// chain is all stores of an end, from the top down.
type chain struct {
	links []link
	place *loopdev.Place // of the end, if it is a file
	stack *thin.Stack
}

func (c *chain) Close() error {
	var err error
	if c.place != nil {
		err = c.place.Close()
	}
	if c.stack != nil {
		err = errors.Join(err, c.stack.Close())
	}
	return err
}

// chainOf finds the stores of an end.
func chainOf(e *end) (*chain, error) {
	c := &chain{}
	if e.pool != nil && e.base.Info().Kind != loopdev.Block {
		c.links = append(c.links, link{store: &limitStore{pool: e.pool.Name(), free: e.FreeBytes}, freed: true})
	}
	place, err := e.base.Place()
	if err != nil {
		return nil, err
	}
	if place != nil {
		return c, c.onPlace(place)
	}
	info := e.base.Info()
	if info.Kind != loopdev.Block {
		return c, nil // it lies on no store that could be seen from here
	}
	stack, err := thin.FindStack(info.Dev)
	if err != nil {
		return nil, err
	}
	c.below(stack)
	return c, nil
}

// onPlace adds the file system of a place, and what lies below it.
func (c *chain) onPlace(place *loopdev.Place) error {
	c.place = place
	c.links = append(c.links, link{store: &fileStore{place: place}, freed: true})
	stack, err := thin.FindStack(place.Devices...)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	c.below(stack)
	return nil
}

// largestTrimmedBlock: a file system gives its free space back in pieces no larger than
// its own groups of blocks, the smallest of which have 8 MiB; half of such a piece has
// to be a whole block of the pool.
const largestTrimmedBlock = 4 << 20

// below adds the layers of a stack.
func (c *chain) below(stack *thin.Stack) {
	c.stack = stack
	freed, why := true, ""
	for i, l := range stack.Layers {
		if l.Pool == nil {
			// What a loop device keeps is given back by the pool above it only; a file
			// system above would have to be trimmed, and then the one below.
			passes := i > 0 && stack.Layers[i-1].Pool != nil && passesDown(stack.Layers[i-1].Pool)
			if freed = freed && l.Discards && passes; !freed && why == "" {
				why = "what is freed does not reach the file below it"
			}
			c.links = append(c.links, link{store: &fileStore{place: l.File, isBelow: true}, freed: freed, why: why})
			continue
		}
		if freed && i > 0 {
			freed, why = false, "what is freed passes through too many layers"
		} else if freed {
			freed, why = c.reaches(l)
		}
		c.links = append(c.links, link{store: newThinStore(l.Pool, l.Exact && c.place == nil), freed: freed, why: why})
	}
}

func passesDown(b *thin.Backing) bool {
	s, err := b.Status(false)
	return err == nil && s.DiscardPassdown // where it cannot be asked, nothing is relied on
}

// reaches says whether what is freed at the end comes back to the first pool below it.
func (c *chain) reaches(l thin.Layer) (bool, string) {
	table, err := l.Pool.Table()
	switch {
	case err == nil && table.IgnoreDiscard:
		return false, "it ignores discards"
	case !l.Discards:
		return false, "a device between takes no discards"
	case c.place == nil:
		return true, ""
	case !c.place.DiscardsFreed && os.Geteuid() != 0:
		return false, "the file system is not mounted with discard, and only root may trim it"
	case l.Pool.BlockBytes > largestTrimmedBlock:
		return false, "its blocks are larger than the pieces that the file system frees"
	}
	return true, ""
}

// pools are the pools of the kernel among the stores.
func (c *chain) pools() []*thinStore {
	var out []*thinStore
	for _, l := range c.links {
		if p, ok := l.store.(*thinStore); ok {
			out = append(out, p)
		}
	}
	return out
}
