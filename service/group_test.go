package service

import (
	"bytes"
	"strings"
	"testing"

	"decant/journal"
)

// There is no volume group of these names on any machine that runs the tests.
func TestNameOfNeitherPoolNorGroup(t *testing.T) {
	s := newSite(t)
	for _, name := range []string{"decant-no-such/vm", "decant+no+such/vm"} {
		_, err := s.destinationTarget(name, "")
		if OutcomeOf(err) != Refused || !strings.Contains(err.Error(), "and no volume group of that name") {
			t.Errorf("destination %s: %v", name, err)
		}
		// A source of that form is the path that it looks like.
		if got, err := s.sourceTarget(name); err != nil || got.path != name || got.pool != "" {
			t.Errorf("source %s: %+v, %v", name, got, err)
		}
	}
	for _, name := range []string{"vm", "a/b/c", "-vg/vm", "vg/-vm"} {
		if _, err := s.destinationTarget(name, ""); OutcomeOf(err) != Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.destinationTarget(s.path("file"), "pool"); OutcomeOf(err) != Usage {
		t.Errorf("--thin-pool for a file: %v", err)
	}
}

func TestIdentityTarget(t *testing.T) {
	for kind, want := range map[string]target{
		"file":   {name: "a/b", path: "/p"},
		"block":  {name: "a/b", path: "/p"},
		"volume": {name: "a/b", path: "/p", pool: "a", volume: "b"},
		"lvm":    {name: "a/b", path: "/p", pool: "a", volume: "b", group: true},
	} {
		if got := identityTarget(journal.Identity{Kind: kind, Name: "a/b", Path: "/p"}); got != want {
			t.Errorf("%s: %+v, want %+v", kind, got, want)
		}
	}
}

// leavesRests is a device in whose blocks a write changes what is next to it.
type leavesRests struct {
	device
	blockBytes int64
}

func (l leavesRests) LeavesRests(alignBytes int64) bool { return alignBytes%l.blockBytes != 0 }

// fault 44: where regions are no whole blocks of a pool that does not zero them, no
// region is left out for reading zeros at the start.
func TestFault44RegionsThatAreNoWholeBlocks(t *testing.T) {
	for _, test := range []struct {
		e    *end
		want bool
	}{
		{&end{device: &described{}}, true},
		{&end{device: leavesRests{blockBytes: 64 << 10}}, true},
		{&end{device: leavesRests{blockBytes: 192 << 10}}, false},
		{&end{device: leavesRests{blockBytes: 4 << 20}}, false},
	} {
		m := &meter{taker: test.e, takes: &chain{}, gives: &chain{}}
		if sparse := !m.guard(1<<20, false, &control{}).leavesRest; sparse != test.want {
			t.Errorf("%+v: sparse is %t", test.e, sparse)
		}
	}
}

// fault 29: what a volume has beyond the size of the source reads as zeros, and the
// rest of it is left alone.
func TestFault29TailOfLargerVolume(t *testing.T) {
	s := newSite(t)
	const size, sourceBytes = 1 << 20, 300_000
	s.pool("p", 8<<20)
	e, err := s.create(target{name: "p/v", pool: "p", volume: "v"}, size)
	s.must(err)
	defer func() { s.must(e.Close()) }()
	_, err = e.WriteAt(bytes.Repeat([]byte{0xaa}, size), 0)
	s.must(err)
	s.must(zeroTail(e, sourceBytes))
	got := make([]byte, size)
	_, err = e.ReadAt(got, 0)
	s.must(err)
	want := append(bytes.Repeat([]byte{0xaa}, sourceBytes), make([]byte, size-sourceBytes)...)
	if !bytes.Equal(got, want) {
		t.Error("the tail is not zero, or more than the tail is")
	}
}
