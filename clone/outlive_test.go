package clone_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"decant/clone"
	"decant/clone/clonetest"
)

// restart is the machine after its process was killed, which guests must not notice.
func restart(t testingT, m *clonetest.Machine, points *atomic.Int64) *clonetest.Machine {
	t.Helper()
	after := m.Restart()
	points.Add(1)
	if err := after.Violations(); err != nil {
		t.Fatalf("killed after step %d: %v", m.Steps(), err)
	}
	return after
}

// fault 84: the process is killed after any step, while its guests live on: nothing
// that they were answered is lost, whether it was flushed or not. After that it is
// killed again, or the power fails.
func TestOutlivingGuestsAndKillAtEveryStep(t *testing.T) {
	want := int64(3_000)
	switch {
	case nightly():
		want = 60_000
	case testing.Short():
		want = 1_000
	}
	var points atomic.Int64
	for points.Load() < want && !t.Failed() {
		rapid.Check(t, func(rt *rapid.T) {
			if points.Load() < want {
				killEverywhere(rt, clonetest.OutlivingSetups().Draw(rt, "setup"), &points)
			}
		})
	}
	t.Logf("%d points", points.Load())
}

func killEverywhere(t testingT, s clonetest.Setup, points *atomic.Int64) {
	whole := clonetest.New(s)
	finish(t, whole, random(s.Seed, 2))
	for n := 1; n <= whole.Steps(); n++ {
		m := clonetest.New(s)
		m.CrashAfter(n)
		driveUntilCut(t, m, random(s.Seed, 2))
		rng := random(s.Seed, uint64(n)<<8)
		after := restart(t, m, points)
		for range rng.IntN(3) {
			after.CrashAfter(1 + rng.IntN(whole.Steps()/2+1))
			driveUntilCut(t, after, rng)
			if rng.IntN(2) == 0 {
				after = restart(t, after, points)
			} else {
				after = crash(t, after, rng, clonetest.CrashForms[rng.IntN(3)], points)
			}
		}
		finish(t, after, rng)
	}
}

// The same with real concurrency: guests write to regions whose commit is under way.
func TestOutlivingGuestsUnderConcurrentWorkers(t *testing.T) {
	runs := 600
	switch {
	case nightly():
		runs = 10_000
	case testing.Short():
		runs = 300
	}
	setups := clonetest.OutlivingSetups()
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
		finish(t, restart(t, m, &points), rng)
	}
	t.Logf("%d points", points.Load())
}

// The rules for power cuts and failures hold for these guests as for others.
func TestOutlivingGuestsAndPowerCuts(t *testing.T) {
	var points atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		if points.Load() < 1_500 {
			crashEverywhere(rt, clonetest.OutlivingSetups().Draw(rt, "setup"), &points)
		}
	})
	setups := clonetest.OutlivingSetups().Filter(func(s clonetest.Setup) bool {
		return s.DeviceBytes > 4*s.RegionBytes && len(s.Content) < 10
	})
	count := 4
	switch {
	case nightly():
		count = 40
	case testing.Short():
		count = 1
	}
	for i := range count {
		s := setups.Example(i)
		whole := clonetest.New(s)
		finish(t, whole, random(s.Seed, 2))
		for n := 1; n <= whole.Calls() && !t.Failed(); n++ {
			for _, f := range everyFault(n) {
				failAndFinish(t, s, f, &points)
			}
		}
	}
}

// A second write to a region whose commit is under way is not answered before the
// journal has it: until then a process that dies takes the region back.
func TestOutlivingGuestsWaitForACommitUnderWay(t *testing.T) {
	s := clonetest.Setup{
		Content: []clonetest.Content{clonetest.Data}, DeviceBytes: 4096, RegionBytes: 4096, BufferBytes: 4096,
		BatchRegions: 1, CommitEvery: 1, Guests: true, Outlive: true,
	}
	m := clonetest.New(s)
	second := make(chan error, 1)
	var c *clone.Clone
	var once sync.Once
	early := false
	m.Meanwhile = func(op clonetest.Op) {
		if op != clonetest.JournalCommit {
			return
		}
		once.Do(func() {
			go func() {
				_, err := c.WriteAt(make([]byte, 512), 512)
				second <- err
			}()
			select {
			case err := <-second:
				early = true
				second <- err
			case <-time.After(100 * time.Millisecond):
			}
		})
	}
	c = open(t, m)
	if _, err := c.WriteAt(make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if early {
		t.Error("answered while the journal did not have the region")
	}
}
