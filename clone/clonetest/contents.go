package clonetest

import (
	"bytes"
	"fmt"
)

// contents is what a disk with a volatile write cache may hold: for each sector what
// the last flush has promised, and everything that was written there since. It is
// the model that guests compare the clone with.
type contents struct {
	bytes   int64
	sectors []sector
	// lost says that a flush has failed: each sector may have fallen back to
	// anything it was since the last good flush.
	lost bool
	// reads are those that go on: they may show what a flush has made impossible
	// since they began.
	reads int
}

// sector is the history of one sector since the last flush that covers it.
type sector struct {
	dropped  int // number of older versions, which nobody needs any more
	promised int // number of the version that a flush has promised at least
	versions []version
}

// since are the versions from a number on.
func (s *sector) since(number int) []version { return s.versions[max(0, number-s.dropped):] }

// version is one value of a sector. Values that were not acknowledged were
// interrupted or failed: they may show or not.
type version struct {
	data  []byte
	acked bool
}

func newContents(image []byte) *contents {
	c := &contents{bytes: int64(len(image))}
	for off := int64(0); off < c.bytes; off += sectorBytes {
		data := image[off:min(off+sectorBytes, c.bytes)]
		c.sectors = append(c.sectors, sector{versions: []version{{data, true}}})
	}
	return c
}

// after is a copy for the machine after a crash.
func (c *contents) after() *contents {
	if c == nil { // a machine that is only a journal
		return nil
	}
	out := &contents{bytes: c.bytes, sectors: make([]sector, len(c.sectors))}
	for i, s := range c.sectors {
		out.sectors[i] = sector{s.dropped, s.promised, s.versions[:len(s.versions):len(s.versions)]}
	}
	return out
}

// marks are the numbers of versions, one for each of consecutive sectors.
type marks struct {
	first   int
	numbers []int
}

// now is the last acknowledged version of each sector of a range.
func (c *contents) now(off, n int64) marks {
	first, end := int(off/sectorBytes), int((off+n+sectorBytes-1)/sectorBytes)
	m := marks{first, make([]int, end-first)}
	for i := range m.numbers {
		m.numbers[i] = c.sectors[first+i].acked()
	}
	return m
}

// within are the marks of a part of the range.
func (m marks) within(off, n int64) marks {
	first, end := int(off/sectorBytes), int((off+n+sectorBytes-1)/sectorBytes)
	return marks{first, m.numbers[first-m.first : end-m.first]}
}

func (s *sector) acked() int {
	for i := len(s.versions) - 1; i > 0; i-- {
		if s.versions[i].acked {
			return s.dropped + i
		}
	}
	return s.dropped
}

// begin notes a write of whole sectors that is going to be made.
func (c *contents) begin(p []byte, off int64) marks {
	m := marks{first: int(off / sectorBytes)}
	for len(p) > 0 {
		s := &c.sectors[m.first+len(m.numbers)]
		n := min(len(p), len(s.versions[0].data))
		m.numbers = append(m.numbers, s.dropped+len(s.versions))
		s.versions = append(s.versions, version{p[:n:n], false})
		p = p[n:]
	}
	return m
}

// ack notes that the write has been acknowledged.
func (c *contents) ack(m marks) {
	for i, number := range m.numbers {
		s := &c.sectors[m.first+i]
		if at := number - s.dropped; at >= 0 {
			s.versions[at].acked = true
		}
	}
}

// flushed notes that a flush has succeeded, and what was acknowledged when it began.
func (c *contents) flushed(m marks) {
	for i, number := range m.numbers {
		s := &c.sectors[m.first+i]
		s.promised = max(s.promised, number)
		if c.reads == 0 {
			s.versions, s.dropped = s.since(s.promised), s.promised
		}
	}
}

// check says whether a read of p at off was right, given what was acknowledged when
// it began. If a flush or commit has failed, or the power, it may have fallen back to
// whatever no flush has made impossible.
func (c *contents) check(p []byte, off int64, began marks, fallen bool) error {
	for i, number := range began.numbers {
		s := &c.sectors[began.first+i]
		start := int64(began.first+i) * sectorBytes
		from, to := max(off, start), min(off+int64(len(p)), start+int64(len(s.versions[0].data)))
		if fallen || c.lost {
			number = min(number, s.promised)
		}
		possible := s.since(number)
		if !anyHas(possible, p[from-off:to-off], int(from-start)) {
			return fmt.Errorf("%w: sector %d shows %x.., which is none of its %d possible values", ErrViolation,
				began.first+i, p[from-off:min(to-off, from-off+4)], len(possible))
		}
	}
	return nil
}

func anyHas(possible []version, p []byte, at int) bool {
	for _, v := range possible {
		if bytes.Equal(v.data[at:at+len(p)], p) {
			return true
		}
	}
	return false
}

// settle makes p, which is all that a device shows at off after a crash, the only
// values that its sectors can have.
func (c *contents) settle(p []byte, off int64) {
	for i := int(off / sectorBytes); len(p) > 0; i++ {
		n := min(len(p), len(c.sectors[i].versions[0].data))
		c.sectors[i] = sector{versions: []version{{append([]byte(nil), p[:n]...), true}}}
		p = p[n:]
	}
}

// fallBack makes p, which is what the device shows at off, the present values, while
// everything that was possible stays possible.
func (c *contents) fallBack(p []byte, off int64) { c.ack(c.begin(append([]byte(nil), p...), off)) }
