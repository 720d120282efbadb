package region_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"decant/region"
)

// space is the number of regions that models keep: three chunks and a bit.
const space = 3*region.ChunkRegions + 100

// ranges draws ranges of all lengths, often at the borders of words and chunks.
func ranges() *rapid.Generator[region.Range] {
	return rapid.Custom(func(t *rapid.T) region.Range {
		edge := func(label string) region.Nr {
			base := rapid.SampledFrom([]int64{0, 64, 128, region.ChunkRegions, 2 * region.ChunkRegions, 3 * region.ChunkRegions}).Draw(t, label)
			return region.Nr(max(0, base+rapid.Int64Range(-70, 70).Draw(t, label+" shift")))
		}
		a, b := edge("from"), edge("to")
		return region.Between(min(a, b), min(max(a, b), space))
	})
}

// model is a Set that is easy to believe: one bool for each region.
type model []bool

func newModel() model { return make(model, space+200) }

func (m model) add(r region.Range)    { m.set(r, true) }
func (m model) remove(r region.Range) { m.set(r, false) }

func (m model) set(r region.Range, to bool) {
	for nr := r.First; nr < r.End(); nr++ {
		m[nr] = to
	}
}

func (m model) count() (n uint64) { return m.countIn(region.Range{Count: uint64(len(m))}) }

func (m model) countIn(r region.Range) (n uint64) {
	for nr := r.First; nr < r.End(); nr++ {
		if m[nr] {
			n++
		}
	}
	return n
}

// list is what Ranges has to yield.
func (m model) list() (list []region.Range) {
	for nr := range region.Nr(space) {
		switch last := len(list) - 1; {
		case !m[nr]:
		case last >= 0 && list[last].End() == nr:
			list[last].Count++
		default:
			list = append(list, region.Range{First: nr, Count: 1})
		}
	}
	return list
}

// missing is what MissingRange has to answer.
func (m model) missing(within region.Range) (region.Range, bool) {
	for nr := within.First; nr < within.End(); nr++ {
		if m[nr] {
			continue
		}
		end := nr
		for end < within.End() && !m[end] {
			end++
		}
		return region.Between(nr, end), true
	}
	return region.Range{}, false
}

// drawSet draws a set and its model.
func drawSet(t *rapid.T, label string) (*region.Set, model) {
	s, m := &region.Set{}, newModel()
	for _, r := range rapid.SliceOfN(ranges(), 0, 6).Draw(t, label) {
		s.Add(r)
		m.add(r)
	}
	for _, r := range rapid.SliceOfN(ranges(), 0, 3).Draw(t, label+" removed") {
		s.Remove(r)
		m.remove(r)
	}
	return s, m
}

func compare(t *rapid.T, what string, s *region.Set, m model) {
	t.Helper()
	if got, want := slices.Collect(s.Ranges()), m.list(); !slices.Equal(got, want) || s.Count() != m.count() {
		t.Fatalf("%s: %d regions %v, want %d %v", what, s.Count(), got, m.count(), want)
	}
}

func TestSetAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, m := drawSet(t, "set")
		compare(t, "set", s, m)
		for _, r := range rapid.SliceOfN(ranges(), 1, 5).Draw(t, "asked") {
			n := m.countIn(r)
			if s.HasAll(r) != (n == r.Count) || s.HasAny(r) != (n > 0) || s.CountIn(r) != n || s.Has(r.First) != m[r.First] {
				t.Fatalf("%v: all %v, any %v, count %d, first %v; the model has %d of %d", r,
					s.HasAll(r), s.HasAny(r), s.CountIn(r), s.Has(r.First), n, r.Count)
			}
			got, ok := s.MissingRange(r)
			if want, wantOK := m.missing(r); got != want || ok != wantOK {
				t.Fatalf("missing in %v: %v %v, want %v %v", r, got, ok, want, wantOK)
			}
			if next := s.NextMissing(r.First); m[next] || m.countIn(region.Between(r.First, next)) != uint64(next-r.First) {
				t.Fatalf("the first missing region from %d is not %d", r.First, next)
			}
		}
	})
}

func TestUnionAndSubtract(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, ma := drawSet(t, "a")
		b, mb := drawSet(t, "b")
		both, rest := a.Clone(), a.Clone()
		both.Union(b)
		rest.Subtract(b)
		mboth, mrest := newModel(), newModel()
		for nr := range ma {
			mboth[nr] = ma[nr] || mb[nr]
			mrest[nr] = ma[nr] && !mb[nr]
		}
		compare(t, "union", both, mboth)
		compare(t, "difference", rest, mrest)
		compare(t, "the other set", b, mb)
	})
}

// What becomes of a clone does not show in its origin, nor the other way; full
// chunks, which sets share, stay full for everybody.
func TestCloneIsIndependent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, m := drawSet(t, "set")
		full := region.Range{First: region.ChunkRegions, Count: region.ChunkRegions}
		if rapid.Bool().Draw(t, "with a full chunk") {
			s.Add(full)
			m.add(full)
		}
		other, mother := s.Clone(), slices.Clone(m)
		if !other.Equal(s) || !s.Equal(other) {
			t.Fatal("a clone differs")
		}
		for i, r := range rapid.SliceOfN(ranges(), 1, 4).Draw(t, "changes") {
			switch i % 4 {
			case 0:
				s.Remove(r)
				m.remove(r)
			case 1:
				other.Remove(r)
				mother.remove(r)
			case 2:
				s.Add(r)
				m.add(r)
			case 3:
				other.Add(r)
				mother.add(r)
			}
		}
		compare(t, "origin", s, m)
		compare(t, "clone", other, mother)
		if got := region.NewSet(full); got.Count() != region.ChunkRegions || !got.HasAll(full) {
			t.Fatal("a full chunk is not full any more")
		}
	})
}

// Equal looks at the regions, not at how the set came to hold them.
func TestEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, ma := drawSet(t, "a")
		b, mb := drawSet(t, "b")
		if a.Equal(b) != slices.Equal(ma.list(), mb.list()) {
			t.Fatalf("%v equal %v: %v", ma.list(), mb.list(), a.Equal(b))
		}
		again := region.NewSet(ma.list()...)
		if !a.Equal(again) {
			t.Fatalf("%v is not equal to itself built anew", ma.list())
		}
		if nr := region.Nr(rapid.Uint64Range(0, space).Draw(t, "nr")); !ma[nr] {
			again.Add(one(nr))
		} else {
			again.Remove(one(nr))
		}
		if a.Equal(again) {
			t.Fatal("sets are equal that differ in one region")
		}
	})
}

func TestEncodeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, m := drawSet(t, "set")
		if rapid.Bool().Draw(t, "with a full chunk") {
			s.Add(region.Range{Count: region.ChunkRegions})
			m.add(region.Range{Count: region.ChunkRegions})
		}
		back := &region.Set{}
		for key := range s.Chunks() {
			encoded := s.EncodeChunk(key)
			full := s.CountIn(region.Range{First: region.Nr(key) * region.ChunkRegions, Count: region.ChunkRegions}) == region.ChunkRegions
			switch {
			case full != bytes.Equal(encoded, []byte{0xff}):
				t.Fatalf("chunk %d, full %v: %d bytes", key, full, len(encoded))
			case !full && len(encoded) < 2, len(encoded) > 2 && encoded[len(encoded)-1] == 0:
				t.Fatalf("chunk %d has %d bytes", key, len(encoded))
			}
			if err := back.AddChunk(key, encoded); err != nil {
				t.Fatalf("chunk %d: %v", key, err)
			}
		}
		compare(t, "decoded", back, m)
	})
}

func TestEncodeOfNothing(t *testing.T) {
	if got := (&region.Set{}).EncodeChunk(3); got != nil {
		t.Errorf("an empty chunk is %v", got)
	}
}

// Ranges may be left in the middle.
func TestRangesStops(t *testing.T) {
	s := region.NewSet(region.Range{First: 1, Count: 1}, region.Range{First: 5, Count: 2}, region.Range{First: 9, Count: 1})
	n := 0
	for range s.Ranges() {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("%d ranges after a break at 2", n)
	}
}

// A hole of many chunks is one range again.
func TestLongRangeIsOneRange(t *testing.T) {
	long := region.Range{First: 100, Count: 1<<30 - 200}
	s := region.NewSet(long)
	if got := slices.Collect(s.Ranges()); fmt.Sprint(got) != fmt.Sprint([]region.Range{long}) {
		t.Errorf("%v", got)
	}
	if s.NextMissing(100) != long.End() || s.Count() != long.Count {
		t.Errorf("first missing %d, count %d", s.NextMissing(100), s.Count())
	}
}

// FuzzAddChunk feeds what a damaged journal may hold: it is refused, or it is a
// bitmap that stays inside its chunk and comes out as it went in.
func FuzzAddChunk(f *testing.F) {
	f.Add(uint64(0), []byte{0xff})
	f.Add(uint64(1), []byte{0xff, 0xff})
	f.Add(uint64(0), []byte{})
	f.Add(uint64(2), []byte{0, 0, 0})
	f.Add(uint64(1)<<50, []byte{0xff})
	f.Add(uint64(3), []byte{0b1011_0110, 1})
	f.Add(uint64(1), bytes.Repeat([]byte{0xff}, region.ChunkRegions/8))
	f.Add(uint64(1), make([]byte, region.ChunkRegions/8+1))
	f.Fuzz(func(t *testing.T, key uint64, encoded []byte) {
		s := &region.Set{}
		if err := s.AddChunk(key, encoded); err != nil {
			if s.Count() != 0 {
				t.Fatalf("refused, and %d regions added", s.Count())
			}
			return
		}
		chunk := region.Range{First: region.Nr(key) * region.ChunkRegions, Count: region.ChunkRegions}
		if s.CountIn(chunk) != s.Count() {
			t.Fatalf("%d of %d regions lie outside chunk %d", s.Count()-s.CountIn(chunk), s.Count(), key)
		}
		for i := range region.Nr(len(encoded) * 8) {
			full := len(encoded) == 1
			if bit := encoded[i/8]>>(i%8)&1 != 0; !full && s.Has(chunk.First+i) != bit {
				t.Fatalf("region %d of the chunk: %v, want %v", i, !bit, bit)
			}
		}
		if s.Count() == 0 {
			return
		}
		again := &region.Set{}
		if err := again.AddChunk(key, s.EncodeChunk(key)); err != nil || !again.Equal(s) {
			t.Fatalf("encoded and decoded: %v", err)
		}
	})
}
