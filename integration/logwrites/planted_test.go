package logwrites_test

import (
	"slices"
	"strings"
	"testing"

	"decant/integration/logwrites"
	"decant/journal"
	"decant/loopdev"
	"decant/region"
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
			c := newChecker(t, log, r.image)
			var cuts []logwrites.Cut
			for after := r.begun; after <= log.Len(); after += 4 {
				cuts = append(cuts, logwrites.Cut{After: after, Keep: planted.keep})
			}
			convicted := 0
			found := c.violations(cuts, func(_ logwrites.Cut, err error) {
				if strings.Contains(err.Error(), planted.found) {
					convicted++
				}
			})
			t.Logf("%d of %d states are found out, %d of them because something %s", found, len(cuts), convicted, planted.found)
			if convicted == 0 {
				t.Error("nobody noticed")
			}
		})
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

// fault 53, fault 54: what the mark of a source has to say once something is gone.
func TestMarkIsChecked(t *testing.T) {
	recorded := journalFacts{exists: true, id: "m", tx: 3, hydrated: region.NewSet()}
	recorded.recordedBy[4] = 2
	mark := func(id, role string, tx uint64) *loopdev.Mark { return &loopdev.Mark{ID: id, Role: role, Tx: tx} }
	for name, test := range map[string]struct {
		mark    *loopdev.Mark
		lost    bool
		journal journalFacts
		want    string // empty: all is well
	}{
		"whole, unmarked":    {nil, false, recorded, ""},
		"whole, no journal":  {nil, false, journalFacts{}, ""},
		"lost, marked":       {mark("m", "source", 2), true, recorded, ""},
		"whole, marked":      {mark("m", "source", 3), false, recorded, ""},
		"lost, unmarked":     {nil, true, recorded, "has no mark"},
		"other role":         {mark("m", "destination", 2), true, recorded, "gives it the role"},
		"other migration":    {mark("n", "source", 2), true, recorded, "names migration"},
		"journal gone":       {mark("m", "source", 2), false, journalFacts{}, "names migration"},
		"behind discards":    {mark("m", "source", 1), true, recorded, "its mark says 1"},
		"ahead of journal":   {mark("m", "source", 4), true, recorded, "would be refused"},
		"discarding, unsaid": {mark("m", "source", 2), true, journalFacts{exists: true, id: "m", tx: 3, sourceModified: recorded.sourceModified.Add(1)}, "would refuse it"},
	} {
		t.Run(name, func(t *testing.T) {
			s := sourceFacts{mark: test.mark}
			for nr := range s.whole {
				s.whole[nr] = !test.lost || nr != 4
			}
			err := test.journal.checkMark(s)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// What the program has said is held against it.
func TestPromisesAreChecked(t *testing.T) {
	done := journalFacts{exists: true, tx: 3, phase: journal.Done}
	running := journalFacts{exists: true, tx: 3, phase: journal.Running}
	for name, test := range map[string]struct {
		marks   []string
		journal journalFacts
		source  sourceFacts
		want    string
	}{
		"nothing said":        {[]string{beginMark}, journalFacts{}, sourceFacts{}, ""},
		"kept":                {[]string{beginMark, "tx=3"}, running, sourceFacts{}, ""},
		"ended":               {[]string{"tx=3", endMark}, done, sourceFacts{}, ""},
		"transaction lost":    {[]string{"tx=4"}, running, sourceFacts{}, "transaction 4 was announced"},
		"journal lost":        {[]string{"tx=1"}, journalFacts{}, sourceFacts{}, "transaction 1 was announced"},
		"end lost":            {[]string{endMark}, running, sourceFacts{}, "is at phase"},
		"discards taken back": {[]string{endMark}, done, sourceFacts{dataRegions: 1}, "hold data again"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.journal.checkPromises(test.marks, test.source)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
