package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func tell(h *history, id string, kinds ...EventKind) {
	for _, kind := range kinds {
		h.add(Event{ID: id, Event: kind})
	}
}

// read is what a subscription has, without waiting for more.
func read(s *Subscription) (kinds []EventKind, last uint64, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		e, err := s.Next(ctx)
		if errors.Is(err, context.Canceled) {
			return kinds, last, nil
		}
		if err != nil {
			return kinds, last, err
		}
		if e.Sequence <= last {
			return kinds, last, fmt.Errorf("%d after %d", e.Sequence, last)
		}
		kinds, last = append(kinds, e.Event.Event), e.Sequence
	}
}

func want(t *testing.T, s *Subscription, kinds ...EventKind) uint64 {
	t.Helper()
	got, last, err := read(s)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(kinds) {
		t.Errorf("read %v %v, want %v", got, err, kinds)
	}
	return last
}

func TestLateReadersGetWhatIsKept(t *testing.T) {
	t.Parallel()
	h := newHistory(100, time.Now())
	tell(h, "a", Started, Progress, Progress, CommittedTx, Progress)
	tell(h, "b", Started)
	all := h.subscribe("", 0)
	// Of progress the newest says it all.
	last := want(t, all, Started, CommittedTx, Progress, Started)
	want(t, h.subscribe("a", 0), Started, CommittedTx, Progress)
	want(t, h.subscribe("b", 0), Started)
	fresh := h.subscribe("", FromNow)
	want(t, fresh)
	tell(h, "a", Progress, DoneEvent)
	want(t, fresh, DoneEvent) // the progress was overtaken
	again := h.subscribe("", last)
	want(t, again, DoneEvent)
	if again.Missed() || all.Missed() {
		t.Error("something was missed")
	}
}

func TestForgottenEventsAreNotHidden(t *testing.T) {
	t.Parallel()
	h := newHistory(4, time.Now())
	tell(h, "a", Started)
	slow := h.subscribe("a", 0)
	first := want(t, slow, Started)
	tell(h, "a", CommittedTx, CommittedTx, CommittedTx, CommittedTx, CommittedTx)
	if _, _, err := read(slow); !errors.Is(err, ErrGap) {
		t.Errorf("a slow reader: %v", err)
	}
	late := h.subscribe("a", first)
	if !late.Missed() {
		t.Error("a late reader is not told that it has missed something")
	}
	last := want(t, late, CommittedTx, CommittedTx, CommittedTx, CommittedTx)
	if s := h.subscribe("a", last+1000); !s.Missed() {
		t.Error("a number that is still to come is taken for one of this process")
	}
	if h.dropped != 1 {
		t.Errorf("%d were dropped", h.dropped)
	}
	// Who reads one migration does not lose its place by what others do.
	one := h.subscribe("b", FromNow)
	for range 3 {
		want(t, one)
		tell(h, "a", CommittedTx, CommittedTx, CommittedTx)
	}
	want(t, one)
	tell(h, "b", Started)
	want(t, one, Started)
}

func TestNumbersOfALaterProcessAreHigher(t *testing.T) {
	t.Parallel()
	now := time.Now()
	h := newHistory(10, now)
	for range 1000 {
		tell(h, "a", CommittedTx)
	}
	later := newHistory(10, now.Add(2*time.Millisecond))
	if later.next <= h.next {
		t.Errorf("%d and then %d", h.next, later.next)
	}
	if later.next >= 1<<53 {
		t.Error("numbers are not exact in JSON")
	}
}

// Readers wait for nothing but events, and no run waits for a reader, however many there
// are and however slow they read.
func TestReadersAndWritersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const readers, events = 200, 5000
		h := newHistory(64, time.Now())
		var reading sync.WaitGroup
		for i := range readers {
			s := h.subscribe("", FromNow)
			reading.Go(func() {
				defer s.Close()
				var last uint64
				for {
					if i%2 == 0 {
						time.Sleep(time.Second) // slow
					}
					e, err := s.Next(context.Background())
					if err != nil {
						if i%2 == 1 && !errors.Is(err, ErrEventsEnded) && !errors.Is(err, ErrGap) || i%2 == 0 && !errors.Is(err, ErrGap) {
							t.Errorf("reader %d: %v", i, err)
						}
						return
					}
					if e.Sequence <= last {
						t.Errorf("%d after %d", e.Sequence, last)
					}
					last = e.Sequence
				}
			})
		}
		synctest.Wait()
		for i := range events {
			tell(h, "a", CommittedTx, Progress)
			if i%10 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		synctest.Wait()
		h.end()
		reading.Wait()
		if len(h.kept) != 64 || len(h.progress) != 1 || h.readers != 0 {
			t.Errorf("kept %d and %d, %d readers", len(h.kept), len(h.progress), h.readers)
		}
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	t.Parallel()
	s := newHistory(4, time.Now()).subscribe("", 0)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	s.Close()
	s.Close()
	if s.history.readers != 0 {
		t.Error("a reader is still counted")
	}
}
