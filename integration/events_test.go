package integration

import (
	"testing"
	"time"
)

// requiredFields are in every event, whatever their values.
var requiredFields = []string{
	"event", "id", "time", "phase",
	"bytes_total", "bytes_data", "bytes_copied", "bytes_committed", "bytes_discarded", "bytes_verified",
	"rate_bytes_per_second", "eta_seconds", "transaction", "peak_extra_bytes",
}

var fieldsOf = map[string][]string{
	"done":    {"elapsed_seconds", "source_freed_bytes"},
	"stopped": {"reason", "hint"},
	"failed":  {"reason", "hint"},
}

// wantEvents fails the test unless the events of a run are complete, in order, and
// add up.
func wantEvents(t testing.TB, o outcome, end string) {
	t.Helper()
	if len(o.events) < 2 {
		t.Fatalf("%d events: %v", len(o.events), o)
	}
	if first := o.events[0]; first.Event != "started" || o.last().Event != end {
		t.Errorf("events from %q to %q, want started to %s", first.Event, o.last().Event, end)
	}
	seen := map[string]int{}
	for i, e := range o.events {
		seen[e.Event]++
		wantFields(t, e)
		if i > 0 {
			wantOrder(t, o.events[i-1], e)
		}
	}
	for _, once := range []string{"started", "hydrated", "done", "stopped", "failed"} {
		if seen[once] > 1 {
			t.Errorf("%d times %q", seen[once], once)
		}
	}
	if e := o.last(); end == "done" {
		if e.BytesCopied != e.BytesData || e.BytesCommitted != e.BytesData {
			t.Errorf("at the end %d bytes are copied and %d committed of %d", e.BytesCopied, e.BytesCommitted, e.BytesData)
		}
		if e.ETASeconds == nil || *e.ETASeconds != 0 {
			t.Errorf("at the end the rest takes %v seconds", e.ETASeconds)
		}
		if *e.ElapsedSeconds <= 0 || *e.ElapsedSeconds > o.elapsed.Seconds() {
			t.Errorf("it took %v seconds of %v", *e.ElapsedSeconds, o.elapsed)
		}
	}
}

func wantFields(t testing.TB, e event) {
	t.Helper()
	for _, name := range append(requiredFields, fieldsOf[e.Event]...) {
		if _, found := e.fields[name]; !found {
			t.Errorf("a %s event has no %q: %+v", e.Event, name, e)
		}
	}
	if _, err := time.Parse(time.RFC3339Nano, e.Time); err != nil {
		t.Errorf("time %q: %v", e.Time, err)
	}
	if e.ID == "" || e.Phase == "" {
		t.Errorf("a %s event has id %q and phase %q", e.Event, e.ID, e.Phase)
	}
	if e.ETASeconds != nil && *e.ETASeconds < 0 || e.RateBytesPerSecond < 0 {
		t.Errorf("a rest of %v seconds at %d bytes per second", *e.ETASeconds, e.RateBytesPerSecond)
	}
	if e.BytesCommitted > e.BytesCopied || e.BytesDiscarded > e.BytesCommitted || e.BytesCopied > e.BytesTotal {
		t.Errorf("a %s event has %d bytes discarded of %d committed of %d copied of %d", e.Event, e.BytesDiscarded, e.BytesCommitted, e.BytesCopied, e.BytesTotal)
	}
}

// wantOrder compares an event with the one before it in the same run.
func wantOrder(t testing.TB, before, e event) {
	t.Helper()
	if e.ID != before.ID || e.BytesTotal != before.BytesTotal || e.BytesData != before.BytesData {
		t.Errorf("after %+v comes %v", before, e)
	}
	at, _ := time.Parse(time.RFC3339Nano, before.Time) // wantFields has looked at both
	if then, _ := time.Parse(time.RFC3339Nano, e.Time); then.Before(at) {
		t.Errorf("after %s comes %s", before.Time, e.Time)
	}
	if e.BytesCopied < before.BytesCopied || e.BytesCommitted < before.BytesCommitted || e.BytesDiscarded < before.BytesDiscarded ||
		e.Transaction < before.Transaction || e.PeakExtraBytes < before.PeakExtraBytes {
		t.Errorf("a counter goes back: after %+v comes %v", before, e)
	}
}
