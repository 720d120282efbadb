// Package region is the arithmetic of regions: numbers, ranges, sets, and the
// geometry that maps them to bytes. A region is the unit that is copied,
// journaled and discarded as a whole, as in the kernel's dm-clone target.
package region

import (
	"fmt"
	"math/bits"
)

// Sizes that a region may have. They are those of dm-clone.
const (
	MinRegionBytes = 4 << 10
	MaxRegionBytes = 1 << 30
)

// MaxRegions bounds the regions of one device, so that a set of them stays
// affordable in memory whatever a user asks for.
const MaxRegions = 1 << 32

// Nr is the number of a region: its byte offset divided by the region size.
type Nr uint64

// Range is Count regions from First on.
type Range struct {
	First Nr
	Count uint64
}

// End is the first region after the range.
func (r Range) End() Nr { return r.First + Nr(r.Count) }

// Empty says whether the range holds no region.
func (r Range) Empty() bool { return r.Count == 0 }

// Has says whether nr lies in the range.
func (r Range) Has(nr Nr) bool { return nr >= r.First && nr < r.End() }

// Between is the range of the regions from first up to, not including, end. It
// is empty if end does not lie behind first.
func Between(first, end Nr) Range {
	if end <= first {
		return Range{First: first}
	}
	return Range{First: first, Count: uint64(end - first)}
}

// Intersect is the part of the range that lies in o as well.
func (r Range) Intersect(o Range) Range {
	return Between(max(r.First, o.First), min(r.End(), o.End()))
}

// String writes the range as the half-open interval that it is.
func (r Range) String() string { return fmt.Sprintf("[%d,%d)", r.First, r.End()) }

// Geometry maps regions to the bytes of a device of a fixed size. The zero
// Geometry is a device without bytes.
type Geometry struct {
	deviceBytes int64
	shift       uint8
}

// NewGeometry checks both sizes. The region size has to be a power of two from
// MinRegionBytes to MaxRegionBytes; the device need not be a multiple of it, its
// last region is then short.
func NewGeometry(deviceBytes, regionBytes int64) (Geometry, error) {
	if deviceBytes <= 0 {
		return Geometry{}, fmt.Errorf("a device of %d bytes has no regions", deviceBytes)
	}
	if regionBytes < MinRegionBytes || regionBytes > MaxRegionBytes || regionBytes&(regionBytes-1) != 0 {
		return Geometry{}, fmt.Errorf("region size %d: not a power of two from %d to %d", regionBytes, MinRegionBytes, MaxRegionBytes)
	}
	g := Geometry{deviceBytes: deviceBytes, shift: uint8(bits.TrailingZeros64(uint64(regionBytes)))}
	if g.Regions() > MaxRegions {
		return Geometry{}, fmt.Errorf("region size %d makes %d regions of %d bytes, more than %d: take larger regions",
			regionBytes, g.Regions(), deviceBytes, uint64(MaxRegions))
	}
	return g, nil
}

// DeviceBytes is the size of the device.
func (g Geometry) DeviceBytes() int64 { return g.deviceBytes }

// RegionBytes is the size of every region but perhaps the last.
func (g Geometry) RegionBytes() int64 { return 1 << g.shift }

// Regions is the number of regions of the device, a short last one included.
func (g Geometry) Regions() uint64 {
	if g.deviceBytes <= 0 {
		return 0
	}
	return uint64((g.deviceBytes-1)>>g.shift) + 1
}

// All is the range of all regions of the device.
func (g Geometry) All() Range { return Range{Count: g.Regions()} }

// Bytes is where the regions of r lie on the device. Only a range that ends with
// the last region can have a length that is no multiple of the region size; what
// lies outside the device is cut off.
func (g Geometry) Bytes(r Range) (off, n int64) {
	r = r.Intersect(g.All())
	off = int64(r.First) << g.shift
	if r.Empty() {
		return off, 0
	}
	end := g.deviceBytes
	if uint64(r.End()) < g.Regions() {
		end = int64(r.End()) << g.shift
	}
	return off, end - off
}

// Touched is the range of regions that the bytes [off, off+n) lie in: what a read
// or a write concerns. The bytes must lie inside the device.
func (g Geometry) Touched(off, n int64) Range {
	if n <= 0 {
		return Range{First: Nr(off >> g.shift)}
	}
	return Between(Nr(off>>g.shift), Nr((off+n-1)>>g.shift)+1)
}

// Covered is the range of regions that lie wholly inside [off, off+n): what a
// discard may concern. The short last region is covered by bytes that reach the
// end of the device.
func (g Geometry) Covered(off, n int64) Range {
	if n <= 0 {
		return Range{First: Nr(off >> g.shift)}
	}
	n = min(n, g.deviceBytes-off) // what lies behind the device covers nothing
	first := (off-1)>>g.shift + 1
	end := (off + n) >> g.shift
	if off+n == g.deviceBytes {
		end = int64(g.Regions())
	}
	return Between(Nr(first), Nr(end))
}
