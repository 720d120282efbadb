package clone_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"decant/clone"
	"decant/clone/clonetest"
)

// everyFault are the ways in which call n can fail.
func everyFault(n int) []clonetest.Fault {
	var faults []clonetest.Fault
	for _, err := range []error{nil, syscall.EIO, syscall.ENOSPC, syscall.EINTR} {
		for _, forever := range []bool{false, true} {
			for _, effect := range []bool{false, true} {
				faults = append(faults, clonetest.Fault{Call: n, Err: err, Forever: forever, Effect: effect})
			}
		}
	}
	return faults
}

// examples are n fixed setups.
func examples(n int) []clonetest.Setup {
	setups := make([]clonetest.Setup, n)
	for i := range setups {
		setups[i] = clonetest.Setups().Example(i)
	}
	return setups
}

// fault 24, fault 36, fault 46, fault 47, fault 57, fault 58: every call of a run
// fails, once and for good, in every way. No byte is ever wrong, the run ends, and
// a new process finishes it.
func TestEveryCallFails(t *testing.T) {
	count := 6
	switch {
	case nightly():
		count = 100
	case testing.Short():
		count = 3
	}
	var runs, points atomic.Int64
	for i, s := range examples(count) {
		whole := clonetest.New(s)
		finish(t, whole, random(s.Seed, 2))
		for n := 1; n <= whole.Calls() && !t.Failed(); n++ {
			for _, f := range everyFault(n) {
				t.Run(fmt.Sprintf("setup %d, %v", i, f), func(t *testing.T) { failAndFinish(t, s, f, &points) })
				runs.Add(1)
			}
		}
	}
	t.Logf("%d failed runs, %d crashes after them", runs.Load(), points.Load())
}

// failAndFinish runs into f, and then goes on as after a crash, and as after the
// death of the process alone.
func failAndFinish(t *testing.T, s clonetest.Setup, f clonetest.Fault, points *atomic.Int64) {
	m := clonetest.New(s)
	m.Inject(f)
	rng := random(s.Seed, 2)
	c, err := m.Open()
	if err != nil {
		if _, hit := m.FaultHit(); !hit {
			t.Fatalf("open: %v", err)
		}
	} else {
		driveWithFaults(t, m, c, random(s.Seed, 2))
	}
	if _, hit := m.FaultHit(); !hit && f.Call <= m.Calls() {
		t.Fatalf("the fault was not reached in %d calls", m.Calls())
	}
	m.Inject(clonetest.Fault{})
	if c != nil {
		if err := errors.Join(c.Check(), m.ReadBack(c, 0, s.DeviceBytes)); err != nil {
			t.Fatalf("after the fault: %v", err)
		}
	}
	again := m.Restart()
	for _, form := range clonetest.CrashForms {
		finish(t, crash(t, m, rng, form, points), rng)
	}
	finish(t, again, rng)
}

// driveWithFaults runs until the end, or the clone is read-only, or it has failed
// three times.
func driveWithFaults(t *testing.T, m *clonetest.Machine, c *clone.Clone, rng *rand.Rand) {
	for range 3 {
		err := m.Drive(c, rng)
		if err == nil {
			if st := c.Status(); st.Hydrated != st.Regions || st.Discarded != st.Regions {
				t.Fatalf("the run ended with %+v", st)
			}
			return
		}
		if errors.Is(err, clonetest.ErrViolation) {
			t.Fatalf("run: %v", err)
		}
		if _, hit := m.FaultHit(); !hit {
			t.Fatalf("an error without a fault: %v", err)
		}
		if c.Mode() == clone.ReadOnly {
			changesNothing(t, m, c)
			return
		}
	}
}

// changesNothing checks what a clone does once it is read-only (I7, I13).
func changesNothing(t *testing.T, m *clonetest.Machine, c *clone.Clone) {
	t.Helper()
	before := m.Steps()
	ctx := context.Background()
	_, err := c.Hydrate(ctx, c.Geometry.All())
	if c.Status().Hydrated < c.Status().Regions && !errors.Is(err, clone.ErrReadOnly) {
		t.Errorf("Hydrate while read-only: %v", err)
	}
	if err := c.Commit(); !errors.Is(err, clone.ErrReadOnly) {
		t.Errorf("Commit while read-only: %v", err)
	}
	if done := c.TakeCommitted(); done.Regions() > 0 {
		if err := c.DiscardSource(ctx, done); !errors.Is(err, clone.ErrReadOnly) {
			t.Errorf("DiscardSource while read-only: %v", err)
		}
	}
	if m.Steps() != before {
		t.Errorf("a read-only clone changed a medium")
	}
}

// A copy that ends after a commit has failed is not Dirty: nothing can follow.
func TestHydrateDuringFailingCommit(t *testing.T) {
	m := clonetest.New(plain(2))
	c := open(t, m)
	m.Meanwhile = func(op clonetest.Op) {
		if op != clonetest.SourceRead || c.Mode() == clone.ReadOnly {
			return
		}
		m.Inject(clonetest.Fault{Call: m.Calls() + 1})
		if err := c.Commit(); !errors.Is(err, syscall.EIO) {
			t.Errorf("commit: %v", err)
		}
		m.Inject(clonetest.Fault{})
	}
	if _, err := c.Hydrate(context.Background(), c.Geometry.All()); !errors.Is(err, clone.ErrReadOnly) {
		t.Errorf("hydrate: %v", err)
	}
	if st := c.Status(); st.Dirty != 0 || st.Hydrating != 0 {
		t.Errorf("status %+v", st)
	}
}
