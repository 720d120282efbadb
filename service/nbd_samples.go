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

// sourceSample is what an export held at one place. The protocol gives an export no identity
// but its name, and a server that is started again with another image of the same size
// looks the same. So the journal keeps samples, and whenever the export is met again
// it has to hold them: at the next run, and after a lost connection.
//
// A sample lies in one region. It holds as long as that region belongs to the source
// and cannot have been discarded.
type sourceSample struct {
	Off   int64  `json:"off"`
	Bytes int64  `json:"bytes"`
	Sum   uint64 `json:"sum"` // XXH3
}

const (
	sampleBytes = 64 << 10
	// sampleParts is in how many equal parts the device is divided, each with a sample.
	sampleParts = 128
)

// sampleBounds divides a device: into equal parts, and the last of them by halves, since
// what is copied last is what samples are needed for last.
func sampleBounds(bytes int64) []int64 {
	var bounds []int64
	for i := range int64(sampleParts) {
		bounds = append(bounds, bytes/sampleParts*i)
	}
	for rest := bytes - bounds[len(bounds)-1]; rest > 2*sampleBytes; {
		rest /= 2
		bounds = append(bounds, bytes-rest)
	}
	return slices.Compact(append(bounds, bytes))
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
		if ok {
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
	off, bytes = g.Bytes(g.Touched(start, 1))
	return byteSpan{start, min(start+sampleBytes, off+bytes)}, true, nil
}

// dropTouched leaves out the samples that a range touches.
func dropTouched(samples []sourceSample, off, bytes int64) []sourceSample {
	return slices.DeleteFunc(samples, func(s sourceSample) bool { return s.Off < off+bytes && off < s.Off+s.Bytes })
}

// dropIn leaves out the samples that lie in a region of the set.
func dropIn(samples []sourceSample, g region.Geometry, set *region.Set) []sourceSample {
	return slices.DeleteFunc(slices.Clone(samples), func(s sourceSample) bool { return set.HasAny(g.Touched(s.Off, s.Bytes)) })
}

// anyDiffers says whether one of the samples reads as something else, and for which it
// matters.
func anyDiffers(export io.ReaderAt, samples []sourceSample, matters func(now []byte) bool) (at sourceSample, differs bool, err error) {
	err = eachSample(export, samples, func(i int, now []byte) {
		if now != nil && xxh3.Hash(now) != samples[i].Sum && matters(now) {
			at, differs = samples[i], true
		}
	})
	return at, differs, err
}

// expect makes the samples what the export has to hold after each lost connection. A
// range that is discarded leaves them.
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
	at, differs, err := anyDiffers(export, samples, always)
	if err == nil && differs {
		err = fmt.Errorf("%w: what it holds at byte %d is not what was there before", nbd.ErrChanged, at.Off)
	}
	return err
}

func always([]byte) bool { return true }

// changedSince says whether the export is another one than the source of a migration, or
// was written to: as far as the samples tell that can still be compared.
func (n *nbdEnd) changedSince(k known) (bool, error) {
	if k.superblock.Source.Key != n.info.Key {
		return false, nil // nothing is known of this one
	}
	samples, matters := k.record.SourceSamples, always
	switch {
	case k.state.Phase == journal.Done && k.record.DiscardSource:
		// What was discarded may read as anything for a while, and as zeros at last.
		matters = func(now []byte) bool { return !allZeros(now) }
	case k.state.Direction == journal.Forward && k.record.DiscardSource:
		samples = dropIn(samples, k.superblock.Geometry, k.state.Hydrated)
	}
	_, differs, err := anyDiffers(n, samples, matters)
	return differs, err
}

func allZeros(p []byte) bool {
	return !slices.ContainsFunc(p, func(b byte) bool { return b != 0 })
}
