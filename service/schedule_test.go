package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/loopdev"
)

// shelf is journals in memory, and runs that last as long as a test wants.
type shelf struct {
	mu     sync.Mutex
	all    map[string]*shelved
	begun  []string       // ids, in the order in which their runs began
	most   map[string]int // runs at a time, by disk; "" is all
	active map[string]int
}

type shelved struct {
	known known
	stamp int64
	disks []string
	lasts time.Duration
	fails func(try int) error // what the run ends with; nil is for done
	tries int
	held  *journal.LockedError
}

func newShelf() *shelf {
	return &shelf{all: map[string]*shelved{}, most: map[string]int{}, active: map[string]int{}}
}

// put adds an unfinished migration; each is a second younger than the one before it.
func (s *shelf) put(id string, change func(*shelved)) {
	k := known{id: id}
	k.state.Phase = journal.Running
	k.superblock.Created = time.Unix(int64(len(s.all)), 0)
	k.record.Options = DefaultOptions()
	v := &shelved{known: k, lasts: time.Minute}
	if change != nil {
		change(v)
	}
	s.all[id] = v
}

// at is a migration, or what is seen of one that was taken away a moment ago. The caller
// holds mu.
func (s *shelf) at(id string) *shelved {
	if v := s.all[id]; v != nil {
		return v
	}
	return &shelved{known: known{id: id, err: fs.ErrNotExist}}
}

func (s *shelf) tries(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[id].tries
}

func (s *shelf) ids() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id := range s.all {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

func (s *shelf) stamp(id string) stamp {
	s.mu.Lock()
	defer s.mu.Unlock()
	return stamp{journalBytes: s.at(id).stamp}
}

func (s *shelf) look(id string) known {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at(id).known
}

func (s *shelf) held(id string) (*journal.LockedError, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at(id).held, s.at(id).held != nil
}

func (s *shelf) summary(k known) Summary {
	return Summary{ID: k.id, Phase: string(k.state.Phase), Direction: directionName(k.state.Direction), Created: k.superblock.Created}
}

func (s *shelf) disks(k known) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at(k.id).disks
}

func (s *shelf) amend(id string, changes ...func(*record)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, change := range changes {
		change(&s.all[id].known.record)
	}
	s.all[id].stamp++
	return nil
}

// count changes how many runs there are at a time.
func (s *shelf) count(v *shelved, by int) {
	for _, disk := range append([]string{""}, v.disks...) {
		s.active[disk] += by
		s.most[disk] = max(s.most[disk], s.active[disk])
	}
}

func (s *shelf) resume(ctx context.Context, id string, sink Sink, _ *control) error {
	s.mu.Lock()
	v := s.all[id]
	s.begun = append(s.begun, id)
	v.tries++
	try := v.tries
	s.count(v, 1)
	s.mu.Unlock()
	sink(Event{Event: Started, ID: id, Phase: hydratingPhase})
	var err error
	select {
	case <-ctx.Done():
		err = &Error{Outcome: Stopped, Object: id, Problem: "stopped", Err: context.Cause(ctx)}
	case <-time.After(v.lasts):
		if v.fails != nil {
			err = v.fails(try)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(v, -1)
	v.stamp++
	if err == nil {
		v.known.state.Phase = journal.Done
	}
	return err
}

func (s *shelf) reverse(context.Context, string, Sink, *control) error { return errors.ErrUnsupported }

func (s *shelf) Cancel(context.Context, string) error { return errors.ErrUnsupported }

func (s *shelf) Pause(context.Context, string) error { return errors.ErrUnsupported }

func (s *shelf) Verify(context.Context, string, Sink) (VerifyReport, error) {
	return VerifyReport{}, errors.ErrUnsupported
}

// manage runs a manager on the shelf while during runs.
func (s *shelf) manage(t *testing.T, c ManagerConfig, during func(*Manager)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(s, c)
		if err := m.scan(true); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- m.Run(ctx) }()
		synctest.Wait()
		during(m)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func states(t *testing.T, m *Manager) map[string]Status {
	t.Helper()
	list, err := m.List()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]Status{}
	for _, s := range list {
		all[s.ID] = s
	}
	return all
}

func TestRunsAreInOrderAndNoMoreThanAllowed(t *testing.T) {
	s := newShelf()
	for i := range 6 {
		s.put(fmt.Sprintf("m%d", i), func(v *shelved) { v.disks = []string{fmt.Sprintf("disk%d", i)} })
	}
	s.all["m4"].known.record.Priority = 7
	s.manage(t, ManagerConfig{Running: 2}, func(m *Manager) {
		if st := states(t, m); st["m1"].Position != 1 || st["m5"].Position != 4 || st["m0"].State != StateRunning {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if want := []string{"m4", "m0", "m1", "m2", "m3", "m5"}; !slices.Equal(s.begun, want) {
			// Two begin at the same time, and may do so in either order.
			for i := 0; i < len(want); i += 2 {
				got := slices.Clone(s.begun[i : i+2])
				if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want[i:i+2]))) {
					t.Errorf("begun: %v, want %v", s.begun, want)
				}
			}
		}
	})
	if s.most[""] != 2 {
		t.Errorf("%d ran at a time, want 2", s.most[""])
	}
}

func TestRunsKeepOffEachOthersDisks(t *testing.T) {
	s := newShelf()
	for i := range 4 {
		s.put(fmt.Sprintf("a%d", i), func(v *shelved) { v.disks = []string{"sda", "sdb"} })
	}
	s.put("b", func(v *shelved) { v.disks = []string{"sdb", "sdc"} })
	s.put("c", func(v *shelved) { v.disks = []string{"sdc"} })
	s.put("x", func(v *shelved) {
		v.disks, v.held = []string{"sdc"}, &journal.LockedError{PID: 7}
	})
	s.manage(t, ManagerConfig{}, func(m *Manager) {
		if st := states(t, m); st["x"].State != StateExternal || st["c"].State != StateQueued || st["a0"].State != StateRunning || st["a1"].State != StateQueued {
			t.Errorf("%+v", st)
		}
		s.mu.Lock()
		s.all["x"].held = nil
		s.mu.Unlock()
		time.Sleep(time.Hour)
		if st := states(t, m); st["x"].State != StateStopped || st["x"].RetryAt != nil {
			t.Errorf("what a command has left: %+v", st["x"])
		}
	})
	for disk, most := range s.most {
		if disk != "" && most > 1 {
			t.Errorf("%d ran at a time on %s", most, disk)
		}
	}
	if len(s.begun) != 6 {
		t.Errorf("begun: %v", s.begun)
	}
	if s.begun[1] != "b" && s.begun[1] != "c" && s.begun[0] != "c" {
		t.Errorf("nobody went ahead of those who wait for a disk: %v", s.begun)
	}
}

func TestGuestsDoNotWait(t *testing.T) {
	s := newShelf()
	for i := range 5 {
		s.put(fmt.Sprintf("m%d", i), func(v *shelved) { v.disks = []string{"sda"} })
	}
	s.all["m3"].known.record.Live = "vm3"
	s.all["m4"].known.record.Export = "/run/decant/vm4.sock"
	s.manage(t, ManagerConfig{}, func(m *Manager) {
		if st := states(t, m); st["m3"].State != StateRunning || st["m4"].State != StateRunning {
			t.Errorf("%+v", st)
		}
	})
}

func TestWhatCanPassIsTriedAgainLaterAndLater(t *testing.T) {
	noSpace := &Error{Outcome: Stopped, Problem: "out of space", Hint: "free some", Err: unix.ENOSPC}
	s := newShelf()
	s.put("full", func(v *shelved) {
		v.lasts = 0
		v.fails = func(try int) error {
			if try <= 10 {
				return noSpace
			}
			return nil
		}
	})
	s.put("changed", func(v *shelved) {
		v.lasts = 0
		v.fails = func(int) error {
			return &Error{Outcome: Stopped, Problem: "the source changed", Hint: "look who writes", Err: loopdev.ErrSourceChanged}
		}
	})
	s.put("broken", func(v *shelved) {
		v.lasts = 0
		v.fails = func(int) error { return &Error{Outcome: Failed, Problem: "does not add up"} }
	})
	s.manage(t, ManagerConfig{}, func(m *Manager) {
		st := states(t, m)
		for id, want := range map[string]State{"full": StateStopped, "changed": StateStopped, "broken": StateFailed} {
			if st[id].State != want || st[id].Reason == "" {
				t.Errorf("%s: %+v", id, st[id])
			}
		}
		if st["changed"].RetryAt != nil || st["full"].RetryAt == nil || st["full"].Hint != "free some" || st["full"].Tries != 1 {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Minute)
		if tries := s.tries("full"); tries < 3 || tries > 4 { // after 5, 15 and 35 seconds
			t.Errorf("%d tries in a minute", tries)
		}
		time.Sleep(time.Hour)
		time.Sleep(time.Hour)
		st = states(t, m)
		if st["full"].State != StateDone || s.tries("changed") != 1 || s.tries("broken") != 1 {
			t.Errorf("%+v", st)
		}
		if n := m.Metrics(); n.Retries != 10 {
			t.Errorf("%d retries", n.Retries)
		}
		if _, err := m.Resume(context.Background(), "changed"); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if s.tries("changed") != 2 {
			t.Error("a resume has not tried again")
		}
	})
}

func TestRetryPausesAreBounded(t *testing.T) {
	if first := retryPause(1); first != firstRetryPause {
		t.Errorf("%s", first)
	}
	for _, tries := range []int{8, 9, 1000, 1 << 40} {
		if pause := retryPause(tries); pause != longestRetryPause {
			t.Errorf("after %d tries: %s", tries, pause)
		}
	}
}

func TestAPauseIsKeptAndTheEndIsNone(t *testing.T) {
	s := newShelf()
	s.put("m0", nil)
	s.put("m1", nil)
	s.put("m2", func(v *shelved) { v.known.record.Paused = true })
	s.manage(t, ManagerConfig{}, func(m *Manager) {
		ctx := context.Background()
		if st := states(t, m); st["m2"].State != StatePaused {
			t.Errorf("%+v", st["m2"])
		}
		if st, err := m.Pause(ctx, "m0"); err != nil || st.State != StatePaused {
			t.Errorf("%+v %v", st, err)
		}
	})
	if !s.all["m0"].known.record.Paused || s.all["m1"].known.record.Paused {
		t.Errorf("paused in the journal: %t, and the other: %t", s.all["m0"].known.record.Paused, s.all["m1"].known.record.Paused)
	}
	s.manage(t, ManagerConfig{}, func(m *Manager) {
		time.Sleep(time.Hour)
		if st := states(t, m); st["m0"].State != StatePaused || st["m1"].State != StateDone || st["m2"].State != StatePaused {
			t.Errorf("%+v", st)
		}
	})
}

func TestIDsMayBeShortened(t *testing.T) {
	s := newShelf()
	s.put("abc", nil)
	s.put("abd", nil)
	s.manage(t, ManagerConfig{}, func(m *Manager) {
		for id, want := range map[string]string{"abc": "", "ab": "2 migrations begin so", "": "no such", "x": "no such", "abcd": "no such"} {
			_, err := m.Status(id)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v", id, err)
			}
			if want == "no such" && !errors.Is(err, ErrUnknownMigration) {
				t.Errorf("%q: %v", id, err)
			}
		}
	})
}

// R13: a run that stands still says so within five seconds.
func TestStandstillIsSeen(t *testing.T) {
	s := newShelf()
	s.put("m", func(v *shelved) { v.lasts = time.Hour })
	s.put("slow", func(v *shelved) { v.lasts, v.known.record.BytesPerSecond = time.Hour, 1; v.disks = nil })
	s.manage(t, ManagerConfig{}, func(m *Manager) {
		time.Sleep(5 * time.Second)
		st := states(t, m)
		if !strings.Contains(st["m"].Reason, "nothing has moved for 5s") || st["m"].State != StateRunning {
			t.Errorf("%+v", st["m"])
		}
	})
}

func TestJournalsThatComeAndGo(t *testing.T) {
	s := newShelf()
	s.put("m0", nil)
	s.manage(t, ManagerConfig{}, func(m *Manager) {
		s.mu.Lock()
		delete(s.all, "m0")
		s.mu.Unlock()
		if st := states(t, m); len(st) != 1 {
			t.Error("a run lost its job")
		}
		s.mu.Lock()
		s.put("m0", nil)
		s.put("m1", func(v *shelved) { v.held = &journal.LockedError{PID: 7} })
		s.mu.Unlock()
		time.Sleep(2 * scanPeriod)
		if st := states(t, m); st["m1"].State != StateExternal {
			t.Errorf("%+v", st)
		}
		s.mu.Lock()
		s.all["m1"].held, s.all["m1"].known.state.Phase = nil, journal.Done
		s.all["m1"].stamp++
		s.mu.Unlock()
		time.Sleep(2 * scanPeriod)
		if st := states(t, m); st["m1"].State != StateDone {
			t.Errorf("%+v", st)
		}
		s.mu.Lock()
		delete(s.all, "m1")
		s.mu.Unlock()
		time.Sleep(2 * scanPeriod)
		if st := states(t, m); len(st) != 1 {
			t.Errorf("%+v", st)
		}
	})
}
