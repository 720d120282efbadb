package thin

// discardedParts remembers what was discarded of blocks that have parts not
// discarded yet. Forgetting some costs space and nothing else.
type discardedParts map[int64][]span

// span is a range of bytes.
type span struct{ start, end int64 }

// mostParts bounds how many blocks are remembered.
const mostParts = 1 << 16

// complete takes a discarded range and returns the whole blocks that are discarded
// by it, together with what was discarded before.
func (d *discardedParts) complete(start, end, blockBytes int64) (first, last int64) {
	first, last = alignUp(start, blockBytes), alignDown(end, blockBytes)
	if first > last { // inside one block
		if d.add(last/blockBytes, span{start, end}, blockBytes) {
			return last, first
		}
		return first, first
	}
	if start < first && d.add(first/blockBytes-1, span{start, first}, blockBytes) {
		first -= blockBytes
	}
	if last < end && d.add(last/blockBytes, span{last, end}, blockBytes) {
		last += blockBytes
	}
	return first, last
}

// add notes a part and says whether all of the block is discarded now.
func (d *discardedParts) add(block int64, part span, blockBytes int64) bool {
	if *d == nil {
		*d = discardedParts{}
	}
	known, found := (*d)[block]
	if !found && len(*d) >= mostParts {
		return false
	}
	var apart []span
	for _, other := range known {
		if other.end < part.start || part.end < other.start {
			apart = append(apart, other)
			continue
		}
		part = span{min(part.start, other.start), max(part.end, other.end)}
	}
	if part.end-part.start == blockBytes {
		delete(*d, block)
		return true
	}
	(*d)[block] = append(apart, part)
	return false
}

// forget is for blocks [first, end) that hold data again, or nothing at all.
func (d *discardedParts) forget(first, end int64) {
	if end-first > int64(len(*d)) {
		for block := range *d {
			if block >= first && block < end {
				delete(*d, block)
			}
		}
		return
	}
	for block := first; block < end; block++ {
		delete(*d, block)
	}
}

// blockSet is a set of blocks.
type blockSet struct{ words []uint64 }

func (s *blockSet) has(block int64) bool {
	return block >= 0 && block/64 < int64(len(s.words)) && s.words[block/64]>>(block%64)&1 == 1
}

func (s *blockSet) add(block int64) {
	if missing := block/64 + 1 - int64(len(s.words)); missing > 0 {
		s.words = append(s.words, make([]uint64, missing)...)
	}
	s.words[block/64] |= 1 << (block % 64)
}

// remove takes out [first, end).
func (s *blockSet) remove(first, end int64) {
	for block := first; block < min(end, 64*int64(len(s.words))); block++ {
		s.words[block/64] &^= 1 << (block % 64)
	}
}

// alignDown and alignUp are the multiples of a block next to a byte. The blocks of a
// thin pool need not be powers of two.
func alignDown(at, blockBytes int64) int64 { return at - at%blockBytes }
func alignUp(at, blockBytes int64) int64   { return alignDown(at+blockBytes-1, blockBytes) }
