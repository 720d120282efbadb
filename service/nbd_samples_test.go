package service

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"decant/region"
)

// Samples are asked for in places that cover a device of any size evenly, and its end
// closely.
func TestSampleBounds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		bytes := rapid.OneOf(rapid.Int64Range(1, 1<<20), rapid.Int64Range(1, 1<<62)).Draw(t, "bytes")
		bounds := sampleBounds(bytes)
		if bounds[0] != 0 || bounds[len(bounds)-1] != bytes || !slices.IsSorted(bounds) || len(bounds) > mostSamples {
			t.Fatalf("%d bytes: %v", bytes, bounds)
		}
		for i := range len(bounds) - 1 {
			if part := bounds[i+1] - bounds[i]; part <= 0 || part > max(2*sampleBytes, bytes/sampleParts+sampleParts) {
				t.Fatalf("%d bytes: part %d has %d", bytes, i, part)
			}
		}
		if last := bounds[len(bounds)-1] - bounds[len(bounds)-2]; last > 4*sampleBytes && bytes > sampleParts*4*sampleBytes {
			t.Fatalf("%d bytes: the last part has %d", bytes, last)
		}
	})
}

// Each sample lies in one region, outside of those that are left out, and where there is
// data, if its part has any.
func TestSamplesAreTakenWhereTheyHold(t *testing.T) {
	t.Parallel()
	const size = 8*mib + 512
	s, disk, _ := remoteSite(t, size)
	s.serve(exportOf(disk))
	from, err := s.sourceTarget(s.uri())
	s.must(err)
	e, err := s.open(from, true)
	s.must(err)
	defer func() { s.must(e.Close()) }()
	n := e.device.(*nbdEnd)
	g, err := region.NewGeometry(size, 4*kib)
	s.must(err)
	without := region.NewSet(region.Range{First: 3, Count: 100}, region.Range{First: 1000, Count: 900})
	samples, err := n.takeSamples(g, without)
	s.must(err)
	if len(samples) < 60 {
		t.Errorf("only %d samples", len(samples))
	}
	for _, x := range samples {
		r := g.Touched(x.Off, x.Bytes)
		if r.Count != 1 || without.HasAny(r) || x.Bytes <= 0 {
			t.Errorf("a sample %+v in %v", x, r)
		}
	}
	if at, differs, err := anyDiffers(n, samples); differs || err != nil {
		t.Errorf("%+v differs, %v", at, err)
	}
	// What is discarded is no sample any more; what others change is found.
	n.expect(samples)
	s.must(n.Discard(samples[0].Off, samples[0].Bytes))
	s.must(n.recognize(disk))
	disk.mu.Lock()
	disk.data[samples[len(samples)-1].Off] ^= 1
	disk.mu.Unlock()
	if n.recognize(disk) == nil {
		t.Error("a change at the last sample is not seen")
	}
	if _, err := n.takeSamples(g, region.NewSet(g.All())); err != nil {
		t.Error(err)
	}
}
