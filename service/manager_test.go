package service

import (
	"context"
	"errors"
	"testing"
	"time"
)

// manage runs a manager on the site until the test, or the returned function, ends it.
func (s *site) manage(c ManagerConfig) (manager *Manager, end func()) {
	s.Helper()
	m, err := NewManager(s.Service, c)
	s.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	done := false
	end = func() {
		if done {
			return
		}
		done = true
		cancel()
		if err := <-ended; err != nil {
			s.Error(err)
		}
	}
	s.Cleanup(end)
	return m, end
}

// await waits until a migration has one of the states.
func (s *site) await(m *Manager, id string, states ...State) Status {
	s.Helper()
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		st, err := m.Status(id)
		if !errors.Is(err, ErrUnknownMigration) { // a command has begun it a moment ago
			s.must(err)
		}
		for _, want := range states {
			if st.State == want {
				return st
			}
		}
		if time.Since(begun) > 30*time.Second {
			s.Fatalf("%s is %s (%s), want %v", id, st.State, st.Reason, states)
		}
	}
}

// start asks a manager for a migration between two files of the site.
func (s *site) start(m *Manager, from, to string, o Options) Status {
	s.Helper()
	st, err := m.Start(context.Background(), s.request(from, to, o), StartOptions{})
	s.must(err)
	return st
}

func TestManagerMovesWhatItIsAskedFor(t *testing.T) {
	s := newSite(t)
	content := s.image("image", 4*mib)
	m, _ := s.manage(ManagerConfig{})
	st := s.start(m, "image", "moved", moving())
	if st.State != StateQueued && st.State != StateRunning {
		t.Errorf("a new migration is %s", st.State)
	}
	st = s.await(m, st.ID, StateDone)
	if st.Event == nil || st.Event.Event != DoneEvent || st.Hydrated != st.Regions {
		t.Errorf("%+v", st)
	}
	s.wantContent("moved", content)
	if n := m.Metrics(); n.BytesCopied == 0 || n.BytesCommitted != n.BytesCopied || n.Commits.Count == 0 || n.Flushes.Count == 0 || n.States[StateDone] != 1 {
		t.Errorf("%+v", n)
	}
}

func TestManagerKeepsAPauseOverItsEnd(t *testing.T) {
	s := newSite(t)
	content := s.image("image", 4*mib)
	m, end := s.manage(ManagerConfig{})
	o := slowly()
	o.BytesPerSecond = 256 * kib
	id := s.start(m, "image", "moved", o).ID
	s.await(m, id, StateRunning)
	st, err := m.Pause(context.Background(), id)
	s.must(err)
	if st.State != StatePaused {
		t.Errorf("%+v", st)
	}
	end()
	m, _ = s.manage(ManagerConfig{})
	time.Sleep(2 * scanPeriod)
	if st := s.await(m, id, StatePaused); st.Active {
		t.Errorf("%+v", st)
	}
	none := int64(0)
	if _, err := m.Tune(context.Background(), id, Tuning{BytesPerSecond: &none}); err != nil {
		t.Error(err)
	}
	_, err = m.Resume(context.Background(), id)
	s.must(err)
	s.await(m, id, StateDone)
	s.wantContent("moved", content)
}

// fault 60: two managers on one state directory.
func TestFault60SecondManagerIsRefused(t *testing.T) {
	s := newSite(t)
	s.manage(ManagerConfig{})
	if _, err := NewManager(s.Service, ManagerConfig{}); OutcomeOf(err) != Refused {
		t.Errorf("%v", err)
	}
}

func TestManagerEndsByCommitting(t *testing.T) {
	s := newSite(t)
	content := s.image("image", 4*mib)
	m, end := s.manage(ManagerConfig{})
	o := slowly()
	id := s.start(m, "image", "moved", o).ID
	sub, err := m.Subscribe(id, 0)
	s.must(err)
	for {
		e, err := sub.Next(context.Background())
		s.must(err)
		if e.Event.BytesDiscarded > 0 {
			break
		}
	}
	end()
	for err == nil {
		_, err = sub.Next(context.Background())
	}
	if !errors.Is(err, ErrEventsEnded) {
		t.Errorf("the subscription ended with %v", err)
	}
	sub.Close()
	m, _ = s.manage(ManagerConfig{})
	s.await(m, id, StateDone)
	s.wantContent("moved", content)
}
