package service

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/hydrate"
	"decant/region"
)

// newReporter is a reporter of a run on a device in memory, of n regions.
func newReporter(t *testing.T, n int, sink Sink) *reporter {
	t.Helper()
	setup := clonetest.Setup{Seed: 7, DeviceBytes: int64(n) * 4096, RegionBytes: 4096, BufferBytes: 4096, BatchRegions: 2}
	for range n {
		setup.Content = append(setup.Content, clonetest.Data)
	}
	machine := clonetest.New(setup)
	c, err := machine.Open()
	if err != nil {
		t.Fatal(err)
	}
	return &reporter{
		m: &migration{id: "m1"}, mail: newMailbox(sink), clone: c, meter: &meter{}, begun: time.Now(),
		phase: hydratingPhase, dataBytes: c.Bytes(),
	}
}

// observe runs a reporter's clock for some time, with something to be done at each
// second of it.
func observe(t *testing.T, r *reporter, seconds int, each func(second int)) {
	t.Helper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		r.every(stop)
		close(stopped)
	}()
	for second := range seconds {
		each(second)
		time.Sleep(time.Second)
		synctest.Wait()
	}
	close(stop)
	<-stopped
	r.tell(DoneEvent, nil)
	r.mail.finish()
}

func (r *reporter) hydrateNext(t *testing.T) {
	t.Helper()
	next := region.Range{First: region.Nr(r.clone.Status().CopiedBytes / 4096), Count: 1}
	if _, err := r.clone.Hydrate(context.Background(), next); err != nil {
		t.Fatal(err)
	}
}

// fault 25
func TestFault25StallIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log recorder
		r := newReporter(t, 10, log.sink)
		begun := time.Now()
		observe(t, r, 120, func(second int) {
			if second < 5 || second == 80 {
				r.hydrateNext(t)
			}
		})
		var at []time.Duration
		for _, e := range log.all() {
			if e.Event != Warning {
				continue
			}
			at = append(at, e.Time.Sub(begun).Round(time.Second))
			if !strings.Contains(e.Message, "does not return") {
				t.Errorf("%q", e.Message)
			}
		}
		if len(at) != 2 || at[0] != 4*time.Second+stallAfter || at[1] != 80*time.Second+stallAfter {
			t.Errorf("warnings at %v", at)
		}
	})
}

// Who waits for space is not stalled.
func TestWaitingForSpaceIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log recorder
		r := newReporter(t, 10, log.sink)
		r.phase = waitingPhase
		observe(t, r, 100, func(int) {})
		if text := log.messages(); text != "" {
			t.Errorf("%s", text)
		}
	})
}

// The rate is that of the last seconds of this run, whatever earlier ones copied.
func TestRateAndTimeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log recorder
		r := newReporter(t, 100, log.sink)
		r.baseCopied, r.dataBytes = 1<<40, 1<<40+100*4096
		observe(t, r, 90, func(second int) {
			if second < 30 {
				r.hydrateNext(t)
			}
		})
		var steady, resting, first Event
		for _, e := range log.all() {
			switch since := e.Time.Sub(r.begun); {
			case e.Event != Progress:
			case first.ID == "":
				first = e
			case since > 19*time.Second && since < 20*time.Second:
				steady = e
			case since > 40*time.Second:
				resting = e
			}
		}
		if first.RateBytesPerSecond != 0 || first.ETASeconds != nil {
			t.Errorf("begins with %d bytes a second", first.RateBytesPerSecond)
		}
		if steady.RateBytesPerSecond < 3500 || steady.RateBytesPerSecond > 5000 || steady.ETASeconds == nil || *steady.ETASeconds < 60 || *steady.ETASeconds > 100 {
			t.Errorf("%d bytes a second, %v s left; want 4096 and 80", steady.RateBytesPerSecond, steady.ETASeconds)
		}
		if resting.RateBytesPerSecond != 0 || resting.ETASeconds != nil {
			t.Errorf("%d bytes a second while nothing moves", resting.RateBytesPerSecond)
		}
	})
}

func TestReporterTellsWhatItObserves(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", mib)
	a, err := s.prepare(s.request("image", "moved", moving()))
	s.must(err)
	m, err := a.begin()
	s.must(err)
	defer func() { s.must(m.Close()) }()
	state, err := m.journal.Load()
	s.must(err)
	var log recorder
	r, err := m.wire(state, newMailbox(log.sink))
	s.must(err)
	defer r.clone.Close()
	r.Waiting("space")
	r.Waiting("space") // it is known already
	r.Waiting("")
	r.Bad(hydrate.BadRegion{Range: region.Range{First: 3, Count: 1}, Err: errors.New("no use")})
	r.Committed(4096)
	r.Discarded(clone.Committed{})
	r.tell(StoppedRun, nil)
	r.mail.finish()
	var told []string
	for _, e := range log.all() {
		told = append(told, string(e.Event)+" "+e.Phase)
	}
	want := []string{"paused " + waitingPhase, "warning hydrating", "committed hydrating", "stopped hydrating"}
	if !slices.Equal(told, want) {
		t.Errorf("%q, want %q", told, want)
	}
	if e := log.last(); e.BytesCommitted != 4096 {
		t.Errorf("%+v", e)
	}
}
