package persistent

import "iter"

const (
	arrayHeaderBytes = 24
	wordBytes        = 8
	wordBits         = 64
	wordsPerBlock    = (BlockBytes - arrayHeaderBytes) / wordBytes
)

// Bitset is a set of numbers below Bits, as an array of words.
type Bitset struct {
	Blocks *Blocks
	Holder uint64 // the block that names the root
	Root   uint64
	Bits   uint64
}

// Run is numbers that follow each other.
type Run struct {
	First, Count uint64
}

// Runs gives what is in the set, in order, joined as far as possible. After an error
// there is nothing more.
func (s *Bitset) Runs() iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		j := joiner{yield: yield}
		err := s.words(func(index, word uint64) bool { return j.add(index*wordBits, word) })
		if err != nil && !j.enough {
			yield(Run{}, err)
		} else {
			j.flush()
		}
	}
}

// words gives all of them, in order.
func (s *Bitset) words(yield func(index, word uint64) (more bool)) error {
	words := (s.Bits + wordBits - 1) / wordBits
	blocks := (words + wordsPerBlock - 1) / wordsPerBlock
	tree := &Tree{Blocks: s.Blocks, Holder: s.Holder, Root: s.Root, ValueBytes: childBytes}
	next := uint64(0)
	stopped := false
	err := tree.Entries(0, func(e Entry) (bool, error) {
		if e.Key != next || next >= blocks {
			return false, s.Blocks.format.Corrupt(e.Block, "it has array block %d where block %d of %d is the next", e.Key, next, blocks)
		}
		first := next * wordsPerBlock
		block, err := s.load(e, min(words-first, wordsPerBlock))
		if err != nil {
			return false, err
		}
		next++
		for i := range min(words-first, wordsPerBlock) {
			word := le.Uint64(block[arrayHeaderBytes+i*wordBytes:])
			if stopped = !yield(first+i, word); stopped {
				return false, nil
			}
		}
		return true, nil
	})
	if err == nil && !stopped && next < blocks {
		err = s.Blocks.format.Corrupt(s.Root, "the array has %d blocks and not %d", next, blocks)
	}
	return err
}

// load reads the array block that an entry leads to and checks that it has so many words.
func (s *Bitset) load(e Entry, words uint64) ([]byte, error) {
	number := le.Uint64(e.Value)
	block, err := s.Blocks.Follow(e.Block, number, KindArray)
	if err != nil {
		return nil, err
	}
	f := s.Blocks.format
	most, entries, size := le.Uint32(block[4:]), le.Uint32(block[8:]), le.Uint32(block[12:])
	switch {
	case size != wordBytes:
		return nil, f.Corrupt(number, "its values have %d bytes and not %d", size, wordBytes)
	case most != wordsPerBlock:
		return nil, f.Corrupt(number, "it says that it has room for %d words, and a block has room for %d", most, wordsPerBlock)
	case uint64(entries) != words:
		return nil, f.Corrupt(number, "it has %d words and not %d", entries, words)
	}
	if last := e.Key*wordsPerBlock + words - 1; (last+1)*wordBits > s.Bits {
		tail := le.Uint64(block[arrayHeaderBytes+(words-1)*wordBytes:])
		if used := s.Bits - last*wordBits; tail>>used != 0 {
			return nil, f.Corrupt(number, "it has bits behind the last one, %d", s.Bits-1)
		}
	}
	return block, nil
}

// joiner makes runs of words.
type joiner struct {
	yield  func(Run, error) bool
	run    Run
	enough bool
}

// add takes the word whose lowest bit has this number.
func (j *joiner) add(first, word uint64) (more bool) {
	for bit := uint64(0); bit < wordBits && !j.enough; {
		switch rest := word >> bit; {
		case rest == 0:
			return true
		case rest&1 == 0:
			bit++
		default:
			n := uint64(1)
			for bit+n < wordBits && word>>(bit+n)&1 == 1 {
				n++
			}
			j.extend(Run{first + bit, n})
			bit += n
		}
	}
	return !j.enough
}

func (j *joiner) extend(next Run) {
	if j.run.Count > 0 && j.run.First+j.run.Count == next.First {
		j.run.Count += next.Count
		return
	}
	j.flush()
	j.run = next
}

func (j *joiner) flush() {
	if j.run.Count > 0 && !j.enough {
		j.enough = !j.yield(j.run, nil)
	}
	j.run = Run{}
}
