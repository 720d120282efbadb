package main

import (
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []int
		want   int
	}{
		{[]int{7}, 7},
		{[]int{9, 1, 5}, 5},
		{[]int{4, 3, 2, 1}, 2},
	} {
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %d, want %d", c.values, got, c.want)
		}
	}
}

func TestScatteredExtentsStayInTheirSlots(t *testing.T) {
	extents := scattered(64)
	if len(extents) != 64 {
		t.Fatalf("%d extents for 64 slots", len(extents))
	}
	for slot, e := range extents {
		start := int64(slot) * sparseSlotBytes
		if e.off < start || e.off+e.bytes > start+sparseSlotBytes || e.off%sparseAlignBytes != 0 {
			t.Errorf("slot %d: extent at %d of %d bytes", slot, e.off, e.bytes)
		}
	}
}

func TestPeakExtraBytesComesFromTheDoneEvent(t *testing.T) {
	events := `{"event":"started","peak_extra_bytes":0}` + "\n" + `{"event":"done","peak_extra_bytes":4096}` + "\n"
	if got, err := peakExtraBytes([]byte(events)); err != nil || got != 4096 {
		t.Errorf("peakExtraBytes = %d, %v", got, err)
	}
	for _, bad := range []string{"", "no JSON", `{"event":"stopped","peak_extra_bytes":1}`, `{"event":"done"}`} {
		if got, err := peakExtraBytes([]byte(bad)); err == nil {
			t.Errorf("peakExtraBytes(%q) = %d without an error", bad, got)
		}
	}
}

func TestTableComparesWithTheFirstTool(t *testing.T) {
	all := []tool{{name: "first"}, {name: "second"}}
	results := [][]result{{{wall: time.Second, durable: 2 * time.Second}}, {{wall: 3 * time.Second, durable: 5 * time.Second}}}
	lines := strings.Split(table(image{name: "random", dataBytes: 10 << 20}, all, results), "\n")
	for line, want := range map[int][]string{2: {"first", "2.00 s", "1.00", "5", "1.00 s"}, 3: {"second", "5.00 s", "2.50", "2", "3.00 s"}} {
		rest := lines[line]
		for _, word := range want {
			_, after, found := strings.Cut(rest, word)
			if !found {
				t.Fatalf("line %q lacks %q", lines[line], want)
			}
			rest = after
		}
	}
}

func TestArgumentsNameTheFilesOfTheRun(t *testing.T) {
	got := tool{args: []string{"cp", "--sparse=always", sourceWord, destinationWord}}.with(map[string]string{sourceWord: "/a", destinationWord: "/b"})
	if want := "cp --sparse=always /a /b"; strings.Join(got, " ") != want {
		t.Errorf("command %q, want %q", got, want)
	}
}
