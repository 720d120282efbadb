package service

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"
)

// SequencedEvent is an event with its place among all events of all migrations of a
// manager. Numbers ascend, with gaps: who follows one migration sees every so many.
type SequencedEvent struct {
	Sequence uint64
	Event    Event
}

// ErrGap ends a subscription whose reader was too slow: events that it has not seen are
// no longer kept. A new subscription goes on with what there is.
var ErrGap = errors.New("events were lost, the reader is too slow")

// ErrEventsEnded ends a subscription when the manager ends.
var ErrEventsEnded = errors.New("no more events will come, the service ends")

// FromNow subscribes to events that are still to come, and to none of those before.
const FromNow = math.MaxUint64

// history keeps the last events for whoever comes late or reads slowly. Readers have a
// place in it and no queue of their own, so that no number of them takes memory, and
// none of them holds up a run.
type history struct {
	capacity int

	mu       sync.Mutex
	next     uint64                    // number of the next event
	kept     []SequencedEvent          // ascending; all kinds but progress
	progress map[string]SequencedEvent // the newest of each migration; older ones say nothing more
	lost     uint64                    // highest number that is no longer kept
	changed  chan struct{}             // closed at the next event, and at the end
	ended    bool
	readers  int
	dropped  uint64 // subscriptions that were too slow
}

// newHistory numbers events upward from the time of its making, so that a number from
// an earlier process is never one of a later event of this one.
func newHistory(capacity int, now time.Time) *history {
	// Milliseconds, as a service may be killed and be there again within the same second.
	const perMillisecond = 1 << 11 // events, at most; below 2^53, all numbers are exact in JSON, too
	first := uint64(max(1, now.UnixMilli())) * perMillisecond
	return &history{
		capacity: max(1, capacity), next: first, lost: first - 1,
		progress: map[string]SequencedEvent{}, changed: make(chan struct{}),
	}
}

// add never waits.
func (h *history) add(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return
	}
	numbered := SequencedEvent{Sequence: h.next, Event: e}
	h.next++
	switch e.Event {
	case Progress:
		h.progress[e.ID] = numbered
	case DoneEvent, StoppedRun, FailedEvent:
		delete(h.progress, e.ID)
		fallthrough
	default:
		h.kept = append(h.kept, numbered)
	}
	if over := len(h.kept) - h.capacity; over > 0 {
		h.lost = h.kept[over-1].Sequence
		h.kept = slices.Delete(h.kept, 0, over)
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *history) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ended {
		h.ended = true
		close(h.changed)
	}
}

// Subscription is one reader of events. It is used by one goroutine.
type Subscription struct {
	history *history
	id      string // empty: of all migrations
	after   uint64
	missed  bool
	closed  bool
}

func (h *history) subscribe(id string, after uint64) *Subscription {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readers++
	s := &Subscription{history: h, id: id, after: after}
	switch {
	case after == FromNow:
		s.after = h.next - 1
	case after == 0: // all that is kept
		s.after = h.lost
	case after < h.lost, after >= h.next: // forgotten, or of a process with another clock
		s.missed, s.after = true, h.lost
	}
	return s
}

// Missed says that there were events after the one that the subscription was to go on
// from, and that they are no longer kept.
func (s *Subscription) Missed() bool { return s.missed }

// Next is the next event. It waits for one until the context ends, whose error it then
// returns. ErrGap and ErrEventsEnded end the subscription.
func (s *Subscription) Next(ctx context.Context) (SequencedEvent, error) {
	for {
		e, changed, err := s.look()
		if changed == nil {
			return e, err
		}
		select {
		case <-ctx.Done():
			return SequencedEvent{}, ctx.Err()
		case <-changed:
		}
	}
}

// look is the next event, or else what is closed when there may be one.
func (s *Subscription) look() (SequencedEvent, <-chan struct{}, error) {
	h := s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.after < h.lost {
		h.dropped++
		s.after = h.next
		return SequencedEvent{}, nil, ErrGap
	}
	if e, ok := h.following(s.after, s.id); ok {
		s.after = e.Sequence
		return e, nil, nil
	}
	if h.ended {
		return SequencedEvent{}, nil, ErrEventsEnded
	}
	s.after = max(s.after, h.next-1) // what there is was not for this reader
	return SequencedEvent{}, h.changed, nil
}

// following is the first event after a number, of one migration or of all.
func (h *history) following(after uint64, id string) (first SequencedEvent, ok bool) {
	i, _ := slices.BinarySearchFunc(h.kept, after+1, func(e SequencedEvent, n uint64) int {
		if e.Sequence < n {
			return -1
		}
		return int(min(1, e.Sequence-n))
	})
	for _, e := range h.kept[i:] {
		if id == "" || e.Event.ID == id {
			first, ok = e, true
			break
		}
	}
	for _, e := range h.progress {
		if e.Sequence > after && (id == "" || e.Event.ID == id) && (!ok || e.Sequence < first.Sequence) {
			first, ok = e, true
		}
	}
	return first, ok
}

// Close ends the subscription. It may be called again.
func (s *Subscription) Close() {
	s.history.mu.Lock()
	defer s.history.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.history.readers--
	}
}
