package clonetest

import (
	"math/rand/v2"
)

// CrashForm is what a crash makes of writes that were not flushed.
type CrashForm uint8

// The forms of a crash. Mixed decides for each write anew whether it is lost, kept
// or torn at sectors, and applies what is left in any order.
const (
	LoseAll CrashForm = iota
	KeepAll
	Mixed
)

// CrashForms are all of them.
var CrashForms = []CrashForm{LoseAll, KeepAll, Mixed}

func (f CrashForm) String() string { return [...]string{"lose all", "keep all", "mixed"}[f] }

// survives says whether one volatile thing that is never torn outlives the crash.
func (f CrashForm) survives(rng *rand.Rand) bool {
	return f == KeepAll || f == Mixed && rng.IntN(2) == 0
}

// span is a range of bytes.
type span struct{ off, n int64 }

func (s span) overlaps(o span) bool { return s.off < o.off+o.n && o.off < s.off+s.n }

// pendingWrite is a write that no flush has covered yet.
type pendingWrite struct {
	off  int64
	data []byte
}

// disk is a medium with a volatile write cache.
type disk struct {
	durable []byte // what a crash leaves at least
	now     []byte // what a read sees
	mapped  []bool // per granule: written to, so not known to read zeros
	pending []pendingWrite
}

func newDisk(durable []byte) *disk {
	d := &disk{durable: durable, now: append([]byte(nil), durable...)}
	d.mapped = make([]bool, (len(durable)+granuleBytes-1)/granuleBytes)
	for i := range d.mapped {
		d.mapped[i] = !allZero(durable[i*granuleBytes : min((i+1)*granuleBytes, len(durable))])
	}
	return d
}

// write puts p into the cache; zeros unmap the granules that they cover.
func (d *disk) write(p []byte, off int64, mapped bool) {
	copy(d.now[off:], p)
	d.pending = append(d.pending, pendingWrite{off: off, data: append([]byte(nil), p...)})
	end := off + int64(len(p))
	for g := off / granuleBytes; g*granuleBytes < end; g++ {
		whole := g*granuleBytes >= off && min((g+1)*granuleBytes, int64(len(d.now))) <= end
		if mapped || whole {
			d.mapped[g] = mapped
		}
	}
}

// flush makes the first n pending writes durable.
func (d *disk) flush(n int) {
	for _, w := range d.pending[:n] {
		copy(d.durable[w.off:], w.data)
	}
	d.pending = append([]pendingWrite(nil), d.pending[n:]...)
}

// drop forgets every write since the last good flush.
func (d *disk) drop() {
	for _, w := range d.pending {
		copy(d.now[w.off:w.off+int64(len(w.data))], d.durable[w.off:])
	}
	d.pending = nil
	d.mapped = newDisk(d.durable).mapped
}

// crash is the medium after a power cut.
func (d *disk) crash(rng *rand.Rand, form CrashForm) *disk {
	durable := append([]byte(nil), d.durable...)
	order := make([]int, len(d.pending))
	for i := range order {
		order[i] = i
	}
	if form == Mixed {
		order = rng.Perm(len(d.pending))
	}
	for _, i := range order {
		w := d.pending[i]
		switch kind := rng.IntN(3); {
		case form == KeepAll || form == Mixed && kind == 0:
			copy(durable[w.off:], w.data)
		case form == Mixed && kind == 1:
			tear(durable, w, rng)
		}
	}
	return newDisk(durable)
}

// tear writes some sectors of w.
func tear(durable []byte, w pendingWrite, rng *rand.Rand) {
	for at := int64(0); at < int64(len(w.data)); {
		end := min(int64(len(w.data)), (w.off+at)/sectorBytes*sectorBytes+sectorBytes-w.off)
		if rng.IntN(2) == 0 {
			copy(durable[w.off+at:], w.data[at:end])
		}
		at = end
	}
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
