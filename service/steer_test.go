package service

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// crawling are options of a move that a test has to end.
func crawling() Options {
	o := slowly()
	o.BytesPerSecond = 128 * kib
	return o
}

// discarding waits until a migration of the manager has discarded something.
func (s *site) discarding(m *Manager, id string) Status {
	s.Helper()
	for begun := time.Now(); time.Since(begun) < 30*time.Second; time.Sleep(5 * time.Millisecond) {
		st, err := m.Status(id)
		s.must(err)
		if st.Discarded > 0 {
			return st
		}
	}
	s.Fatal("nothing was discarded")
	return Status{}
}

func TestTuningARun(t *testing.T) {
	s := newSite(t)
	content := s.image("image", 4*mib)
	m, end := s.manage(ManagerConfig{})
	ctx := context.Background()
	id := s.start(m, "image", "moved", crawling()).ID
	s.discarding(m, id)
	rate, threshold, priority := int64(64*kib), uint64(9), 3
	st, err := m.Tune(ctx, id, Tuning{BytesPerSecond: &rate, ThresholdRegions: &threshold, Priority: &priority})
	s.must(err)
	if st.Options.BytesPerSecond != rate || st.Options.ThresholdRegions != threshold || st.Priority != priority {
		t.Errorf("%+v", st)
	}
	wrong := int64(-1)
	if _, err := m.Tune(ctx, id, Tuning{BytesPerSecond: &wrong}); OutcomeOf(err) != Usage {
		t.Errorf("a negative rate: %v", err)
	}
	// It is in the journal, and so in force after a restart.
	if k := s.look(id); k.record.BytesPerSecond != rate || k.record.ThresholdRegions != threshold || k.record.Priority != priority {
		t.Errorf("%+v", k.record)
	}
	end()
	m, _ = s.manage(ManagerConfig{})
	st = s.await(m, id, StateRunning)
	if st.Options.BytesPerSecond != rate || st.Priority != priority {
		t.Errorf("%+v", st)
	}
	none := int64(0)
	begun := time.Now()
	_, err = m.Tune(ctx, id, Tuning{BytesPerSecond: &none})
	s.must(err)
	s.await(m, id, StateDone)
	if took := time.Since(begun); took > 10*time.Second { // it was good for a minute
		t.Errorf("it took %s without a limit", took)
	}
	s.wantContent("moved", content)
}

func TestCancelBeforeAndAfterADiscard(t *testing.T) {
	s := newSite(t)
	content := s.image("image", 4*mib)
	other := s.image("other", 4*mib)
	m, _ := s.manage(ManagerConfig{RunningPerDisk: 2})
	ctx := context.Background()
	o := crawling()
	o.DiscardSource = false
	copied := s.start(m, "other", "copied", o).ID
	moved := s.start(m, "image", "moved", crawling()).ID
	s.await(m, copied, StateRunning)
	if st, err := m.Cancel(ctx, copied, CancelOptions{}); err != nil || st.State != StateCancelled {
		t.Errorf("%+v %v", st, err)
	}
	if _, err := os.Stat(s.path("copied")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the destination of a cancelled migration: %v", err)
	}
	s.wantContent("other", other)

	// fault 95: one that has discarded goes on, unless it is to be brought back.
	s.discarding(m, moved)
	if _, err := m.Cancel(ctx, moved, CancelOptions{}); OutcomeOf(err) != Refused || !strings.Contains(err.Error(), "emptied already") {
		t.Errorf("%v", err)
	}
	s.await(m, moved, StateRunning)
	st, err := m.Cancel(ctx, moved, CancelOptions{Reverse: true})
	s.must(err)
	if st.State != StateQueued && st.State != StateRunning {
		t.Errorf("%+v", st)
	}
	none := int64(0)
	_, err = m.Tune(ctx, moved, Tuning{BytesPerSecond: &none})
	s.must(err)
	s.await(m, moved, StateReversed)
	s.wantContent("image", content)
	for _, do := range []func(context.Context, string) (Status, error){m.Pause, m.Resume} {
		if _, err := do(ctx, moved); OutcomeOf(err) != Refused {
			t.Errorf("after the end: %v", err)
		}
	}
	if st, err := m.Reverse(ctx, moved); err != nil || st.State != StateReversed {
		t.Errorf("%+v %v", st, err)
	}
}

// fault 96: there is no starting over once a source was emptied in part.
func TestFault96NoStartingOver(t *testing.T) {
	s := newSite(t)
	s.image("image", 4*mib)
	m, _ := s.manage(ManagerConfig{})
	id := s.start(m, "image", "moved", crawling()).ID
	s.discarding(m, id)
	_, err := m.Pause(context.Background(), id)
	s.must(err)
	if _, err := m.Start(context.Background(), s.request("image", "elsewhere", moving()), StartOptions{}); OutcomeOf(err) != Refused {
		t.Errorf("%v", err)
	}
	s.must(os.Rename(s.journalPath(id), s.path("away")))
	if _, err := m.Start(context.Background(), s.request("image", "elsewhere", moving()), StartOptions{}); OutcomeOf(err) != Refused {
		t.Errorf("without its journal: %v", err)
	}
}

func TestReverseOfADoneMigrationSurvivesARestart(t *testing.T) {
	s := newSite(t)
	content := s.image("image", 4*mib)
	m, end := s.manage(ManagerConfig{})
	ctx := context.Background()
	id := s.start(m, "image", "moved", moving()).ID
	s.await(m, id, StateDone)
	_, err := m.Verify(ctx, id)
	s.must(err)
	st := s.await(m, id, StateDone)
	for st.Verified == nil {
		st = s.await(m, id, StateDone)
	}
	if st.Verified.RegionsChecked == 0 || st.Verified.MismatchRegions != 0 {
		t.Errorf("%+v", st.Verified)
	}
	if n := m.Metrics(); n.BytesVerified == 0 || n.BytesCopied > 4*mib {
		t.Errorf("%+v", n)
	}
	rate := int64(128 * kib)
	_, err = m.Tune(ctx, id, Tuning{BytesPerSecond: &rate})
	s.must(err)
	_, err = m.Reverse(ctx, id)
	s.must(err)
	end()
	if k := s.look(id); !k.record.Reverse {
		t.Error("the journal does not say that it is to be brought back")
	}
	m, _ = s.manage(ManagerConfig{})
	s.await(m, id, StateRunning)
	rate = 0
	_, err = m.Tune(ctx, id, Tuning{BytesPerSecond: &rate})
	s.must(err)
	s.await(m, id, StateReversed)
	s.wantContent("image", content)
}

// One that cannot be brought back now neither goes on the other way nor loses its state.
func TestReverseThatIsRefused(t *testing.T) {
	s := newSite(t)
	s.image("image", 4*mib)
	m, _ := s.manage(ManagerConfig{})
	ctx := context.Background()
	id := s.start(m, "image", "moved", crawling()).ID
	s.discarding(m, id)
	_, err := m.Pause(ctx, id)
	s.must(err)
	user, err := os.OpenFile(s.path("moved"), os.O_RDWR, 0)
	s.must(err)
	_, err = m.Reverse(ctx, id)
	s.must(err)
	st := s.await(m, id, StatePaused)
	if !strings.Contains(st.Reason, "could not be brought back") || st.Hint == "" {
		t.Errorf("%+v", st)
	}
	s.must(user.Close())
	_, err = m.Reverse(ctx, id)
	s.must(err)
	none := int64(0)
	_, err = m.Tune(ctx, id, Tuning{BytesPerSecond: &none})
	s.must(err)
	s.await(m, id, StateReversed)
}

func TestTheSameRequestAgain(t *testing.T) {
	s := newSite(t)
	s.image("image", 4*mib)
	s.image("second", 1*mib)
	m, end := s.manage(ManagerConfig{})
	ctx := context.Background()
	request := s.request("image", "moved", crawling())
	st, err := m.Start(ctx, request, StartOptions{Priority: 5, IdempotencyKey: "k1"})
	s.must(err)
	if st.Priority != 5 {
		t.Errorf("%+v", st)
	}
	for name, o := range map[string]StartOptions{"same ends": {}, "same key": {IdempotencyKey: "k1"}} {
		if again, err := m.Start(ctx, request, o); err != nil || again.ID != st.ID {
			t.Errorf("%s: %+v %v", name, again, err)
		}
	}
	// A key counts for more than the ends, also over a restart.
	end()
	m, _ = s.manage(ManagerConfig{})
	if again, err := m.Start(ctx, s.request("second", "there", moving()), StartOptions{IdempotencyKey: "k1"}); err != nil || again.ID != st.ID {
		t.Errorf("%+v %v", again, err)
	}
	_, err = m.Pause(ctx, st.ID)
	s.must(err)
	if again, err := m.Start(ctx, request, StartOptions{}); err != nil || again.State != StatePaused {
		t.Errorf("a request undid a pause: %+v %v", again, err)
	}
	// fault 6: another migration of the same source.
	if _, err := m.Start(ctx, s.request("image", "elsewhere", moving()), StartOptions{}); OutcomeOf(err) != Refused {
		t.Errorf("%v", err)
	}
}

func TestCommandsBesideTheManager(t *testing.T) {
	s := newSite(t)
	content := s.image("image", 4*mib)
	mine := s.image("mine", 4*mib)
	m, _ := s.manage(ManagerConfig{RunningPerDisk: 2})
	ctx := context.Background()
	// A command works on one, and the manager leaves it alone.
	o := crawling()
	cmd := s.process(s.request("image", "moved", o), false)
	external := s.only()
	st := s.await(m, external, StateExternal)
	if st.PID != cmd.Process.Pid || !st.Active || st.Service {
		t.Errorf("%+v", st)
	}
	for name, do := range map[string]func() (Status, error){
		"resume":  func() (Status, error) { return m.Resume(ctx, external) },
		"reverse": func() (Status, error) { return m.Reverse(ctx, external) },
		"cancel":  func() (Status, error) { return m.Cancel(ctx, external, CancelOptions{}) },
		"tune":    func() (Status, error) { return m.Tune(ctx, external, Tuning{}) },
	} {
		if _, err := do(); OutcomeOf(err) != Refused {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The manager works on another, and a command that would stop it stops nothing.
	id := s.start(m, "mine", "kept", crawling()).ID
	s.await(m, id, StateRunning)
	if err := s.Service.Pause(ctx, id); OutcomeOf(err) != Refused { // it would be this process
		t.Errorf("%v", err)
	}
	if list, err := s.Service.List(); err != nil || len(list) != 2 {
		t.Errorf("%+v %v", list, err)
	}
	// Paused through the manager, the command ends, and stays paused.
	st, err := m.Pause(ctx, external)
	s.must(err)
	if err := cmd.Wait(); st.State != StatePaused || cmd.ProcessState.ExitCode() != int(Stopped) {
		t.Errorf("%+v %v", st, err)
	}
	_, err = m.Resume(ctx, external)
	s.must(err)
	none := int64(0)
	for _, id := range []string{external, id} {
		_, err = m.Tune(ctx, id, Tuning{BytesPerSecond: &none})
		s.must(err)
		s.await(m, id, StateDone)
	}
	s.wantContent("moved", content)
	s.wantContent("kept", mine)
}

// What a command has paused, or cancelled, is not gone on with by a manager.
func TestWhatCommandsDecideCountsForTheManager(t *testing.T) {
	s := newSite(t)
	s.image("image", 4*mib)
	cmd := s.process(s.request("image", "moved", crawling()), false)
	id := s.only()
	s.must(s.Service.Pause(context.Background(), id))
	_ = cmd.Wait() // it was told to end
	m, _ := s.manage(ManagerConfig{})
	time.Sleep(50 * time.Millisecond)
	if st := s.await(m, id, StatePaused); st.Active {
		t.Errorf("%+v", st)
	}
	s.migrate("image", "moved", moving()) // the same command goes on
	s.await(m, id, StateDone)
	s.must(s.Service.Reverse(context.Background(), id, nil))
	s.await(m, id, StateReversed)
}

// fault 92: no number of requests makes the manager take more than it is to take.
func TestFault92ManyRequests(t *testing.T) {
	s := newSite(t)
	const waiting, requests, askers = 20, 10_000, 50
	m, _ := s.manage(ManagerConfig{Waiting: waiting, RunningPerDisk: 1})
	for i := range waiting + 5 {
		s.must(os.WriteFile(s.path("image"+strings.Repeat("x", i)), make([]byte, 2*regionBytes), 0o600))
	}
	o := crawling()
	o.BytesPerSecond = 1
	var mu sync.Mutex
	taken, refused := map[string]bool{}, 0
	var asking sync.WaitGroup
	for a := range askers {
		asking.Go(func() {
			for i := a; i < requests; i += askers {
				name := strings.Repeat("x", i%(waiting+5))
				st, err := m.Start(context.Background(), s.request("image"+name, "moved"+name, o), StartOptions{})
				mu.Lock()
				switch {
				case err == nil:
					taken[st.ID] = true
				case errors.Is(err, ErrTooMany) && OutcomeOf(err) == Refused:
					refused++
				default:
					t.Errorf("%v", err)
				}
				mu.Unlock()
			}
		})
	}
	asking.Wait()
	list, err := m.List()
	s.must(err)
	if len(taken) != waiting || len(list) != waiting || refused == 0 {
		t.Errorf("%d taken, %d in the list, %d refused", len(taken), len(list), refused)
	}
	if n := m.Metrics(); n.RefusedForTooManyNow != uint64(refused) || n.States[StateRunning] > 1 {
		t.Errorf("%+v", n)
	}
}

func TestFault4And90PathsOfRequests(t *testing.T) {
	s := newSite(t)
	s.image("outside", mib)
	s.must(os.Mkdir(s.path("in"), 0o755))
	s.must(os.Mkdir(s.path("in/sub"), 0o755))
	s.image("in/image", mib)
	s.image("in/sub/image", mib)
	s.must(os.Symlink(s.path("outside"), s.path("in/link")))
	s.must(os.Symlink(s.dir, s.path("in/dirlink")))
	s.must(os.Symlink(s.path("nowhere"), s.path("in/dangling")))
	s.must(os.Symlink(s.path("in"), s.path("alias")))
	m, _ := s.manage(ManagerConfig{Roots: []string{s.path("in")}})
	in := s.path("in") + "/"
	for _, test := range []struct{ from, to, problem string }{
		{s.path("outside"), in + "moved", "outside of the directories"},
		{in + "image", s.path("moved"), "outside of the directories"},
		{in + "../outside", in + "moved", "shortest form"},
		{in + "image", in + "../moved", "shortest form"},
		{in + "link", in + "moved", "symbolic links"},
		{in + "dirlink/outside", in + "moved", "symbolic links"},
		{in + "image", in + "dirlink/moved", "symbolic links"},
		{in + "image", in + "dangling", "symbolic links"},
		{s.path("alias") + "/image", in + "moved", "outside of the directories"},
		{"/proc/self/root" + in + "image", in + "moved", "outside of the directories"},
		{"image", in + "moved", "neither an absolute path"},
		{"./in/image", in + "moved", "neither an absolute path"},
		{"in/image", in + "moved", "cannot be used"},
		{in + "image\x00", in + "moved", "control characters"},
		{in + "image\n", in + "moved", "control characters"},
		{in + strings.Repeat("x", 5000), in + "moved", "longer than"},
		{"", in + "moved", "cannot be empty"},
		{"/dev/null", in + "moved", "outside of the directories"},
	} {
		request := Request{Source: test.from, Destination: test.to, Options: moving()}
		if _, err := m.Start(context.Background(), request, StartOptions{}); err == nil || !strings.Contains(err.Error(), test.problem) {
			t.Errorf("%.100q to %.100q: %v, want %q", test.from, test.to, err, test.problem)
		}
		if _, err := m.Plan(context.Background(), request); err == nil {
			t.Errorf("%.100q to %.100q would be taken", test.from, test.to)
		}
	}
	if list, err := m.List(); err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
	for _, name := range []string{"moved", "in/moved", "nowhere"} {
		if _, err := os.Lstat(s.path(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was made", name)
		}
	}
	id := s.start(m, in+"sub/image", in+"moved", moving()).ID
	s.await(m, id, StateDone)
}

// fault 4: what a path leads to is exchanged over and over; the bytes are those of one
// file under the roots, or the request is refused.
func TestFault4PathsThatChange(t *testing.T) {
	s := newSite(t)
	s.must(os.Mkdir(s.path("in"), 0o755))
	s.must(os.MkdirAll(s.path("in/real"), 0o755))
	s.must(os.Mkdir(s.path("secret"), 0o755))
	inside := s.image("in/real/image", 256*kib)
	s.must(os.WriteFile(s.path("secret/image"), []byte(strings.Repeat("secret! ", 32*kib)), 0o600))
	s.must(os.Symlink(s.path("secret"), s.path("in/swap")))
	m, _ := s.manage(ManagerConfig{Roots: []string{s.path("in")}})
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				// A directory and a link to another one take turns under one name.
				err := unix.Renameat2(unix.AT_FDCWD, s.path("in/real"), unix.AT_FDCWD, s.path("in/swap"), unix.RENAME_EXCHANGE)
				if err != nil {
					t.Error(err)
				}
				time.Sleep(time.Duration(rand.IntN(10_000)) * time.Microsecond)
			}
		}
	})
	ctx := context.Background()
	done, refused := 0, 0
	for begun := time.Now(); (done < 3 || refused < 3) && time.Since(begun) < time.Minute; {
		to := filepath.Join(s.path("in"), fmt.Sprint("copy", done))
		st, err := m.Start(ctx, Request{Source: s.path("in/real/image"), Destination: to, Options: copying()}, StartOptions{})
		if err != nil {
			refused++
			if OutcomeOf(err) != Refused || !strings.Contains(err.Error(), "symbolic links") {
				t.Errorf("%v", err)
			}
			continue
		}
		for st.State != StateDone && time.Since(begun) < time.Minute {
			if st.State == StateStopped {
				if !strings.Contains(st.Reason, "symbolic links") {
					t.Errorf("%s: %s", st.State, st.Reason)
				}
				_, err = m.Resume(ctx, st.ID)
				s.must(err)
			}
			time.Sleep(time.Millisecond)
			st, err = m.Status(st.ID)
			s.must(err)
		}
		done++
		if got, err := os.ReadFile(to); err != nil || string(got) != string(inside) {
			t.Errorf("copied something else: %.20q %v", got, err)
		}
	}
	if done < 3 || refused < 3 {
		t.Errorf("%d requests were done and %d refused", done, refused)
	}
	close(stop)
	swapping.Wait()
}

// fault 16: a root that anybody may write to is none.
func TestFault16Roots(t *testing.T) {
	s := newSite(t)
	s.must(os.Mkdir(s.path("open"), 0o777))
	s.must(os.Chmod(s.path("open"), 0o777))
	for root, want := range map[string]string{
		s.path("open"): "any user may replace it", "relative": "absolute", s.dir + "/x/../open": "absolute", s.path("missing"): "cannot be used",
	} {
		if _, err := NewManager(s.Service, ManagerConfig{Roots: []string{root}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", root, err)
		}
	}
}
