package region_test

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"decant/region"
)

// geometries draws devices from one byte to the largest there can be.
func geometries() *rapid.Generator[region.Geometry] {
	return rapid.Custom(func(t *rapid.T) region.Geometry {
		regionBytes := int64(region.MinRegionBytes) << rapid.IntRange(0, 18).Draw(t, "region shift")
		largest := regionBytes * region.MaxRegions
		deviceBytes := rapid.OneOf(
			rapid.Int64Range(1, 10*regionBytes),
			rapid.Int64Range(1, largest),
			rapid.Int64Range(largest-2*regionBytes, largest),
		).Draw(t, "device bytes")
		g, err := region.NewGeometry(deviceBytes, regionBytes)
		if err != nil {
			t.Fatalf("%v", err)
		}
		return g
	})
}

// byteRanges draws a range of bytes inside the device, often near its ends and near
// the borders of regions.
func byteRanges(t *rapid.T, g region.Geometry) (off, n int64) {
	size := g.DeviceBytes()
	at := func(label string) int64 {
		near := rapid.Uint64Range(0, g.Regions()).Draw(t, label+" region")
		shift := rapid.Int64Range(-2, 2).Draw(t, label+" shift")
		edge := size
		if near < g.Regions() {
			edge = int64(near) * g.RegionBytes()
		}
		return max(0, min(size, edge+shift))
	}
	a, b := at("from"), at("to")
	return min(a, b), max(a, b) - min(a, b)
}

func one(nr region.Nr) region.Range { return region.Range{First: nr, Count: 1} }

// Regions tile the device: each begins where the one before ends, all but the last
// are whole, and the last ends with the device.
func TestRegionsTileTheDevice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := geometries().Draw(t, "geometry")
		nr := region.Nr(rapid.Uint64Range(0, g.Regions()-1).Draw(t, "nr"))
		off, n := g.Bytes(one(nr))
		if off != int64(nr)*g.RegionBytes() {
			t.Fatalf("region %d begins at %d", nr, off)
		}
		last := uint64(nr) == g.Regions()-1
		if !last && n != g.RegionBytes() || n <= 0 || n > g.RegionBytes() {
			t.Fatalf("region %d of %d has %d bytes", nr, g.Regions(), n)
		}
		if last != (off+n == g.DeviceBytes()) {
			t.Fatalf("region %d of %d ends at %d of %d", nr, g.Regions(), off+n, g.DeviceBytes())
		}
	})
}

func TestBytesOfAllIsTheDevice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := geometries().Draw(t, "geometry")
		if off, n := g.Bytes(g.All()); off != 0 || n != g.DeviceBytes() {
			t.Fatalf("all regions are %d bytes at %d of %d", n, off, g.DeviceBytes())
		}
	})
}

// What lies outside the device is cut off.
func TestBytesAreCutAtTheEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := geometries().Draw(t, "geometry")
		first := rapid.Uint64Range(0, 2*g.Regions()).Draw(t, "first")
		r := region.Range{First: region.Nr(first), Count: rapid.Uint64Range(0, 2*g.Regions()).Draw(t, "count")}
		off, n := g.Bytes(r)
		inside := r.Intersect(g.All())
		switch {
		case inside.Empty() && n != 0:
			t.Fatalf("%v outside %v has %d bytes", r, g.All(), n)
		case !inside.Empty() && (n <= 0 || off+n > g.DeviceBytes() || off != int64(first)*g.RegionBytes()):
			t.Fatalf("%v is %d bytes at %d of %d", r, n, off, g.DeviceBytes())
		}
	})
}

// Touched rounds out: the first and the last byte lie in it, and the first and the
// last region hold one of the bytes.
func TestTouchedRoundsOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := geometries().Draw(t, "geometry")
		off, n := byteRanges(t, g)
		r := g.Touched(off, n)
		if n == 0 {
			if !r.Empty() {
				t.Fatalf("no bytes touch %v", r)
			}
			return
		}
		if !r.Has(region.Nr(off/g.RegionBytes())) || !r.Has(region.Nr((off+n-1)/g.RegionBytes())) {
			t.Fatalf("%d bytes at %d touch %v", n, off, r)
		}
		if got, _ := g.Bytes(one(r.First)); got+g.RegionBytes() <= off {
			t.Fatalf("%d bytes at %d: the first region of %v is not touched", n, off, r)
		}
		if got, _ := g.Bytes(one(r.End() - 1)); got >= off+n {
			t.Fatalf("%d bytes at %d: the last region of %v is not touched", n, off, r)
		}
	})
}

// Covered rounds in: its bytes lie inside, and neither neighbour would.
func TestCoveredRoundsIn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := geometries().Draw(t, "geometry")
		off, n := byteRanges(t, g)
		r := g.Covered(off, n)
		inside := func(nr region.Nr) bool {
			at, size := g.Bytes(one(nr))
			return size > 0 && at >= off && at+size <= off+n
		}
		if r.Empty() {
			if touched := g.Touched(off, n); !touched.Empty() && (inside(touched.First) || inside(touched.End()-1)) {
				t.Fatalf("%d bytes at %d cover nothing, but hold a whole region", n, off)
			}
			return
		}
		if !inside(r.First) || !inside(r.End()-1) {
			t.Fatalf("%d bytes at %d cover %v, which is not all inside", n, off, r)
		}
		if inside(r.End()) || r.First > 0 && inside(r.First-1) {
			t.Fatalf("%d bytes at %d cover %v, and a neighbour is inside as well", n, off, r)
		}
	})
}

// Bytes, Covered and Touched agree on whole regions, a short last one included.
func TestWholeRegionsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := geometries().Draw(t, "geometry")
		first := rapid.Uint64Range(0, g.Regions()-1).Draw(t, "first")
		r := region.Range{First: region.Nr(first), Count: rapid.Uint64Range(1, g.Regions()-first).Draw(t, "count")}
		off, n := g.Bytes(r)
		if g.Covered(off, n) != r || g.Touched(off, n) != r {
			t.Fatalf("%v: %d bytes at %d cover %v and touch %v", r, n, off, g.Covered(off, n), g.Touched(off, n))
		}
	})
}

// fault 72: sizes up to the largest number are refused or counted right.
func TestFault72NewGeometry(t *testing.T) {
	for _, test := range []struct {
		deviceBytes, regionBytes int64
		regions                  uint64 // 0: refused
	}{
		{1, 4096, 1},
		{4096, 4096, 1},
		{4097, 4096, 2},
		{math.MaxInt64, 1 << 30, 0},
		{math.MaxInt64, 4096, 0},
		{1 << 62, 1 << 30, region.MaxRegions},
		{1<<62 + 1, 1 << 30, 0},
		{0, 4096, 0},
		{-1, 4096, 0},
		{math.MinInt64, 4096, 0},
		{4096, 0, 0},
		{4096, -4096, 0},
		{4096, 2048, 0},
		{4096, 4095, 0},
		{4096, 12288, 0},
		{1 << 40, 2 << 30, 0},
		{1 << 40, math.MinInt64, 0},
	} {
		g, err := region.NewGeometry(test.deviceBytes, test.regionBytes)
		if (err == nil) != (test.regions > 0) || err == nil && g.Regions() != test.regions {
			t.Errorf("%d bytes in regions of %d: %d regions, %v; want %d", test.deviceBytes, test.regionBytes, g.Regions(), err, test.regions)
		}
	}
}

func TestZeroGeometryHasNoRegions(t *testing.T) {
	var g region.Geometry
	if off, n := g.Bytes(region.Range{Count: 5}); g.Regions() != 0 || !g.All().Empty() || off != 0 || n != 0 {
		t.Errorf("%d regions, %d bytes at %d", g.Regions(), n, off)
	}
}

// Between and Intersect against their meaning, region by region.
func TestRangesAgainstTheirMeaning(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) region.Range {
			first := region.Nr(rapid.Uint64Range(0, 12).Draw(t, label+" first"))
			return region.Between(first, region.Nr(rapid.Uint64Range(0, 12).Draw(t, label+" end")))
		}
		a, b := draw("a"), draw("b")
		both := a.Intersect(b)
		var count uint64
		for nr := range region.Nr(30) {
			if both.Has(nr) != (a.Has(nr) && b.Has(nr)) {
				t.Fatalf("%v and %v meet in %v", a, b, both)
			}
			if a.Has(nr) {
				count++
			}
		}
		if a.Count != count || a.Empty() != (count == 0) {
			t.Fatalf("%v holds %d regions, not %d", a, count, a.Count)
		}
	})
}
