package service

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestMailboxKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		m := newMailbox(r.sink)
		for tx := range uint64(100) {
			m.post(Event{Event: CommittedTx, Transaction: tx})
			if tx%10 == 0 {
				synctest.Wait()
			}
		}
		m.post(Event{Event: DoneEvent})
		m.finish()
		all := r.all()
		if len(all) != 101 || all[100].Event != DoneEvent {
			t.Fatalf("%d events", len(all))
		}
		for tx := range uint64(100) {
			if all[tx].Transaction != tx {
				t.Errorf("event %d is of transaction %d", tx, all[tx].Transaction)
			}
		}
	})
}

// Progress that nobody has read is replaced by newer progress, but never moves past
// another event.
func TestMailboxCoalescesProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		begun, goOn := make(chan struct{}), make(chan struct{})
		m := newMailbox(func(e Event) {
			if e.Event == Started {
				close(begun)
				<-goOn
			}
			r.sink(e)
		})
		m.post(Event{Event: Started})
		<-begun
		for i := range int64(1000) {
			m.post(Event{Event: Progress, BytesCopied: i})
			if i == 499 {
				m.post(Event{Event: CommittedTx})
			}
		}
		m.post(Event{Event: StoppedRun})
		close(goOn)
		m.finish()
		want := []Event{{Event: Started}, {Event: Progress, BytesCopied: 499}, {Event: CommittedTx}, {Event: Progress, BytesCopied: 999}, {Event: StoppedRun}}
		all := r.all()
		if len(all) != len(want) {
			t.Fatalf("%d events, want %d", len(all), len(want))
		}
		for i, e := range all {
			if e.Event != want[i].Event || e.BytesCopied != want[i].BytesCopied {
				t.Errorf("event %d is %s at %d, want %s at %d", i, e.Event, e.BytesCopied, want[i].Event, want[i].BytesCopied)
			}
		}
	})
}

// A reader who does not read costs neither the run its speed nor the process its
// memory, and the end a bounded time. Fault 97: nor does what he reads for hold
// anything up.
func TestFault97DeafReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		forever := make(chan struct{})
		var r recorder
		m := newMailbox(func(e Event) {
			<-forever
			r.sink(e)
		})
		begun := time.Now()
		const posted = 3 * mailboxEvents
		for tx := range uint64(posted) {
			m.post(Event{Event: CommittedTx, Transaction: tx})
		}
		m.post(Event{Event: DoneEvent})
		if took := time.Since(begun); took != 0 {
			t.Errorf("to post took %s", took)
		}
		m.finish()
		if took := time.Since(begun); took != patience {
			t.Errorf("the end took %s, want %s", took, patience)
		}
		close(forever)
		<-m.done
		all := r.all()
		if len(all) > 2*mailboxEvents { // those in the box, and those that were taken out at once
			t.Errorf("%d events were kept", len(all))
		}
		if last := all[len(all)-1]; last.Event != DoneEvent || all[len(all)-2].Transaction != posted-1 {
			t.Errorf("the newest are lost: %+v", last)
		}
	})
}

func TestMailboxWaitsForASlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		m := newMailbox(func(e Event) {
			time.Sleep(patience / 2)
			r.sink(e)
		})
		m.post(Event{Event: FailedEvent})
		m.finish()
		if r.last().Event != FailedEvent {
			t.Error("the end did not wait for the last event to be read")
		}
	})
}
