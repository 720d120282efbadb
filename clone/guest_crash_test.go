package clone_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"decant/clone/clonetest"
)

// fault 79, fault 80, fault 81: a crash at any step while guests write, trim and
// flush, and crashes during recovery. What was flushed is there, what was not is old
// or new sector by sector.
func TestGuestCrashAtEveryStep(t *testing.T) {
	want := int64(6_000)
	switch {
	case nightly():
		want = 100_000
	case testing.Short():
		want = 2_000
	}
	var points atomic.Int64
	for points.Load() < want && !t.Failed() {
		rapid.Check(t, func(rt *rapid.T) {
			if points.Load() < want {
				crashEverywhere(rt, clonetest.GuestSetups().Draw(rt, "setup"), &points)
			}
		})
	}
	t.Logf("%d crash points", points.Load())
}

// The same with real concurrency: guests beside workers, commits and discards. Some
// runs get to their end, where nothing is lost.
func TestGuestCrashUnderConcurrentWorkers(t *testing.T) {
	runs := 400
	switch {
	case nightly():
		runs = 10_000
	case testing.Short():
		runs = 150
	}
	setups := clonetest.GuestSetups()
	var points atomic.Int64
	for i := range runs {
		s := setups.Example(i)
		rng := random(s.Seed, uint64(i))
		m := clonetest.New(s)
		m.CrashAfter(1 + rng.IntN(200))
		err := m.DriveWorkers(open(t, m), 3, 2, s.Seed)
		if errors.Is(err, clonetest.ErrViolation) || err != nil && !m.PowerIsCut() {
			t.Fatalf("run %d: %v", i, err)
		}
		if err == nil && !m.PowerIsCut() {
			if err := m.Finished(); err != nil {
				t.Fatalf("run %d: %v", i, err)
			}
		}
		after := crash(t, m, rng, clonetest.CrashForms[rng.IntN(3)], &points)
		finish(t, after, rng)
	}
	t.Logf("%d crash points", points.Load())
}

// fault 36, fault 46, fault 47: every call of a run with guests fails, once and for
// good, in every way. Guests are told, nothing that was flushed is lost, and a new
// process finishes the run.
func TestGuestEveryCallFails(t *testing.T) {
	count := 2
	switch {
	case nightly():
		count = 60
	case testing.Short():
		count = 1
	}
	setups := clonetest.GuestSetups().Filter(func(s clonetest.Setup) bool {
		return s.DeviceBytes > 4*s.RegionBytes && len(s.Content) < 10
	})
	var runs, points atomic.Int64
	for i := range count {
		s := setups.Example(i)
		whole := clonetest.New(s)
		finish(t, whole, random(s.Seed, 2))
		for n := 1; n <= whole.Calls() && !t.Failed(); n++ {
			for _, f := range everyFault(n) {
				failAndFinish(t, s, f, &points)
				runs.Add(1)
			}
		}
	}
	t.Logf("%d failed runs, %d crashes after them", runs.Load(), points.Load())
}
