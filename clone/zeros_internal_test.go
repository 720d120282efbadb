package clone

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// run is a run as put sees it.
type run struct {
	at, end int
	zero    bool
}

func runsOf(z zeros, p []byte) (all []run) {
	for at := 0; at < len(p); {
		end, zero := z.nextRun(p, at)
		all = append(all, run{at, end, zero})
		at = max(end, at+1)
	}
	return all
}

func TestZerosAreLeftOutInWholeUnits(t *testing.T) {
	const g = granuleBytes
	// d is a granule of data, z one of zeros.
	for _, c := range []struct {
		name, granules string
		off            int64
		unit           int64
		want           []run
	}{
		{"granules", "dzzd", 0, g, []run{{0, g, false}, {g, 3 * g, true}, {3 * g, 4 * g, false}}},
		{"a unit of zeros", "ddzzdd", 0, 2 * g, []run{{0, 2 * g, false}, {2 * g, 4 * g, true}, {4 * g, 6 * g, false}}},
		{"zeros across units", "dzzd", 0, 2 * g, []run{{0, 4 * g, false}}},
		{"rests of units are data", "dzzzzd", 0, 2 * g, []run{{0, 2 * g, false}, {2 * g, 4 * g, true}, {4 * g, 6 * g, false}}},
		{"units are those of the device", "dzzd", g, 2 * g, []run{{0, g, false}, {g, 3 * g, true}, {3 * g, 4 * g, false}}},
		{"the buffer ends within a unit", "ddz", 0, 2 * g, []run{{0, 2 * g, false}, {2 * g, 3 * g, true}}},
		{"zeros only", "zz", 0, 8 * g, []run{{0, 2 * g, true}}},
		{"three granules to a unit", "dzzzzzzd", 0, 3 * g, []run{{0, 3 * g, false}, {3 * g, 6 * g, true}, {6 * g, 8 * g, false}}},
	} {
		var p []byte
		for _, kind := range c.granules {
			fill := byte(0)
			if kind == 'd' {
				fill = 1
			}
			p = append(p, bytes.Repeat([]byte{fill}, g)...)
		}
		if got := runsOf(zeros{off: c.off, shortest: g, unit: c.unit}, p); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestZerosCoverTheBufferWhateverTheUnit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		granules := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 0, 1}), 1, 24).Draw(t, "granules")
		unit := int64(granuleBytes * rapid.IntRange(1, 6).Draw(t, "granules in a unit"))
		z := zeros{
			off:      int64(granuleBytes * rapid.IntRange(0, 12).Draw(t, "offset")),
			shortest: granuleBytes * rapid.IntRange(1, 3).Draw(t, "shortest"), unit: unit,
		}
		var p []byte
		for _, fill := range granules {
			p = append(p, bytes.Repeat([]byte{fill}, granuleBytes)...)
		}
		p = p[:len(p)-rapid.SampledFrom([]int{0, 512}).Draw(t, "short")]
		at := 0
		for _, r := range runsOf(z, p) {
			if r.at != at || r.end <= r.at {
				t.Fatalf("run %v after byte %d", r, at)
			}
			at = r.end
			if !r.zero {
				continue
			}
			if zeroEnd(p[:r.end], r.at) != r.end {
				t.Fatalf("run %v is not all zeros", r)
			}
			startsWhole := r.at == 0 || (z.off+int64(r.at))%unit == 0
			endsWhole := r.end == len(p) || (z.off+int64(r.end))%unit == 0
			if !startsWhole || !endsWhole {
				t.Fatalf("run %v of a buffer at %d does not fill units of %d", r, z.off, unit)
			}
		}
		if at != len(p) {
			t.Fatalf("runs end at byte %d of %d", at, len(p))
		}
	})
}
