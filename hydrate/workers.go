package hydrate

import (
	"sync"
	"sync/atomic"
)

// Threshold is a number of regions that can change while a run keeps to it. Copies
// that have begun end; those after them keep to the new number.
type Threshold struct{ regions atomic.Uint64 }

// NewThreshold is a threshold of that many regions.
func NewThreshold(regions uint64) *Threshold {
	t := &Threshold{}
	t.Set(regions)
	return t
}

// Set changes the number, which has to be positive.
func (t *Threshold) Set(regions uint64) { t.regions.Store(max(1, regions)) }

// Regions is the number.
func (t *Threshold) Regions() uint64 { return t.regions.Load() }

// workers run functions, as many at a time as the limit says at each start.
type workers struct {
	limit func() int

	mu    sync.Mutex
	ended *sync.Cond // of mu
	busy  int
}

func newWorkers(limit func() int) *workers {
	w := &workers{limit: limit}
	w.ended = sync.NewCond(&w.mu)
	return w
}

// Go waits until the limit allows one more, and starts it.
func (w *workers) Go(work func()) {
	w.mu.Lock()
	for w.busy > 0 && w.busy >= w.limit() {
		w.ended.Wait()
	}
	w.busy++
	w.mu.Unlock()
	go func() {
		defer w.end()
		work()
	}()
}

func (w *workers) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy--
	w.ended.Broadcast()
}

// Wait waits until none runs. None may be started meanwhile.
func (w *workers) Wait() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.busy > 0 {
		w.ended.Wait()
	}
}
