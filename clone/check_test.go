package clone

import (
	"errors"
	"io"
	"testing"

	"decant/journal"
	"decant/region"
)

// fixedJournal is a journal that only says what is in it.
type fixedJournal struct {
	Journal
	state journal.State
	err   error
}

func (j fixedJournal) Load() (journal.State, error) { return j.state, j.err }

// checkable is a consistent clone of eight regions: 0 and 1 discarded, 2 hydrated,
// 3 dirty, 4 hydrating.
func checkable(t *testing.T) *Clone {
	g, err := region.NewGeometry(8*4096, 4096)
	if err != nil {
		t.Fatal(err)
	}
	state := journal.State{
		Tx: 3, Hydrated: region.NewSet(region.Range{Count: 3}), Discarded: region.NewSet(region.Range{Count: 2}),
	}
	c := &Clone{Config: Config{Geometry: g, Journal: fixedJournal{state: state}}, regions: newRegions(state, region.NewSet())}
	for nr := range region.Nr(2) {
		if _, _, ok := c.regions.claim(region.Range{First: 3 + nr, Count: 1}); !ok {
			t.Fatal("nothing to claim")
		}
	}
	c.regions.soil(region.Range{First: 3, Count: 1}, nil, copiedBytes{total: 4096})
	if err := c.Check(); err != nil {
		t.Fatalf("a consistent clone: %v", err)
	}
	return c
}

func TestCheckFindsInconsistencies(t *testing.T) {
	one := func(nr region.Nr) region.Range { return region.Range{First: nr, Count: 1} }
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		change func(c *Clone, s *journal.State)
		want   error
	}{
		"two states":                {func(c *Clone, _ *journal.State) { c.regions.hydrated.Add(one(3)) }, ErrCheck},
		"claimed without a state":   {func(c *Clone, _ *journal.State) { c.regions.claimed.Add(one(7)) }, ErrCheck},
		"a state without a claim":   {func(c *Clone, _ *journal.State) { c.regions.claimed.Remove(one(4)) }, ErrCheck},
		"sealed outside a commit":   {func(c *Clone, _ *journal.State) { c.regions.seal() }, ErrCheck},
		"changed, not dirty":        {func(c *Clone, _ *journal.State) { c.regions.changed.Add(one(2)) }, ErrCheck},
		"in place, unhydrated":      {func(c *Clone, _ *journal.State) { c.regions.unsummed.Add(one(7)) }, ErrCheck},
		"in doubt, unhydrated":      {func(c *Clone, _ *journal.State) { c.regions.doubt.Add(one(7)) }, ErrCheck},
		"in doubt, to be discarded": {func(c *Clone, _ *journal.State) { c.regions.doubt.Add(one(2)) }, ErrCheck},
		"in doubt and in place": {func(c *Clone, _ *journal.State) {
			c.regions.doubt.Add(one(1))
			c.regions.unsummed.Add(one(1))
		}, ErrCheck},
		"in doubt, to be announced": {func(c *Clone, _ *journal.State) {
			c.regions.doubt.Add(one(1))
			c.regions.dirty.unsummed.Add(one(1))
		}, ErrCheck},
		"dirty to be discarded":   {func(c *Clone, _ *journal.State) { c.regions.ready.Add(one(3)) }, ErrCheck},
		"dirty discarded":         {func(c *Clone, _ *journal.State) { c.regions.discarded.Add(one(3)) }, ErrCheck},
		"hydrated, not journaled": {func(_ *Clone, s *journal.State) { s.Hydrated.Remove(one(2)) }, ErrCheck},
		"journaled, not hydrated": {func(_ *Clone, s *journal.State) { s.Hydrated.Add(one(5)) }, ErrCheck},
		"another transaction":     {func(_ *Clone, s *journal.State) { s.Tx = 4 }, ErrCheck},
		"journal behind the end":  {func(_ *Clone, s *journal.State) { s.Hydrated.Add(one(8)) }, ErrCheck},
		"journal discards more":   {func(_ *Clone, s *journal.State) { s.Discarded.Add(one(5)) }, ErrCheck},
		"journal does not load": {func(c *Clone, s *journal.State) {
			c.Journal = fixedJournal{state: *s, err: broken}
		}, broken},
	} {
		t.Run(name, func(t *testing.T) {
			c := checkable(t)
			j := c.Journal.(fixedJournal)
			test.change(c, &j.state)
			if c.Journal.(fixedJournal).err == nil {
				c.Journal = j
			}
			if err := c.Check(); !errors.Is(err, test.want) {
				t.Errorf("check: %v, want %v", err, test.want)
			}
		})
	}
}

// A read-only clone may be behind its journal, whose last commit it cannot judge.
func TestCheckOfReadOnlyClone(t *testing.T) {
	c := checkable(t)
	_ = c.abort("commit", io.ErrUnexpectedEOF) // only its effect matters
	j := c.Journal.(fixedJournal)
	j.state.Tx++
	j.state.Hydrated.Add(region.Range{First: 3, Count: 1})
	c.Journal = j
	if err := c.Check(); err != nil {
		t.Errorf("check: %v", err)
	}
}

func TestErrorsSayWhatFailedWhere(t *testing.T) {
	err := &IOError{Side: DestinationSide, Op: "verify", Off: 4096, N: 512, Err: ErrMismatch}
	want := "destination verify, 512 bytes at offset 4096: the destination does not hold what was written to it"
	if err.Error() != want || !errors.Is(err, ErrMismatch) {
		t.Errorf("%q, want %q", err.Error(), want)
	}
	if ReadWrite.String() != "rw" || ReadOnly.String() != "ro" || SourceSide.String() != "source" {
		t.Errorf("names %v %v %v", ReadWrite, ReadOnly, SourceSide)
	}
}
