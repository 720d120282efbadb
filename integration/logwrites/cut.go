package logwrites

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// The pieces that a disk may write whole or not at all.
const (
	SectorBytes = 512
	BlockBytes  = 4096
)

// Cut is a power cut. What was flushed on its medium before, or written with FUA,
// survives. Of the rest each write and discard survives with the chance Keep, alone or
// in any combination.
type Cut struct {
	After int     // it comes after so many entries
	Keep  float64 // from 0, everything that was not flushed is lost, to 1, nothing is
	// TornBytes is the piece in which what is not durable may survive in part:
	// SectorBytes or BlockBytes, or 0 if writes survive whole or not at all. The
	// entry that comes next is then on its way, and may be there in part as well.
	TornBytes int64
	LastOnly  bool   // of the torn ones: only the entry on its way is
	Seed      uint64 // of what survives
	// IgnoreDiscards: the device does nothing for a discard, as it may. Otherwise
	// the range reads as zeros after it.
	IgnoreDiscards bool
}

// String names the cut in messages.
func (c Cut) String() string {
	return fmt.Sprintf("power cut after %d entries, keep %v of what was not flushed, torn at %d bytes (last only: %v), discards ignored: %v, seed %d",
		c.After, c.Keep, c.TornBytes, c.LastOnly, c.IgnoreDiscards, c.Seed)
}

// piece is a range of an entry that survives; offsets are relative to the entry.
type piece struct {
	entry      int
	off, bytes int64
}

// State is what a power cut leaves on all media.
type State struct {
	r      *Recording
	pieces [][]piece // by medium, in their order
}

// State is what a power cut leaves. The media held zeros before the first entry.
func (r *Recording) State(cut Cut) State {
	flushed := make([]int, len(r.media))
	for i, e := range r.entries[:cut.After] {
		if e.Has(Flush) && r.on[i] != none {
			flushed[r.on[i]] = i
		}
	}
	rng := rand.New(rand.NewPCG(cut.Seed, uint64(cut.After)))
	s := State{r: r, pieces: make([][]piece, len(r.media))}
	for i, e := range r.entries[:cut.After] {
		if !r.changes(i, cut) {
			continue
		}
		m, whole := r.on[i], piece{entry: i, bytes: e.Bytes}
		switch {
		case i < flushed[m] || e.Has(FUA) && !e.Has(Discard):
			s.pieces[m] = append(s.pieces[m], whole)
		case cut.Keep < 1 && rng.Float64() >= cut.Keep:
		case cut.TornBytes == 0 || cut.LastOnly:
			s.pieces[m] = append(s.pieces[m], whole)
		default:
			s.pieces[m] = append(s.pieces[m], r.torn(rng, whole, cut.TornBytes)...)
		}
	}
	if cut.TornBytes > 0 && cut.After < len(r.entries) && r.changes(cut.After, cut) {
		m, next := r.on[cut.After], piece{entry: cut.After, bytes: r.entries[cut.After].Bytes}
		s.pieces[m] = append(s.pieces[m], r.torn(rng, next, cut.TornBytes)...)
	}
	return s
}

// changes says whether an entry does something to its medium.
func (r *Recording) changes(i int, cut Cut) bool {
	e := r.entries[i]
	return r.on[i] != none && e.Bytes > 0 && (!e.Has(Discard) || !cut.IgnoreDiscards)
}

// torn is what is left of a whole piece.
func (r *Recording) torn(rng *rand.Rand, whole piece, atomBytes int64) (left []piece) {
	medium := r.media[r.on[whole.entry]]
	if r.entries[whole.entry].Off-medium.Off < medium.UntornBytes {
		atomBytes = max(atomBytes, medium.UntornBytes)
	}
	for off := int64(0); off < whole.bytes; off += atomBytes {
		if rng.IntN(2) == 0 {
			continue
		}
		n := min(atomBytes, whole.bytes-off)
		if last := len(left) - 1; last >= 0 && left[last].off+left[last].bytes == off {
			left[last].bytes += n
			continue
		}
		left = append(left, piece{entry: whole.entry, off: off, bytes: n})
	}
	return left
}

// Part is what a power cut leaves on one medium.
type Part struct {
	r      *Recording
	medium Medium
	pieces []piece
}

// On is the part of a state that is on the medium with that name, which must exist.
func (s State) On(name string) Part {
	for m, medium := range s.r.media {
		if medium.Name == name {
			return Part{r: s.r, medium: medium, pieces: s.pieces[m]}
		}
	}
	panic("no medium " + name) // a mistake in the test
}

// Key is equal for two parts of one recording only if they have the same content.
func (p Part) Key() string {
	hash := sha256.New()
	_, _ = hash.Write([]byte(p.medium.Name)) // never fails
	var b [24]byte
	for _, piece := range p.pieces {
		binary.LittleEndian.PutUint64(b[:], uint64(piece.entry))
		binary.LittleEndian.PutUint64(b[8:], uint64(piece.off))
		binary.LittleEndian.PutUint64(b[16:], uint64(piece.bytes))
		_, _ = hash.Write(b[:])
	}
	return string(hash.Sum(nil))
}

// zeroBytes is the most zeros that are written at once.
const zeroBytes = 1 << 20

var zeros [zeroBytes]byte

// WriteTo makes the medium from its size in zeros, offsets counting from its beginning.
func (p Part) WriteTo(w io.WriterAt) error {
	for _, piece := range p.pieces {
		e := p.r.entries[piece.entry]
		off := e.Off - p.medium.Off + piece.off
		if !e.Has(Discard) {
			if _, err := w.WriteAt(e.Data[piece.off:piece.off+piece.bytes], off); err != nil {
				return err
			}
			continue
		}
		for end := off + piece.bytes; off < end; off += zeroBytes {
			if _, err := w.WriteAt(zeros[:min(zeroBytes, end-off)], off); err != nil {
				return err
			}
		}
	}
	return nil
}
