package logwrites_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"decant/integration/logwrites"
)

// twoDisks are as small as can be.
var twoDisks = []logwrites.Medium{
	{Name: "a", Off: 0, Bytes: 4096},
	{Name: "b", Off: 4096, Bytes: 4096},
}

func recordingOf(t testing.TB, entries ...logwrites.Entry) *logwrites.Recording {
	t.Helper()
	r, err := logwrites.NewRecording(entries, twoDisks...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// left is what is in the sectors of a medium after a cut: a digit for each.
func left(t testing.TB, r *logwrites.Recording, medium string, cut logwrites.Cut) string {
	t.Helper()
	content := make(memory, 4096)
	if err := r.State(cut).On(medium).WriteTo(content); err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for off := 0; off < len(content); off += 512 {
		if !bytes.Equal(content[off:off+512], bytes.Repeat(content[off:off+1], 512)) {
			t.Fatalf("sector at %d is torn", off)
		}
		fmt.Fprint(&digits, content[off])
	}
	return digits.String()
}

func TestFlushKeepsWhatIsOnItsMedium(t *testing.T) {
	r := recordingOf(t,
		written(0, 512, 1, 0),
		written(4096, 512, 2, 0),
		logwrites.Entry{Off: 4096, Flags: logwrites.Flush},
		written(4608, 512, 3, 0),
		written(512, 512, 4, logwrites.FUA),
		mark("here"),
		logwrites.Entry{Off: 0, Flags: logwrites.Flush},
		logwrites.Entry{Off: 0, Bytes: 1024, Flags: logwrites.Discard},
		logwrites.Entry{Off: 0, Flags: logwrites.Flush},
	)
	for _, want := range []struct {
		after  int
		keep   float64
		ignore bool
		a, b   string
	}{
		{0, 1, false, "00000000", "00000000"},
		{2, 1, false, "10000000", "20000000"},
		{2, 0, false, "00000000", "00000000"},
		{3, 0, false, "00000000", "20000000"}, // a is not flushed with b
		{6, 0, false, "04000000", "20000000"},
		{6, 1, false, "14000000", "23000000"},
		{7, 0, false, "14000000", "20000000"},
		{8, 1, false, "00000000", "23000000"},
		{8, 1, true, "14000000", "23000000"},
		{8, 0, false, "14000000", "20000000"},
		{9, 0, false, "00000000", "20000000"},
		{9, 0, true, "14000000", "20000000"},
	} {
		cut := logwrites.Cut{After: want.after, Keep: want.keep, IgnoreDiscards: want.ignore}
		if a, b := left(t, r, "a", cut), left(t, r, "b", cut); a != want.a || b != want.b {
			t.Errorf("%v: %s %s, want %s %s", cut, a, b, want.a, want.b)
		}
	}
}

// A write with a flush is behind that flush, and not covered by it.
func TestFlushDoesNotCoverItsOwnWrite(t *testing.T) {
	r := recordingOf(t, written(0, 512, 1, 0), written(512, 512, 2, logwrites.Flush))
	if got := left(t, r, "a", logwrites.Cut{After: 2}); got != "10000000" {
		t.Errorf("got %s", got)
	}
}

// Of what was not flushed any part can be left, and all of them are.
func TestAnyPartOfWhatWasNotFlushedCanBeLeft(t *testing.T) {
	for _, test := range []struct {
		name    string
		cut     logwrites.Cut
		entries []logwrites.Entry
		want    []string
	}{
		{"whole writes", logwrites.Cut{After: 2, Keep: 0.5}, []logwrites.Entry{written(0, 1024, 1, 0), written(512, 1024, 2, 0)}, []string{
			"00000000", "11000000", "02200000", "12200000",
		}},
		{"torn writes", logwrites.Cut{After: 1, Keep: 1, TornBytes: 512}, []logwrites.Entry{written(0, 1024, 1, 0)}, []string{
			"00000000", "10000000", "01000000", "11000000",
		}},
		{"torn at most at the last", logwrites.Cut{After: 1, Keep: 1, TornBytes: 512, LastOnly: true}, []logwrites.Entry{written(0, 1024, 1, 0), written(2048, 1024, 2, logwrites.FUA)}, []string{
			"11000000", "11002000", "11000200", "11002200",
		}},
		{"in pieces of four", logwrites.Cut{After: 0, TornBytes: 4096}, []logwrites.Entry{written(0, 2048, 1, 0)}, []string{
			"00000000", "11110000",
		}},
		{"a discard in part", logwrites.Cut{After: 2, Keep: 1, TornBytes: 512}, []logwrites.Entry{
			written(0, 1024, 1, logwrites.FUA), {Off: 0, Bytes: 1024, Flags: logwrites.Discard},
		}, []string{
			"11000000", "10000000", "01000000", "00000000",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := recordingOf(t, test.entries...)
			seen := map[string]bool{}
			for seed := range uint64(200) {
				cut := test.cut
				cut.Seed = seed
				seen[left(t, r, "a", cut)] = true
			}
			if len(seen) != len(test.want) {
				t.Errorf("seen %v, want %v", seen, test.want)
			}
			for _, want := range test.want {
				if !seen[want] {
					t.Errorf("%s was never left, only %v", want, seen)
				}
			}
		})
	}
}

func TestBeginningIsNotTorn(t *testing.T) {
	entries := []logwrites.Entry{written(0, 2048, 1, 0)}
	r, err := logwrites.NewRecording(entries, logwrites.Medium{Name: "a", Bytes: 4096, UntornBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(50) {
		if got := left(t, r, "a", logwrites.Cut{After: 1, Keep: 1, TornBytes: 512, Seed: seed}); got != "00000000" && got != "11110000" {
			t.Errorf("seed %d: %s", seed, got)
		}
	}
}

func TestEntriesLieOnOneMedium(t *testing.T) {
	for name, entry := range map[string]logwrites.Entry{
		"across two": written(3584, 1024, 1, 0),
		"beyond":     written(8192, 512, 1, 0),
		"over all":   {Off: 0, Bytes: 1 << 62, Flags: logwrites.Discard},
	} {
		if _, err := logwrites.NewRecording([]logwrites.Entry{entry}, twoDisks...); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Two parts with equal keys hold the same, and every state keeps what was flushed.
func TestKeysAndDurability(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var entries []logwrites.Entry
		for i := range rapid.IntRange(1, 12).Draw(rt, "entries") {
			off := 512 * rapid.Int64Range(0, 15).Draw(rt, "sector")
			length := min(512*rapid.Int64Range(1, 3).Draw(rt, "sectors"), 4096-off%4096)
			switch rapid.IntRange(0, 4).Draw(rt, "kind") {
			case 0:
				entries = append(entries, logwrites.Entry{Off: off, Flags: logwrites.Flush})
			case 1:
				entries = append(entries, logwrites.Entry{Off: off, Bytes: length, Flags: logwrites.Discard})
			case 2:
				entries = append(entries, written(off, length, byte(i+1), logwrites.FUA))
			default:
				entries = append(entries, written(off, length, byte(i+1), 0))
			}
		}
		r := recordingOf(t, entries...)
		contents := map[string]string{}
		for seed := range uint64(6) {
			cut := logwrites.Cut{
				After: rapid.IntRange(0, len(entries)).Draw(rt, "after"), Keep: rapid.SampledFrom([]float64{0, 0.5, 1}).Draw(rt, "keep"),
				TornBytes: rapid.SampledFrom([]int64{0, 512}).Draw(rt, "torn"), Seed: seed,
			}
			for _, medium := range twoDisks {
				key, content := r.State(cut).On(medium.Name).Key(), left(t, r, medium.Name, cut)
				if known, ok := contents[key]; ok && known != content {
					rt.Fatalf("%v: %s and %s have one key", cut, known, content)
				}
				contents[key] = content
				if again := left(t, r, medium.Name, cut); again != content {
					rt.Fatalf("%v gives %s and %s", cut, content, again)
				}
			}
		}
		// With everything flushed at the end all cuts are alike.
		flushed := recordingOf(t, append(entries, logwrites.Entry{Flags: logwrites.Flush}, logwrites.Entry{Off: 4096, Flags: logwrites.Flush})...)
		for _, medium := range twoDisks {
			all := left(t, flushed, medium.Name, logwrites.Cut{After: len(entries) + 2, Keep: 1})
			if nothing := left(t, flushed, medium.Name, logwrites.Cut{After: len(entries) + 2}); nothing != all {
				rt.Fatalf("a flush has kept %s of %s", nothing, all)
			}
		}
	})
}
