package service

import (
	"sync"
	"time"
)

// mailboxEvents is how many events may wait for a slow reader; then the oldest go.
const mailboxEvents = 4096

// mailbox hands events to a sink in order, in a goroutine of its own: a reader who
// does not read must not hold up a commit.
type mailbox struct {
	sink  Sink
	mu    sync.Mutex
	queue []Event
	wake  chan struct{}
	done  chan struct{}
}

func newMailbox(sink Sink) *mailbox {
	m := &mailbox{sink: sink, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go m.deliver()
	return m
}

// post never waits. A progress event replaces one that nobody has taken yet.
func (m *mailbox) post(e Event) {
	m.mu.Lock()
	last := len(m.queue) - 1
	switch {
	case last >= 0 && e.Event == Progress && m.queue[last].Event == Progress:
		m.queue[last] = e
	case last+1 >= mailboxEvents:
		m.queue = append(m.queue[1:], e)
	default:
		m.queue = append(m.queue, e)
	}
	m.mu.Unlock()
	m.nudge()
}

func (m *mailbox) nudge() {
	select {
	case m.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// deliver ends after an event that ends a run.
func (m *mailbox) deliver() {
	defer close(m.done)
	for {
		m.mu.Lock()
		queue := m.queue
		m.queue = nil
		m.mu.Unlock()
		for _, e := range queue {
			m.sink(e)
			switch e.Event {
			case DoneEvent, StoppedRun, FailedEvent:
				return
			}
		}
		if len(queue) == 0 {
			<-m.wake
		}
	}
}

// patience is how long the end of a run waits for a reader to take the last events.
const patience = 10 * time.Second

// finish waits until the last event is delivered; one that ends the run must have
// been posted. A sink that never returns keeps its goroutine and nothing else.
func (m *mailbox) finish() {
	select {
	case <-m.done:
	case <-time.After(patience):
	}
}
