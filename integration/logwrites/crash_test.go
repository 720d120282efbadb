package logwrites_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"decant/integration/logwrites"
)

// Every write of a migration to any of its media is a moment at which the power can
// be cut. In every state that this leaves, each region is whole at the end that the
// journal names, the source says of itself what was taken from it, and the file
// systems, the pool's metadata and the journal are sound.
func TestPowerCutsOnAllMedia(t *testing.T) {
	for i, r := range recordings(t) {
		t.Run(r.name, func(t *testing.T) {
			c := newChecker(t, r.log, r.image)
			c.checkAll(t, "in order", r.inOrder(i == 0))
			c.checkAll(t, "reordered and torn", r.reordered())
		})
	}
}

// inOrder are the cuts with all that was written until then, and with nothing but what
// was flushed. They come after every entry, or, unless every is set or it is night,
// after every third and around flushes and discards.
func (r *recorded) inOrder(every bool) (cuts []logwrites.Cut) {
	for after := r.begun; after <= r.log.Len(); after++ {
		near := r.log.Entry(after - 1)
		if after < r.log.Len() {
			near.Flags |= r.log.Entry(after).Flags
		}
		if every || nightly() || after%3 == 0 || near.Has(logwrites.Flush|logwrites.FUA|logwrites.Discard) {
			cuts = append(cuts, logwrites.Cut{After: after, Keep: 1}, logwrites.Cut{After: after})
		}
	}
	return cuts
}

// reordered are cuts after which any part of what was not flushed is there.
func (r *recorded) reordered() (cuts []logwrites.Cut) {
	seeds, step := uint64(1), 3
	if nightly() {
		seeds, step = 8, 1
	}
	for seed := range seeds {
		for after := r.begun; after <= r.log.Len(); after += step {
			cut := logwrites.Cut{After: after, Keep: 0.5, Seed: seed, IgnoreDiscards: (after+int(seed))%2 == 0}
			switch (after/step + int(seed)) % 4 {
			case 0:
			case 1:
				cut.TornBytes = logwrites.SectorBytes
			case 2:
				cut.Keep, cut.TornBytes = 0.8, logwrites.BlockBytes
			case 3:
				cut.Keep, cut.TornBytes, cut.LastOnly = 1, logwrites.SectorBytes, true
			}
			cuts = append(cuts, cut)
		}
	}
	return cuts
}

// mostMessages is how many violations are described; the others are counted.
const mostMessages = 4

// checkAll fails the test for every state in which something is lost.
func (c *checker) checkAll(t *testing.T, name string, cuts []logwrites.Cut) {
	t.Helper()
	begun := time.Now()
	told := 0
	violations := c.violations(cuts, func(cut logwrites.Cut, err error) {
		if told++; told > mostMessages {
			return
		}
		t.Errorf("%v\nlast was %s\n%v", cut, c.log.Describe(cut.After-1), err)
	})
	t.Logf("%s: %d states of %d entries, %d violations, within %v", name, len(cuts), c.log.Len(), violations, time.Since(begun).Round(time.Millisecond))
}

// violations counts the states in which something is lost, and tells of each, one at
// a time.
func (c *checker) violations(cuts []logwrites.Cut, tell func(logwrites.Cut, error)) int {
	var next, found atomic.Int64
	var telling sync.Mutex
	var workers sync.WaitGroup
	for range runtime.NumCPU() {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(cuts)); i = next.Add(1) - 1 {
				if err := c.check(cuts[i]); err != nil {
					found.Add(1)
					telling.Lock()
					tell(cuts[i], err)
					telling.Unlock()
				}
			}
		})
	}
	workers.Wait()
	return int(found.Load())
}
