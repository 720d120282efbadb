package clone_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"decant/clone"
	"decant/clone/clonetest"
)

// testingT is what *testing.T and *rapid.T have in common.
type testingT interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// nightly says whether there is time for long runs.
func nightly() bool { return os.Getenv("DECANT_NIGHTLY") == "1" }

// open opens a clone on m, and checks it when the test ends if m still has power.
func open(t testingT, m *clonetest.Machine) *clone.Clone {
	t.Helper()
	c, err := m.Open()
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Check(); err != nil && !m.PowerIsCut() {
			t.Errorf("check: %v", err)
		}
	})
	return c
}

func random(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// finish runs the migration to its end, where nothing may be lost.
func finish(t testingT, m *clonetest.Machine, rng *rand.Rand) {
	t.Helper()
	c := open(t, m)
	if err := m.Drive(c, rng); err != nil {
		t.Fatalf("run to the end: %v", err)
	}
	if err := errors.Join(c.Check(), m.Finished(), m.Crash(rng, clonetest.LoseAll).Owners()); err != nil {
		t.Fatalf("at the end: %v", err)
	}
}

// driveUntilCut runs until the power is cut or the migration has ended.
func driveUntilCut(t testingT, m *clonetest.Machine, rng *rand.Rand) {
	t.Helper()
	err := m.Drive(open(t, m), rng)
	if errors.Is(err, clonetest.ErrViolation) || err != nil && !m.PowerIsCut() {
		t.Fatalf("run: %v", err)
	}
}

// crash brings the power back and checks what is there.
func crash(t testingT, m *clonetest.Machine, rng *rand.Rand, form clonetest.CrashForm, points *atomic.Int64) *clonetest.Machine {
	t.Helper()
	after := m.Crash(rng, form)
	points.Add(1)
	if err := after.Owners(); err != nil {
		t.Fatalf("crash after step %d (%v): %v", m.Steps(), form, err)
	}
	return after
}

// crashEverywhere cuts the power after each step of one run, takes each outcome,
// and recovers, while the power fails again up to twice.
func crashEverywhere(t testingT, s clonetest.Setup, points *atomic.Int64) {
	whole := clonetest.New(s)
	finish(t, whole, random(s.Seed, 2))
	for n := 1; n <= whole.Steps(); n++ {
		m := clonetest.New(s)
		m.CrashAfter(n)
		driveUntilCut(t, m, random(s.Seed, 2))
		if !m.PowerIsCut() {
			t.Fatalf("the run ended after %d steps and not %d", m.Steps(), whole.Steps())
		}
		for _, form := range clonetest.CrashForms {
			rng := random(s.Seed, uint64(n)<<8+uint64(form))
			after := crash(t, m, rng, form, points)
			for range rng.IntN(3) {
				after.CrashAfter(1 + rng.IntN(whole.Steps()/2+1))
				driveUntilCut(t, after, rng)
				after = crash(t, after, rng, clonetest.CrashForms[rng.IntN(3)], points)
			}
			finish(t, after, rng)
		}
	}
}

// fault 63, fault 67: a crash at any step, and crashes during recovery.
func TestCrashAtEveryStep(t *testing.T) {
	want := int64(8_000)
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
				crashEverywhere(rt, clonetest.Setups().Draw(rt, "setup"), &points)
			}
		})
	}
	t.Logf("%d crash points", points.Load())
	if points.Load() < want && !t.Failed() {
		t.Errorf("fewer than %d crash points", want)
	}
}

// The same with real concurrency; the step at which the power is cut is random.
func TestCrashUnderConcurrentWorkers(t *testing.T) {
	runs := 400
	switch {
	case nightly():
		runs = 10_000
	case testing.Short():
		runs = 200
	}
	setups := clonetest.Setups()
	var points atomic.Int64
	for i := range runs {
		s := setups.Example(i)
		rng := random(s.Seed, uint64(i))
		m := clonetest.New(s)
		m.CrashAfter(1 + rng.IntN(100))
		err := m.DriveWorkers(open(t, m), 3, 2, s.Seed)
		if errors.Is(err, clonetest.ErrViolation) || err != nil && !m.PowerIsCut() {
			t.Fatalf("run %d: %v", i, err)
		}
		after := crash(t, m, rng, clonetest.CrashForms[rng.IntN(3)], &points)
		finish(t, after, rng)
	}
	t.Logf("%d crash points", points.Load())
}
