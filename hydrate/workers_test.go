package hydrate

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWorkersKeepToALimitThatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		threshold := NewThreshold(3)
		w := newWorkers(func() int { return int(threshold.Regions()) })
		var busy, most, ran atomic.Int64
		work := func() {
			now := busy.Add(1)
			most.Store(max(most.Load(), now)) // no two begin at one instant: Go waits
			time.Sleep(time.Second)
			busy.Add(-1)
			ran.Add(1)
		}
		started := make(chan struct{})
		go func() {
			defer close(started)
			for range 100 {
				w.Go(work)
				synctest.Wait()
			}
		}()
		for _, limit := range []uint64{3, 7, 1, 5} {
			threshold.Set(limit)
			time.Sleep(2500 * time.Millisecond) // those of the old limit have ended
			most.Store(0)
			time.Sleep(3 * time.Second)
			if most.Load() != int64(limit) {
				t.Errorf("%d at a time, want %d", most.Load(), limit)
			}
		}
		<-started
		w.Wait()
		if busy.Load() != 0 || ran.Load() != 100 {
			t.Errorf("%d are busy and %d ran after the end", busy.Load(), ran.Load())
		}
	})
}

func TestThresholdIsNeverZero(t *testing.T) {
	if n := NewThreshold(0).Regions(); n != 1 {
		t.Errorf("%d", n)
	}
}
