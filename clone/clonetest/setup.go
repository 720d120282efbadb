// Package clonetest tests package clone and what is plugged into it: a machine
// whose power can be cut at every step, and a conformance suite for journals.
package clonetest

import (
	"math/rand/v2"

	"pgregory.net/rapid"

	"decant/region"
)

// granuleBytes is the unit of an image's content, of holes and of punched ranges.
const granuleBytes = 4 << 10

// sectorBytes is what a disk writes whole or not at all.
const sectorBytes = 512

// Content is what one granule of an image holds.
type Content uint8

// The kinds of content. A Hole is reported by a sparse source; Zeros are stored
// zeros; Speck is zeros with one other byte, the worst case for a zero search.
const (
	Hole Content = iota
	Zeros
	Data
	Speck
)

// Setup is one migration: the image, the sizes, and what the devices can do.
type Setup struct {
	Seed        uint64    // of the bytes of the image and of garbage
	Content     []Content // one per granule; the last granule may be short
	DeviceBytes int64
	ExtraBytes  int64 // by which the destination is larger than the source
	RegionBytes int64
	BufferBytes int64
	// BatchRegions is the most regions in one copy.
	BatchRegions uint64
	// CommitEvery is the mean number of copies in a transaction.
	CommitEvery int

	Sparse    bool // the source is a clone.Sparse
	KnownZero bool // the destination is a clone.Sparse
	Verify    bool
	Garbage   bool // the destination does not begin as zeros (I10)
	// Guests says that the device is written to, trimmed and flushed meanwhile.
	Guests bool
	// Outlive says that the guests outlive the process that runs the clone.
	Outlive bool

	image []byte // the bytes that must never get lost
}

// Setups draws setups: devices whose size is no multiple of a region or a sector,
// with holes, zeros and data, buffers below and above the region size.
func Setups() *rapid.Generator[Setup] {
	return rapid.Custom(func(t *rapid.T) Setup {
		s := Setup{
			Seed:         rapid.Uint64().Draw(t, "seed"),
			RegionBytes:  granuleBytes << rapid.IntRange(0, 2).Draw(t, "region shift"),
			BufferBytes:  granuleBytes << rapid.IntRange(0, 4).Draw(t, "buffer shift"),
			BatchRegions: rapid.Uint64Range(1, 4).Draw(t, "batch"),
			CommitEvery:  rapid.IntRange(1, 4).Draw(t, "commit every"),
			Sparse:       rapid.Bool().Draw(t, "sparse"),
			KnownZero:    rapid.Bool().Draw(t, "known zero"),
			Verify:       rapid.Bool().Draw(t, "verify"),
			Garbage:      rapid.Bool().Draw(t, "garbage"),
		}
		kinds := rapid.SampledFrom([]Content{Hole, Zeros, Data, Data, Data, Speck})
		s.Content = rapid.SliceOfN(kinds, 1, 12).Draw(t, "content")
		if rapid.IntRange(0, 9).Draw(t, "long zeros") == 0 {
			// Long enough for a run of zeros that is worth an operation of its own.
			s.BufferBytes, s.BatchRegions, s.RegionBytes = 128<<10, 8, 16<<10
			s.Content = append(s.Content, make([]Content, 20)...)
			for i := range 17 {
				s.Content[len(s.Content)-3-i] = Zeros
			}
			s.Content[len(s.Content)-1] = Data
		}
		short := rapid.SampledFrom([]int64{0, 0, 1, 511, 512, 3000}).Draw(t, "short tail")
		s.DeviceBytes = int64(len(s.Content))*granuleBytes - short
		s.ExtraBytes = rapid.SampledFrom([]int64{0, 0, 512, 5000}).Draw(t, "extra")
		return s
	})
}

// GuestSetups draws setups with guests.
func GuestSetups() *rapid.Generator[Setup] {
	return rapid.Map(Setups(), func(s Setup) Setup {
		s.Guests = true
		return s
	})
}

// OutlivingSetups draws setups with guests that outlive the process.
func OutlivingSetups() *rapid.Generator[Setup] {
	return rapid.Map(GuestSetups(), func(s Setup) Setup {
		s.Outlive = true
		return s
	})
}

// Image is what the source holds at the start, and what must be readable at every
// moment and after every crash. The caller must not change it.
func (s *Setup) Image() []byte {
	if s.image != nil {
		return s.image
	}
	rng := rand.New(rand.NewPCG(s.Seed, 1))
	s.image = make([]byte, s.DeviceBytes)
	for i, kind := range s.Content {
		p := s.image[i*granuleBytes : min(int64(i+1)*granuleBytes, s.DeviceBytes)]
		switch kind {
		case Data:
			fill(p, rng)
		case Speck:
			p[rng.IntN(len(p))] = byte(1 + rng.IntN(garbageByte-1))
		case Hole, Zeros: // as it was made
		}
	}
	return s.image
}

// Geometry is that of the migration. The sizes of a Setup are always possible.
func (s *Setup) Geometry() region.Geometry {
	g, err := region.NewGeometry(s.DeviceBytes, s.RegionBytes)
	if err != nil {
		panic(err)
	}
	return g
}

// fill makes p hold random bytes none of which is the byte of garbage.
func fill(p []byte, rng *rand.Rand) {
	for i := 0; i < len(p); i += 8 {
		v := rng.Uint64()
		for j := i; j < min(i+8, len(p)); j++ {
			p[j] = byte(v)
			if p[j] == garbageByte {
				p[j]++
			}
			v >>= 8
		}
	}
}

// garbageByte is what a discarded or never written place reads as.
const garbageByte = 0xdb

func fillGarbage(p []byte) {
	for i := range p {
		p[i] = garbageByte
	}
}
