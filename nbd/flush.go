package nbd

import (
	"fmt"
	"sync"
)

// flusher flushes one device for all connections. Requests that come while a flush is
// running are not covered by it: they share the next one.
type flusher struct {
	device Device
	mu     sync.Mutex
	last   *flushRound // the one that began last
	next   *flushRound // has not begun yet
	failed error
}

type flushRound struct {
	done chan struct{}
	err  error
}

// flush returns nil only if a flush that began after the call has succeeded. Once one
// has failed nobody knows what became of the writes before it, and a second one that
// succeeds would be a lie about them: every later flush fails, too.
func (f *flusher) flush() error {
	f.mu.Lock()
	if round := f.next; round != nil {
		f.mu.Unlock()
		<-round.done
		return round.err
	}
	round, last := &flushRound{done: make(chan struct{})}, f.last
	f.next = round
	f.mu.Unlock()

	if last != nil {
		<-last.done
	}
	f.mu.Lock()
	// Who comes from here on may have written after this flush began.
	f.last, f.next = round, nil
	round.err = f.failed
	f.mu.Unlock()
	if round.err == nil {
		round.err = f.device.Flush()
	}
	if round.err != nil {
		f.fail(round.err)
	}
	close(round.done)
	return round.err
}

func (f *flusher) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil {
		f.failed = fmt.Errorf("an earlier flush has failed, and what was written before it may be lost: %w", err)
	}
}
