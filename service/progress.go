package service

import (
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"decant/clone"
	"decant/hydrate"
)

const (
	progressPeriod = 200 * time.Millisecond
	// rateWindow is the time over which the rate is averaged.
	rateWindow = 5 * time.Second
	// stallAfter is how long nothing may move before a warning says so.
	stallAfter = 30 * time.Second
)

// reporter counts what a run does and tells the sink. It is the hydrate.Observer.
type reporter struct {
	m      *migration
	mail   *mailbox
	clone  *clone.Clone
	volume *volume // the clone as guests use it
	meter  *meter
	begun  time.Time

	mu             sync.Mutex
	phase          string
	baseCopied     int64 // copied and committed by earlier runs
	committedBytes int64 // by this run
	discardedBytes int64
	dataBytes      int64
	samples        []sample // of the rate window, the oldest first
	stalled        bool
	refused        time.Time // when it was told last that guests were refused space
}

type sample struct {
	at    time.Time
	bytes int64
}

// event is a snapshot of the counters. The caller holds mu.
func (r *reporter) event(kind EventKind) Event {
	status := r.clone.Status()
	e := Event{
		Event: kind, ID: r.m.id, Time: time.Now(), Phase: r.phase,
		BytesTotal:     r.clone.Bytes(),
		BytesData:      max(r.dataBytes, r.baseCopied+status.CopiedBytes), // guests may have had holes copied
		BytesCopied:    r.baseCopied + status.CopiedBytes,
		BytesCommitted: r.baseCopied + r.committedBytes,
		BytesDiscarded: r.discardedBytes,
		Transaction:    uint64(status.Tx),
		PeakExtraBytes: r.meter.peakBytes.Load(),
	}
	if r.clone.Verify {
		e.BytesVerified = e.BytesCopied
	}
	e.RateBytesPerSecond = r.rate(e.Time, e.BytesCopied)
	if left := e.BytesData - e.BytesCopied; left <= 0 {
		e.ETASeconds = new(float64)
	} else if e.RateBytesPerSecond > 0 {
		seconds := float64(left) / float64(e.RateBytesPerSecond)
		e.ETASeconds = &seconds
	}
	return e
}

// rate is what was copied per second in the last rateWindow of this run. What an
// earlier run has copied does not count.
func (r *reporter) rate(now time.Time, copied int64) int64 {
	for len(r.samples) > 1 && now.Sub(r.samples[0].at) > rateWindow {
		r.samples = r.samples[1:]
	}
	r.samples = append(r.samples, sample{now, copied})
	oldest := r.samples[0]
	if elapsed := now.Sub(oldest.at).Seconds(); elapsed > 0 {
		return int64(float64(copied-oldest.bytes) / elapsed)
	}
	return 0
}

// tell sends an event, after change has filled in what is special about it.
func (r *reporter) tell(kind EventKind, change func(*Event)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.event(kind)
	if change != nil {
		change(&e)
	}
	r.mail.post(e)
}

func (r *reporter) warn(message string) {
	r.tell(Warning, func(e *Event) { e.Message = message })
}

// allData notes that nothing is left to be copied: of what guests have overwritten or
// trimmed less was than there was data.
func (r *reporter) allData() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dataBytes = r.baseCopied + r.clone.Status().CopiedBytes
}

// addData notes that more has to be copied than was known.
func (r *reporter) addData(bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dataBytes += bytes
}

func (r *reporter) setPhase(phase string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phase = phase
}

func (r *reporter) isServing() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.phase == servingPhase
}

// every tells the progress until stop is closed.
func (r *reporter) every(stop <-chan struct{}) {
	ticker := time.NewTicker(progressPeriod)
	defer ticker.Stop()
	moved, last := time.Now(), int64(-1)
	for {
		select {
		case <-stop:
			return
		case now := <-ticker.C:
			if r.isServing() { // for as long as guests like, with nothing to tell
				moved = now
				continue
			}
			var copied int64
			var phase string
			r.tell(Progress, func(e *Event) { copied, phase = e.BytesCopied, e.Phase })
			if copied != last || phase == waitingPhase || phase == verifyingPhase {
				moved, last, r.stalled = now, copied, false
			}
			if now.Sub(moved) > stallAfter && !r.stalled {
				r.stalled = true
				r.warn("nothing has moved for " + now.Sub(moved).Round(time.Second).String() + ": an input or output operation does not return")
			}
		}
	}
}

// The phases of a run.
const (
	hydratingPhase  = "hydrating"
	reversingPhase  = "reversing"
	waitingPhase    = "waiting for space"
	discardingPhase = "discarding"
	verifyingPhase  = "verifying"
	servingPhase    = "serving" // hydration has ended, and guests are still there
	donePhase       = "done"
)

// Committed implements hydrate.Observer.
func (r *reporter) Committed(copiedBytes int64) {
	r.mu.Lock()
	r.committedBytes += copiedBytes
	r.mu.Unlock()
	r.tell(CommittedTx, nil)
}

// Discarded implements hydrate.Observer.
func (r *reporter) Discarded(done clone.Committed) {
	r.mu.Lock()
	r.discardedBytes += done.CopiedBytes()
	r.mu.Unlock()
	if n, ok := r.m.source.device.(*nbdEnd); ok {
		if warning := n.unfreedWarning(); warning != "" {
			r.warn(warning)
		}
	}
}

// Waiting implements hydrate.Observer.
func (r *reporter) Waiting(forWhat string) {
	r.mu.Lock()
	before := r.phase
	r.phase = r.m.workPhase()
	if forWhat != "" {
		r.phase = waitingPhase
	}
	changed := before != r.phase && forWhat != ""
	r.mu.Unlock()
	if changed {
		r.tell(Paused, func(e *Event) { e.Message = "waiting for " + forWhat })
	}
}

// guestRefused warns that there was no space for what a guest wanted to write, but not
// more than once in a minute.
func (r *reporter) guestRefused(short hydrate.Shortage) {
	r.mu.Lock()
	isNews := time.Since(r.refused) > time.Minute
	if isNews {
		r.refused = time.Now()
	}
	r.mu.Unlock()
	if isNews {
		r.warn("users of the volume are refused to write where that takes more space: there is not enough " + short.What)
	}
}

// Bad implements hydrate.Observer.
func (r *reporter) Bad(bad hydrate.BadRegion) {
	off, n := r.clone.Geometry.Bytes(bad.Range)
	r.warn(humanize.Comma(n) + " bytes at offset " + humanize.Comma(off) + " cannot be read and stay on the source: " + bad.Err.Error())
}
