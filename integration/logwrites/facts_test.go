package logwrites_test

import (
	"strings"
	"testing"

	"decant/journal"
	"decant/loopdev"
	"decant/region"
)

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
