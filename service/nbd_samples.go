package service

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/nbd"
	"decant/region"
)

// sourceSample is what an export held at one place. The protocol gives an export no
// identity but its name, and a server that is started again with another image of the same
// size looks the same. So the journal keeps samples, and whenever the export is met again
// it has to hold them: at the next run, and after a lost connection, before anything else
// is read, and above all before anything is discarded.
//
// What may have been discarded has to hold what it held, or zeros: a server may have done
// it, not done it, or lost it.
type sourceSample struct {
	Off       int64  `json:"off"`
	Bytes     int64  `json:"bytes"`
	Sum       uint64 `json:"sum"` // XXH3
	Discarded bool   `json:"discarded,omitempty"`
}

const (
	// sampleBytes is small enough for no discard to end inside of a sample, which lies in
	// one region.
	sampleBytes = region.MinRegionBytes
	// sampleParts is in how many equal parts the device is divided, each with a sample.
	sampleParts = 256
	// mostSamples bounds what is kept of earlier runs, and of what was written.
	mostSamples = 2 * sampleParts
)

// sampleBounds divides a device: into equal parts, and the last of them by halves, since
// what is copied last is what samples are needed for last.
func sampleBounds(bytes int64) []int64 {
	var bounds []int64
	parts := min(max(1, bytes/sampleBytes), sampleParts)
	for i := range parts {
		bounds = append(bounds, bytes/parts*i)
	}
	for rest := bytes - bounds[len(bounds)-1]; rest > 2*sampleBytes; {
		rest /= 2
		bounds = append(bounds, bytes-rest)
	}
	return append(bounds, bytes)
}

// takeSamples reads from each part of the export what lies where its data begins, or a
// piece of its hole, outside the regions of without. What cannot be read is no sample.
func (n *nbdEnd) takeSamples(g region.Geometry, without *region.Set) ([]sourceSample, error) {
	var samples []sourceSample
	bounds := sampleBounds(g.DeviceBytes())
	for i, from := range bounds[:len(bounds)-1] {
		place, ok, err := n.samplePlace(g, without, byteSpan{from, bounds[i+1]})
		if err != nil {
			return nil, err
		}
		if ok && (len(samples) == 0 || samples[len(samples)-1].Off != place.start) {
			samples = append(samples, sourceSample{Off: place.start, Bytes: place.end - place.start})
		}
	}
	unreadable := sourceSample{}
	err := eachSample(n, samples, func(i int, p []byte) {
		if p == nil {
			samples[i] = unreadable
			return
		}
		samples[i].Sum = xxh3.Hash(p)
	})
	return slices.DeleteFunc(samples, func(s sourceSample) bool { return s == unreadable }), err
}

// eachSample reads all samples, many at a time since a server may be far away, and visits
// what is there now; nil where it cannot be read.
func eachSample(export io.ReaderAt, samples []sourceSample, visit func(i int, now []byte)) error {
	const atOnce = 16
	var readers errgroup.Group
	readers.SetLimit(atOnce)
	var visiting sync.Mutex
	for i, s := range samples {
		if s.Bytes <= 0 || s.Bytes > sampleBytes {
			return errors.Join(fmt.Errorf("a sample of %d bytes", s.Bytes), readers.Wait())
		}
		readers.Go(func() error {
			p := make([]byte, s.Bytes)
			_, err := export.ReadAt(p, s.Off)
			if errors.Is(err, unix.EIO) {
				p, err = nil, nil // a bad place says nothing, and is listed when it is copied
			}
			if err != nil {
				return err
			}
			visiting.Lock()
			defer visiting.Unlock()
			visit(i, p)
			return nil
		})
	}
	return readers.Wait()
}

// samplePlace is where to take the sample of a part. It is false if all of the part is
// left out.
func (n *nbdEnd) samplePlace(g region.Geometry, without *region.Set, part byteSpan) (byteSpan, bool, error) {
	run, ok := without.MissingRange(g.Touched(part.start, part.end-part.start))
	if !ok {
		return byteSpan{}, false, nil
	}
	off, bytes := g.Bytes(run)
	start, end := max(part.start, off), min(part.end, off+bytes)
	data, _, err := n.NextData(start)
	if err != nil {
		return byteSpan{}, false, err
	}
	if data < end {
		start = data
	}
	start -= start % sampleBytes
	return byteSpan{start, min(start+sampleBytes, g.DeviceBytes())}, true, nil
}

// dropTouched leaves out the samples that a range touches.
func dropTouched(samples []sourceSample, off, bytes int64) []sourceSample {
	return slices.DeleteFunc(samples, func(s sourceSample) bool { return s.touches(off, bytes) })
}

func (s sourceSample) touches(off, bytes int64) bool {
	return s.Off < off+bytes && off < s.Off+s.Bytes
}

// dropIn is the samples that do not lie in a region of the set.
func dropIn(samples []sourceSample, g region.Geometry, set *region.Set) []sourceSample {
	return slices.DeleteFunc(slices.Clone(samples), func(s sourceSample) bool { return set.HasAny(g.Touched(s.Off, s.Bytes)) })
}

// discardedIn is the samples, of which those that lie in a region of the set may have been
// discarded.
func discardedIn(samples []sourceSample, g region.Geometry, set *region.Set) []sourceSample {
	samples = slices.Clone(samples)
	for i, s := range samples {
		samples[i].Discarded = s.Discarded || set.HasAny(g.Touched(s.Off, s.Bytes))
	}
	return samples
}

// undiscarded is the samples that cannot have been discarded: who does not go on to discard
// needs no others. There are servers where what was discarded reads as neither what it was
// nor as zeros, below encryption for example.
func undiscarded(samples []sourceSample) []sourceSample {
	return slices.DeleteFunc(slices.Clone(samples), func(s sourceSample) bool { return s.Discarded })
}

// thinOut leaves every so many of the samples, so that they are not too many.
func thinOut(samples []sourceSample, most int) []sourceSample {
	step := (len(samples) + most - 1) / most
	var out []sourceSample
	for i := 0; i < len(samples); i += step {
		out = append(out, samples[i])
	}
	return out
}

// anyDiffers says whether one of the samples reads as something that it must not be.
func anyDiffers(export io.ReaderAt, samples []sourceSample) (at sourceSample, differs bool, err error) {
	err = eachSample(export, samples, func(i int, now []byte) {
		s := samples[i]
		if now != nil && xxh3.Hash(now) != s.Sum && (!s.Discarded || !allZeros(now)) {
			at, differs = s, true
		}
	})
	return at, differs, err
}

// expect makes the samples what the export has to hold after each lost connection.
func (n *nbdEnd) expect(samples []sourceSample) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.samples = slices.Clone(samples)
}

// recognize judges an export that was connected to anew.
func (n *nbdEnd) recognize(export io.ReaderAt) error {
	n.mu.Lock()
	samples := slices.Clone(n.samples)
	n.mu.Unlock()
	at, differs, err := anyDiffers(export, samples)
	if err == nil && differs {
		err = fmt.Errorf("%w: what it holds at byte %d is not what was there before", nbd.ErrChanged, at.Off)
	}
	return err
}

// changedSince says whether the export is another one than the source of a migration, or
// was written to: as far as the samples tell that can still be compared.
func (n *nbdEnd) changedSince(k known, discards bool) (bool, error) {
	if k.superblock.Source.Key != n.info.Key {
		return false, nil // nothing is known of this one
	}
	samples, g := k.record.SourceSamples, k.superblock.Geometry
	switch {
	case k.state.Phase == journal.Done && k.record.DiscardSource:
		samples = discardedIn(samples, g, region.NewSet(g.All()))
	case k.state.Direction == journal.Forward && k.record.DiscardSource:
		samples = discardedIn(samples, g, k.state.Hydrated)
	}
	if !discards && k.state.Phase != journal.Done {
		samples = undiscarded(samples)
	}
	_, differs, err := anyDiffers(n, samples)
	return differs, err
}

func allZeros(p []byte) bool {
	return !slices.ContainsFunc(p, func(b byte) bool { return b != 0 })
}
