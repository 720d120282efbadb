package nbd

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// described is the flags of each byte that a chunk tells of.
func described(b []byte) (id uint32, flags []uint32) {
	id = binary.BigEndian.Uint32(b)
	for b = b[4:]; len(b) > 0; b = b[8:] {
		for range binary.BigEndian.Uint32(b) {
			flags = append(flags, binary.BigEndian.Uint32(b[4:]))
		}
	}
	return id, flags
}

func TestBlockStatusTellsEachContext(t *testing.T) {
	d := &mapped{memory: newMemory(8 * kib), unit: kib, units: []Extent{
		{}, {}, {Hole: true, Zero: true}, {Hole: true}, {Zero: true, Hydrated: true}, {Hydrated: true}, {Hydrated: true}, {},
	}}
	s := serve(t, Config{Exports: []Export{{Device: d, Hydrates: true}}})
	p := structured(t, s, contextHydrated, contextAllocation)
	want := map[uint32][]uint32{
		allocationID: {0, 3, 1, 2, 0},
		hydratedID:   {0, 1, 0},
	}
	p.request(request{command: cmdBlockStatus, length: 8 * kib, cookie: 7})
	for last := false; !last; {
		h, b := p.chunk()
		if h.kind != chunkBlockStatus || h.cookie != 7 {
			t.Fatalf("the chunk is %+v", h)
		}
		id, flags := described(b)
		if len(flags) != 8*kib || !slices.Equal(slices.Compact(flags), want[id]) {
			t.Errorf("context %d: %v of %d bytes, want %v", id, slices.Compact(flags), len(flags), want[id])
		}
		delete(want, id)
		last = h.flags == chunkFlagDone
	}
	if len(want) > 0 {
		t.Errorf("nothing is said of %v", want)
	}
	p.request(request{command: cmdBlockStatus, flags: cmdFlagReqOne, offset: 100, length: 2 * kib, cookie: 8})
	for range 2 {
		_, b := p.chunk()
		if id, flags := described(b); len(b) != 12 || len(flags) > 2*kib || id == allocationID && len(flags) != 2*kib-100 {
			t.Errorf("context %d: %d bytes in %d", id, len(flags), len(b))
		}
	}
	for _, r := range []request{{offset: 8 * kib, length: 1}, {offset: 1, length: 8 * kib}, {offset: 1}} {
		r.command, r.cookie = cmdBlockStatus, 9
		p.request(r)
		if e := p.errorChunk(9); e != errInval {
			t.Errorf("error %d", e)
		}
	}
}

func TestBlockStatusOfADeviceThatFails(t *testing.T) {
	d := &mapped{memory: newMemory(kib), unit: kib, units: []Extent{{}}}
	d.before = func(access) error { return unix.EPERM }
	p := structured(t, serveDevice(t, d), contextAllocation)
	p.request(request{command: cmdBlockStatus, length: kib, cookie: 1})
	if e := p.errorChunk(1); e != errPerm {
		t.Errorf("error %d", e)
	}
}

// What is said of each byte is what the device said, over a prefix of what was asked.
func TestStatusIsWhatTheDeviceSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		extents := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Extent {
			return Extent{Bytes: rapid.Int64Range(1, 50).Draw(t, "bytes"), Hole: rapid.Bool().Draw(t, "hole"), Zero: rapid.Bool().Draw(t, "zero")}
		}), 1, 20).Draw(t, "extents")
		asked := rapid.Int64Range(1, 300).Draw(t, "asked")
		limit := rapid.IntRange(1, 5).Draw(t, "limit")
		var all []uint32
		for _, e := range extents {
			for range e.Bytes {
				all = append(all, allocationFlags(e))
			}
		}
		prefix := []byte("before")
		b, err := appendStatus(prefix, chunkHeader{}, asked, extents, view{1, allocationFlags}, limit)
		if err != nil {
			t.Fatal(err)
		}
		h, b := parseChunkHeader(b[len(prefix):]), b[len(prefix)+chunkHeaderBytes:]
		_, got := described(b)
		if int(h.length) != len(b) || len(b) > 4+8*limit || len(b) < 12 {
			t.Fatalf("%d bytes, the header says %d", len(b), h.length)
		}
		if int64(len(got)) > asked || len(got) > len(all) || !slices.Equal(got, all[:len(got)]) {
			t.Fatalf("%v is said, want the beginning of %v", got, all)
		}
		if want := min(int(asked), len(all)); len(b) < 4+8*limit && len(got) != want {
			t.Fatalf("%d bytes are told of, want %d", len(got), want)
		}
	})
}

func TestExtentsThatMakeNoSenseAreErrors(t *testing.T) {
	for _, extents := range [][]Extent{nil, {{}}, {{Bytes: -1}}, {{Bytes: 10}, {Bytes: 0}}} {
		if _, err := appendStatus(nil, chunkHeader{}, 100, extents, view{1, allocationFlags}, 8); err == nil {
			t.Errorf("%v are taken", extents)
		}
	}
}
