package service

import (
	"sync"
	"time"
)

// Metrics are the counters of a manager since it was made.
type Metrics struct {
	BytesCopied, BytesCommitted, BytesDiscarded, BytesVerified uint64
	Retries                                                    uint64 // runs that were begun again after one had stopped
	Commits, Flushes                                           Histogram
	States                                                     map[State]int
	// ExtraBytes is the sum over running migrations of the most space that each has
	// taken beyond what its source took.
	ExtraBytes           int64
	Subscribers          int    // now
	SubscribersTooSlow   uint64 // that were dropped
	Events               uint64
	RefusedForTooManyNow uint64 // requests, see ErrTooMany
}

// Histogram counts how often something took how long.
type Histogram struct {
	UpperSeconds []float64 // of each bucket, ascending; the last bucket, of all others, has none
	Counts       []uint64  // of each bucket, not cumulative; one more than UpperSeconds
	Sum          float64   // seconds
	Count        uint64
}

// latencyBounds go from what a disk with a cache takes to what hardly any takes.
var latencyBounds = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// meters is what Metrics are read from.
type meters struct {
	commits, flushes latencies

	mu      sync.Mutex
	counted Metrics
}

type latencies struct {
	mu     sync.Mutex
	counts []uint64
	sum    float64
	count  uint64
}

func (l *latencies) observe(d time.Duration) {
	seconds, bucket := d.Seconds(), 0
	for bucket < len(latencyBounds) && seconds > latencyBounds[bucket] {
		bucket++
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts == nil {
		l.counts = make([]uint64, len(latencyBounds)+1)
	}
	l.counts[bucket]++
	l.sum += seconds
	l.count++
}

func (l *latencies) histogram() Histogram {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := Histogram{UpperSeconds: latencyBounds, Counts: make([]uint64, len(latencyBounds)+1), Sum: l.sum, Count: l.count}
	copy(h.Counts, l.counts)
	return h
}

// count adds what one event of a run tells more than the one before it.
func (m *meters) count(before, now Event, isVerification bool) {
	more := func(total *uint64, before, now int64) {
		*total += uint64(max(0, now-before))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counted.Events++
	more(&m.counted.BytesVerified, before.BytesVerified, now.BytesVerified)
	if isVerification {
		return // what it reads it tells as copied, too
	}
	more(&m.counted.BytesCopied, before.BytesCopied, now.BytesCopied)
	more(&m.counted.BytesCommitted, before.BytesCommitted, now.BytesCommitted)
	more(&m.counted.BytesDiscarded, before.BytesDiscarded, now.BytesDiscarded)
}

func (m *meters) add(change func(*Metrics)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.counted)
}

func (m *meters) metrics() Metrics {
	m.mu.Lock()
	out := m.counted
	m.mu.Unlock()
	out.Commits, out.Flushes = m.commits.histogram(), m.flushes.histogram()
	return out
}
