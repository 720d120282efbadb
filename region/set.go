package region

import (
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"math/bits"
	"slices"
)

// ChunkRegions is the number of regions in one chunk of a Set, the piece in
// which a set is kept in memory and in a journal.
const ChunkRegions = 1 << 14

const (
	chunkWords = ChunkRegions / 64
	chunkBytes = ChunkRegions / 8
	maxChunk   = MaxRegions/ChunkRegions - 1
)

// A chunk with all its regions is the shared fullChunk, so that the long runs of
// a sparse image cost a map entry and no bitmap.
type chunk struct {
	words [chunkWords]uint64
	count int
}

var fullChunk = func() *chunk {
	c := &chunk{count: ChunkRegions}
	for i := range c.words {
		c.words[i] = ^uint64(0)
	}
	return c
}()

// Set is a set of regions. Its memory grows with the number of chunks that are
// partly filled, not with the device. The zero Set is empty and ready for use. A
// Set is not safe for concurrent use.
type Set struct {
	chunks map[uint64]*chunk
	count  uint64
	spare  *chunk // an empty one: sets that hold what is in flight become empty all the time
}

// NewSet is a set of the given ranges.
func NewSet(ranges ...Range) *Set {
	s := &Set{}
	for _, r := range ranges {
		s.Add(r)
	}
	return s
}

// Count is the number of regions in the set.
func (s *Set) Count() uint64 { return s.count }

// Has says whether nr is in the set.
func (s *Set) Has(nr Nr) bool {
	c := s.chunks[uint64(nr)/ChunkRegions]
	return c != nil && c.words[nr%ChunkRegions/64]>>(nr%64)&1 != 0
}

// HasAll says whether every region of r is in the set.
func (s *Set) HasAll(r Range) bool { return r.Empty() || s.NextMissing(r.First) >= r.End() }

// HasAny says whether some region of r is in the set.
func (s *Set) HasAny(r Range) bool {
	for key, part := range chunkParts(r) {
		if c := s.chunks[key]; c != nil && c.countIn(part) > 0 {
			return true
		}
	}
	return false
}

// CountIn is the number of regions of r that are in the set.
func (s *Set) CountIn(r Range) (n uint64) {
	for key, part := range chunkParts(r) {
		if c := s.chunks[key]; c != nil {
			n += uint64(c.countIn(part))
		}
	}
	return n
}

// Add puts the regions of r into the set.
func (s *Set) Add(r Range) {
	for key, part := range chunkParts(r) {
		if part.Count == ChunkRegions {
			s.put(key, fullChunk)
			continue
		}
		c := s.own(key)
		before := c.count
		c.each(part, func(w *uint64, mask uint64) { *w |= mask })
		s.count += uint64(c.count - before)
		if c.count == ChunkRegions {
			s.chunks[key] = fullChunk
		}
	}
}

// Remove takes the regions of r out of the set.
func (s *Set) Remove(r Range) {
	for key, part := range chunkParts(r) {
		if s.chunks[key] == nil {
			continue
		}
		if part.Count == ChunkRegions {
			s.put(key, nil)
			continue
		}
		c := s.own(key)
		before := c.count
		c.each(part, func(w *uint64, mask uint64) { *w &^= mask })
		s.count -= uint64(before - c.count)
		if c.count == 0 {
			delete(s.chunks, key)
			s.spare = c
		}
	}
}

// Union adds every region of o.
func (s *Set) Union(o *Set) {
	for r := range o.Ranges() {
		s.Add(r)
	}
}

// Subtract removes every region of o.
func (s *Set) Subtract(o *Set) {
	for r := range o.Ranges() {
		s.Remove(r)
	}
}

// Clone is a copy that shares nothing which either of the two could change.
func (s *Set) Clone() *Set {
	out := &Set{count: s.count, chunks: make(map[uint64]*chunk, len(s.chunks))}
	for key, c := range s.chunks {
		if c != fullChunk {
			c = &chunk{words: c.words, count: c.count}
		}
		out.chunks[key] = c
	}
	return out
}

// Equal says whether both sets hold the same regions.
func (s *Set) Equal(o *Set) bool {
	if s.count != o.count || len(s.chunks) != len(o.chunks) {
		return false
	}
	for key, c := range s.chunks {
		other := o.chunks[key]
		if other == nil || c.words != other.words {
			return false
		}
	}
	return true
}

// NextMissing is the first region from from on that is not in the set. It knows
// nothing of the end of a device.
func (s *Set) NextMissing(from Nr) Nr {
	for {
		c := s.chunks[uint64(from)/ChunkRegions]
		if c == nil {
			return from
		}
		if c == fullChunk {
			from = (from/ChunkRegions + 1) * ChunkRegions
			continue
		}
		for word := uint64(from) % ChunkRegions / 64; word < chunkWords; word++ {
			missing := ^c.words[word] >> (from % 64) << (from % 64)
			if missing != 0 {
				return from/64*64 + Nr(bits.TrailingZeros64(missing))
			}
			from = from/64*64 + 64
		}
	}
}

// nextPresent is the first region in [from, limit) that is in the set, or limit.
func (s *Set) nextPresent(from, limit Nr) Nr {
	for from < limit {
		c := s.chunks[uint64(from)/ChunkRegions]
		if c == nil {
			from = (from/ChunkRegions + 1) * ChunkRegions
			continue
		}
		word := c.words[from%ChunkRegions/64] >> (from % 64) << (from % 64)
		if word != 0 {
			return min(limit, from/64*64+Nr(bits.TrailingZeros64(word)))
		}
		from = from/64*64 + 64
	}
	return limit
}

// MissingRange is the first run of regions inside within that are not in the set.
func (s *Set) MissingRange(within Range) (Range, bool) {
	first := s.NextMissing(within.First)
	if first >= within.End() {
		return Range{}, false
	}
	return Between(first, s.nextPresent(first, within.End())), true
}

// Ranges yields the regions of the set in ascending order, as the longest ranges
// possible. The set must not change meanwhile.
func (s *Set) Ranges() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		var run Range
		for key := range s.Chunks() {
			limit := Nr(key+1) * ChunkRegions
			for at := s.nextPresent(Nr(key)*ChunkRegions, limit); at < limit; {
				end := limit
				if s.chunks[key] != fullChunk { // whose end is known; NextMissing would look at all that follow
					end = min(limit, s.NextMissing(at))
				}
				if !run.Empty() && run.End() == at {
					run.Count += uint64(end - at)
				} else {
					if !run.Empty() && !yield(run) {
						return
					}
					run = Between(at, end)
				}
				at = s.nextPresent(end, limit)
			}
		}
		if !run.Empty() {
			yield(run)
		}
	}
}

// Chunks yields the numbers of the chunks that hold a region, ascending. Chunk k
// holds the regions from k*ChunkRegions on.
func (s *Set) Chunks() iter.Seq[uint64] {
	return slices.Values(slices.Sorted(maps.Keys(s.chunks)))
}

// EncodeChunk is the bitmap of chunk key as bytes, region by region from the
// lowest bit of the first byte on, without trailing zero bytes but never shorter
// than two. A chunk with all its regions is the single byte 0xff.
func (s *Set) EncodeChunk(key uint64) []byte {
	c := s.chunks[key]
	if c == nil {
		return nil
	}
	if c.count == ChunkRegions {
		return []byte{0xff}
	}
	out := make([]byte, 0, chunkBytes)
	for _, w := range c.words {
		out = binary.LittleEndian.AppendUint64(out, w)
	}
	end := len(out)
	for end > 2 && out[end-1] == 0 {
		end--
	}
	return out[:end]
}

// AddChunk adds the regions of what EncodeChunk made of chunk key.
func (s *Set) AddChunk(key uint64, encoded []byte) error {
	if key > maxChunk {
		return fmt.Errorf("region chunk %d: the last possible one is %d", key, uint64(maxChunk))
	}
	if len(encoded) == 1 && encoded[0] == 0xff {
		s.put(key, fullChunk)
		return nil
	}
	if len(encoded) < 2 || len(encoded) > chunkBytes {
		return fmt.Errorf("region chunk %d: %d bytes where 2 to %d are possible", key, len(encoded), chunkBytes)
	}
	for i, b := range encoded {
		for b != 0 {
			bit := bits.TrailingZeros8(b)
			run := bits.TrailingZeros8(^(b >> bit))
			s.Add(Range{First: Nr(key)*ChunkRegions + Nr(i*8+bit), Count: uint64(run)})
			b &^= byte((1<<run - 1) << bit)
		}
	}
	return nil
}

// put replaces a whole chunk; nil takes it out.
func (s *Set) put(key uint64, c *chunk) {
	if old := s.chunks[key]; old != nil {
		s.count -= uint64(old.count)
	}
	if c == nil {
		delete(s.chunks, key)
		return
	}
	if s.chunks == nil {
		s.chunks = map[uint64]*chunk{}
	}
	s.chunks[key] = c
	s.count += uint64(c.count)
}

// own is chunk key in a form that this set may change.
func (s *Set) own(key uint64) *chunk {
	c := s.chunks[key]
	switch c {
	case nil:
		if c, s.spare = s.spare, nil; c == nil {
			c = &chunk{}
		}
	case fullChunk:
		c = &chunk{words: fullChunk.words, count: fullChunk.count}
	default:
		return c
	}
	if s.chunks == nil {
		s.chunks = map[uint64]*chunk{}
	}
	s.chunks[key] = c
	return c
}

// each shows f the words that part lies in, and keeps the count right.
func (c *chunk) each(part Range, f func(w *uint64, mask uint64)) {
	for at := part.First; at < part.End(); {
		end := min(part.End(), at/64*64+64)
		w := &c.words[at/64]
		before := bits.OnesCount64(*w)
		f(w, mask(at, end))
		c.count += bits.OnesCount64(*w) - before
		at = end
	}
}

func (c *chunk) countIn(part Range) (n int) {
	for at := part.First; at < part.End(); {
		end := min(part.End(), at/64*64+64)
		n += bits.OnesCount64(c.words[at/64] & mask(at, end))
		at = end
	}
	return n
}

// mask has the bits of the regions [at, end), which lie in one word.
func mask(at, end Nr) uint64 {
	return ^uint64(0) >> (64 - uint64(end-at)) << (at % 64)
}

// chunkParts cuts a range at the chunk borders: the chunk's number, and the
// regions in it counted from the chunk's first.
func chunkParts(r Range) iter.Seq2[uint64, Range] {
	return func(yield func(uint64, Range) bool) {
		for at := r.First; at < r.End(); {
			key := uint64(at) / ChunkRegions
			end := min(r.End(), Nr(key+1)*ChunkRegions)
			if !yield(key, Between(at-Nr(key)*ChunkRegions, end-Nr(key)*ChunkRegions)) {
				return
			}
			at = end
		}
	}
}
