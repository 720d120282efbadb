package logwrites_test

import (
	"slices"
	"strings"
	"testing"

	"decant/integration/logwrites"
)

// The checks find what they are made for: logs in which a program with a known mistake
// would have left its writes.
func TestPowerCutsOnAllMediaFindWrongOrders(t *testing.T) {
	r := recordings(t)[0]
	for _, planted := range []struct {
		name   string
		change func(*logwrites.Recording) []logwrites.Entry
		keep   float64 // of what was not flushed
		found  string  // in one of the messages
	}{
		{"journal committed before the destination was flushed", func(log *logwrites.Recording) []logwrites.Entry {
			return holdBack(log, journalMedium, logwrites.Flush, 6, metadataMedium, dataMedium)
		}, 1, "is owned by the destination, which has not got it"},
		{"source discarded before the journal was synced", func(log *logwrites.Recording) []logwrites.Entry {
			return holdBack(log, sourceMedium, logwrites.Flush, 8, journalMedium)
		}, 1, "is owned by the source, which has not got it"},
		{"journal never synced", func(log *logwrites.Recording) []logwrites.Entry {
			return withoutFlushes(log, journalMedium)
		}, 0, "is owned by the source, which has not got it"},
		{"pool's data never flushed", func(log *logwrites.Recording) []logwrites.Entry {
			return withoutFlushes(log, dataMedium)
		}, 0, "is owned by the destination, which has not got it"},
		{"pool's metadata never flushed", func(log *logwrites.Recording) []logwrites.Entry {
			return withoutFlushes(log, metadataMedium)
		}, 0, "is owned by the destination, which has not got it"},
		{"transactions announced before they are durable", announceEarly, 1, "was announced, the journal"},
	} {
		t.Run(planted.name, func(t *testing.T) {
			log, err := logwrites.NewRecording(planted.change(r.log), media...)
			if err != nil {
				t.Fatal(err)
			}
			wrong := &recorded{image: r.image, log: log, begun: r.begun}
			wrong.wantFound(t, planted.keep, planted.found)
		})
	}
}

// wantFound fails the test unless there is a message with these words for a state.
func (r *recorded) wantFound(t *testing.T, keep float64, words string) {
	t.Helper()
	var cuts []logwrites.Cut
	for after := r.begun; after <= r.log.Len(); after += 4 {
		cuts = append(cuts, logwrites.Cut{After: after, Keep: keep})
	}
	convicted := 0
	found := newChecker(t, r.log, r.image).violations(cuts, func(_ logwrites.Cut, err error) {
		if strings.Contains(err.Error(), words) {
			convicted++
		}
	})
	t.Logf("%d of %d states are found out, %d of them because something %s", found, len(cuts), convicted, words)
	if convicted == 0 {
		t.Error("nobody noticed")
	}
}

// holdBack moves the entries of some media behind every nth entry of the other medium
// with one of the flags. Within a medium the order stays.
func holdBack(log *logwrites.Recording, other string, flags logwrites.Flags, nth int, held ...string) (changed []logwrites.Entry) {
	var waiting []logwrites.Entry
	begun, seen := false, 0
	for i, e := range log.Entries() {
		begun = begun || e.Has(logwrites.Mark) && string(e.Data) == beginMark
		medium := log.MediumOf(i)
		if begun && slices.Contains(held, medium) {
			waiting = append(waiting, e)
			continue
		}
		changed = append(changed, e)
		if !begun || medium != other || !e.Has(flags) {
			continue
		}
		if seen++; seen%nth == 0 {
			changed, waiting = append(changed, waiting...), nil
		}
	}
	return append(changed, waiting...)
}

// withoutFlushes makes a medium one that says too early that a flush is done.
func withoutFlushes(log *logwrites.Recording, medium string) (changed []logwrites.Entry) {
	begun := false
	for i, e := range log.Entries() {
		begun = begun || e.Has(logwrites.Mark) && string(e.Data) == beginMark
		if begun && log.MediumOf(i) == medium {
			e.Flags &^= logwrites.Flush | logwrites.FUA
		}
		changed = append(changed, e)
	}
	return changed
}

// announceEarly moves the marks of transactions to where the preparation ended.
func announceEarly(log *logwrites.Recording) (changed []logwrites.Entry) {
	var marks []logwrites.Entry
	for _, e := range log.Entries() {
		if e.Has(logwrites.Mark) && strings.HasPrefix(string(e.Data), commitMark) {
			marks = append(marks, e)
		}
	}
	for _, e := range log.Entries() {
		switch {
		case !e.Has(logwrites.Mark):
			changed = append(changed, e)
		case string(e.Data) == beginMark:
			changed = append(append(changed, e), marks...)
		}
	}
	return changed
}
