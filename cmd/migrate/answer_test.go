package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"decant/service"
)

var noon = time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)

func someMigrations() []service.Summary {
	return []service.Summary{
		{
			ID: "a1b2c3", Source: "/images/a.raw", Destination: "pool/a", Phase: "running", Direction: "forward", Active: true, PID: 77,
			BytesTotal: 2 * gib, RegionBytes: 1 << 20, Regions: 2048, Hydrated: 1024, Discarded: 1000, BytesCopied: gib / 2, Created: noon,
		},
		{
			ID: "b2c3d4", Source: "/images/b.raw", Destination: "/dev/sdb", Phase: "running", Direction: "backward",
			BytesTotal: gib, RegionBytes: 1 << 20, Regions: 1024, Hydrated: 1023, Created: noon,
		},
		{
			ID: "c3d4e5", Source: "/images/c\x1b[2J.raw", Destination: "pool/c", Phase: "done", Direction: "forward",
			BytesTotal: gib, RegionBytes: 1 << 20, Regions: 1024, Hydrated: 1024, Created: noon,
		},
		{ID: "d4e5f6", Problem: "the journal is cut off:\nunexpected end"},
	}
}

func TestListTable(t *testing.T) {
	w := newWorld(&fakeService{list: someMigrations()})
	if code := w.run([]string{"list"}); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	golden(t, "list", w.out.String())
}

func TestListWithoutMigrations(t *testing.T) {
	w := newWorld(&fakeService{})
	if code := w.run([]string{"list"}); code != 0 || w.out.Len() > 0 || w.err.String() != "there are no migrations\n" {
		t.Errorf("exit code %d, standard output %q, standard error %q", code, w.out.String(), w.err.String())
	}
	w = newWorld(&fakeService{})
	if code := w.run([]string{"list", "--json"}); code != 0 || w.out.String() != "[]\n" {
		t.Errorf("exit code %d, standard output %q", code, w.out.String())
	}
}

func TestListAsJSON(t *testing.T) {
	w := newWorld(&fakeService{list: someMigrations()})
	w.run([]string{"list", "--json"})
	golden(t, "list-json", w.out.String())
}

func someDetail() service.Detail {
	discarded := noon.Add(time.Minute)
	d := service.Detail{
		Summary: someMigrations()[0],
		Options: service.DefaultOptions(),
		Bad:     []service.BadBytes{{Offset: 1 << 20, Bytes: 2 << 20, Error: "input/output error"}},
		Transactions: []service.Transaction{
			{Number: 12, Direction: "forward", Committed: noon, Regions: 64, CopiedBytes: 64 << 20},
			{Number: 11, Direction: "forward", Committed: noon, DiscardedAt: &discarded, Regions: 64, CopiedBytes: 32 << 20},
		},
		Journal: "/var/lib/decant/a1b2c3.db",
	}
	d.Options.DiscardSource = true
	d.Options.BytesPerSecond = 50 << 20
	d.Options.Export = "/run/vm.sock"
	for i := range 200 {
		d.Map = append(d.Map, service.Cell{State: []string{"discarded", "hydrated", "partial", "bad", "unhydrated"}[i/40]})
	}
	return d
}

func TestShowText(t *testing.T) {
	w := newWorld(&fakeService{detail: someDetail()})
	if code := w.run([]string{"show", "a1"}); code != 0 {
		t.Fatalf("exit code %d: %s", code, w.err.String())
	}
	golden(t, "show", w.out.String())
}

func TestShowAsJSON(t *testing.T) {
	d := someDetail()
	d.Map = d.Map[:2]
	w := newWorld(&fakeService{detail: d})
	w.run([]string{"show", "a1", "--json"})
	golden(t, "show-json", w.out.String())
}

func TestShowCutsLongLists(t *testing.T) {
	d := someDetail()
	for range 29 {
		d.Bad = append(d.Bad, d.Bad[0])
		d.Transactions = append(d.Transactions, d.Transactions[0])
	}
	w := newWorld(&fakeService{detail: d})
	w.run([]string{"show", "a1"})
	if text := w.out.String(); strings.Count(text, "input/output error") != 20 || !strings.Contains(text, "and 10 more ranges") {
		t.Errorf("not cut at 20 bad ranges:\n%s", text)
	}
	if text := w.out.String(); strings.Count(text, "2030-01-02 12:00:00") != 11 { // and the creation
		t.Errorf("not cut at 10 transactions:\n%s", text)
	}
}

func TestMapFitsTheTerminal(t *testing.T) {
	for _, width := range []int{1, 20, 40, 80, 200} {
		w := newWorld(&fakeService{detail: someDetail()})
		w.stdoutColumns = func() int { return width }
		layout := w.mapLayout()
		d := someDetail()
		d.Map = make([]service.Cell, layout.cells())
		w.fake.detail = d
		w.run([]string{"show", "a1"})
		if w.fake.cells != layout.cells() {
			t.Errorf("width %d: asked for %d cells, want %d", width, w.fake.cells, layout.cells())
		}
		rows := 0
		for line := range strings.Lines(w.out.String()) {
			if !strings.Contains(line, "?????") { // a cell without a state
				continue
			}
			rows++
			if columns := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); width >= 20 && columns != width {
				t.Errorf("width %d: a row has %d columns", width, columns)
			}
		}
		if rows != mapRows {
			t.Errorf("width %d: %d rows, want %d", width, rows, mapRows)
		}
	}
}

func TestMapWithoutUnicode(t *testing.T) {
	w := newWorld(&fakeService{detail: someDetail()})
	w.unicode = false
	w.run([]string{"show", "a1"})
	for _, r := range w.out.String() {
		if r > 127 {
			t.Fatalf("%q is not ASCII:\n%s", r, w.out.String())
		}
	}
	for _, symbol := range []string{"...", "+++", "###", "---", "!!!", "# hydrated"} {
		if !strings.Contains(w.out.String(), symbol) {
			t.Errorf("no %s in the map", symbol)
		}
	}
}

func TestExplainText(t *testing.T) {
	discarded := noon.Add(time.Minute)
	tests := []struct {
		name string
		e    service.Explanation
	}{
		{"discarded", service.Explanation{
			ID: "a1b2c3", Offset: 5<<20 + 17, Region: 5, RegionStart: 5 << 20, RegionBytes: 1 << 20, State: "discarded",
			Owner: "/dev/vg/a", Transaction: 12, Committed: &noon, DiscardedAt: &discarded, Checksum: "00d0adbeefc0ffee",
		}},
		{"zeros", service.Explanation{ID: "a1b2c3", RegionBytes: 1 << 20, State: "hydrated", Owner: "/dev/vg/a", Transaction: 1, Committed: &noon, Checksum: "zeros"}},
		{"written", service.Explanation{ID: "a1b2c3", RegionBytes: 1 << 20, State: "hydrated", Owner: "/dev/vg/a", Transaction: 1, Committed: &noon, Checksum: "written"}},
		{"bad", service.Explanation{ID: "a1b2c3", RegionBytes: 1 << 20, State: "bad", Owner: "/images/\x07a", Error: "input/output error\n"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(&fakeService{explained: test.e})
			w.run([]string{"explain", "a1", "5M"})
			golden(t, "explain-"+test.name, w.out.String())
		})
	}
}

func TestExplainAsJSON(t *testing.T) {
	w := newWorld(&fakeService{explained: service.Explanation{ID: "a1b2c3", State: "unhydrated"}})
	w.run([]string{"explain", "a1", "0", "--json"})
	var got service.Explanation
	if err := json.Unmarshal(w.out.Bytes(), &got); err != nil || got.State != "unhydrated" {
		t.Errorf("%s: %v", w.out.String(), err)
	}
}

func somePlan() service.Plan {
	return service.Plan{
		Source: "/images/a.raw", Destination: "pool/a", BytesTotal: 2 * gib, RegionBytes: 1 << 20,
		Warnings: []string{"the source is reflinked:\tpunching frees nothing of what is shared"},
		Space: service.SpaceProof{
			DataBytes: gib, NeededExtraBytes: 192 << 20, SlackBytes: 64 << 20, AvailableBytes: 10 * gib, ReserveBytes: 100 << 20,
			SameSpace: true, Bounded: true, Verdict: "there is room enough",
		},
	}
}

func TestDryRunText(t *testing.T) {
	resume, device := somePlan(), somePlan()
	resume.Resume, resume.ID = true, "a1b2c3"
	resume.Space.LimitedTransactions, resume.Space.SameSpace = true, false
	device.Warnings, device.Space = nil, service.SpaceProof{DataBytes: gib, Verdict: "the destination has its space"}
	pool := somePlan()
	pool.Space.Stores = []service.StoreProof{
		{Kind: "file-system", Name: "the file system of /images", AvailableBytes: 20 * gib, ReserveBytes: 64 << 20, NeededBytes: 192 << 20},
		{Kind: "thin-pool", Name: "pool vg/tp", AvailableBytes: 10 * gib, ReserveBytes: 64 << 20, NeededBytes: 192 << 20, BlockBytes: 64 << 10, FreedReturns: true},
		{Kind: "file-system", Name: "the file system of /srv/pool data", AvailableBytes: -1, ReserveBytes: 2 << 20, NeededBytes: 192 << 20, FreedReturnsNot: "it ignores discards"},
	}
	for name, plan := range map[string]service.Plan{"new": somePlan(), "resume": resume, "device": device, "pool": pool} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(&fakeService{plan: plan})
			if code := w.run([]string{"--dry-run", "/images/a.raw", "pool/a"}); code != 0 || w.err.Len() > 0 {
				t.Errorf("exit code %d, standard error %q", code, w.err.String())
			}
			golden(t, "dry-run-"+name, w.out.String())
		})
	}
}

func TestDryRunAsJSON(t *testing.T) {
	w := newWorld(&fakeService{plan: somePlan()})
	w.run([]string{"--dry-run", "--json", "/images/a.raw", "pool/a"})
	golden(t, "dry-run-json", w.out.String())
}

func TestDryRunThatIsRefusedShowsThePlanAndTheReason(t *testing.T) {
	w := newWorld(&fakeService{plan: somePlan(), err: &service.Error{Outcome: service.Refused, Problem: "not enough room", Hint: "make some"}})
	code := w.run([]string{"--dry-run", "/images/a.raw", "pool/a"})
	if code != 4 || !strings.Contains(w.out.String(), "at most 192 MiB") || w.err.String() != "migrate: not enough room\nhint: make some\n" {
		t.Errorf("exit code %d, standard output %q, standard error %q", code, w.out.String(), w.err.String())
	}
}

func TestVerifyReport(t *testing.T) {
	report := service.VerifyReport{
		ID: "a1b2c3", RegionsChecked: 2048, BytesRead: gib, MismatchRegions: 2,
		Mismatches: []service.BadBytes{{Offset: 5 << 20, Bytes: 2 << 20, Error: "checksum differs"}},
	}
	failure := &service.Error{Outcome: service.Failed, Object: "pool/a", Problem: "2 of 2048 regions are not what was written"}
	w := newWorld(&fakeService{verified: report, err: failure})
	if code := w.run([]string{"verify", "a1"}); code != 1 || w.err.String() != "migrate: pool/a: 2 of 2048 regions are not what was written\n" {
		t.Errorf("mismatches ended with code %d: %s", code, w.err.String())
	}
	golden(t, "verify", w.out.String())

	w = newWorld(&fakeService{verified: report, err: failure})
	w.run([]string{"verify", "a1", "--json"})
	golden(t, "verify-json", w.out.String())

	w = newWorld(&fakeService{verified: service.VerifyReport{ID: "a1b2c3", RegionsChecked: 2048, BytesRead: gib, WrittenRegions: 12}})
	w.run([]string{"verify", "a1"})
	golden(t, "verify-written", w.out.String())

	w = newWorld(&fakeService{verified: service.VerifyReport{ID: "a1b2c3", RegionsChecked: 1}})
	if code := w.run([]string{"verify", "a1"}); code != 0 || w.err.Len() > 0 {
		t.Errorf("a clean verification ended with code %d: %s", code, w.err.String())
	}
}

func TestVerifyThatWasRefusedReportsNothing(t *testing.T) {
	w := newWorld(&fakeService{verified: service.VerifyReport{ID: "a1b2c3"}, err: &service.Error{Outcome: service.Refused, Problem: "was given up"}})
	if code := w.run([]string{"verify", "a1"}); code != 4 || w.out.Len() > 0 || w.err.String() != "migrate: was given up\n" {
		t.Errorf("exit code %d, standard output %q, standard error %q", code, w.out.String(), w.err.String())
	}
}

func TestVerifyWithEventsLeavesStandardOutputToThem(t *testing.T) {
	w := newWorld(&fakeService{verified: service.VerifyReport{ID: "a1b2c3", RegionsChecked: 7}})
	if code := w.run([]string{"verify", "a1", "--progress=json"}); code != 0 || w.out.Len() > 0 || !strings.Contains(w.err.String(), "7 regions checked") {
		t.Errorf("exit code %d, standard output %q, standard error %q", code, w.out.String(), w.err.String())
	}
}

func TestPauseAndCancelSayWhatTheyDid(t *testing.T) {
	for args, want := range map[string]string{
		"pause a1":  "paused a1; go on with: migrate resume a1\n",
		"cancel a1": "cancelled a1\n",
	} {
		w := newWorld(&fakeService{})
		w.run(strings.Fields(args))
		if w.err.String() != want || w.out.Len() > 0 {
			t.Errorf("%s: standard error %q, standard output %q", args, w.err.String(), w.out.String())
		}
	}
}

func TestPauseSaysWhatWaits(t *testing.T) {
	d := someDetail()
	d.Options.Live, d.Options.Engine, d.Options.LiveTimeout = "vm", service.EngineUser, time.Minute
	w := newWorld(&fakeService{detail: d})
	w.run([]string{"pause", "a1"})
	if want := "whatever uses /dev/mapper/vm waits for that, at most 1m0s\n"; !strings.HasSuffix(w.err.String(), want) {
		t.Errorf("%q does not end with %q", w.err.String(), want)
	}
	d.Options.Engine = service.EngineKernel
	w = newWorld(&fakeService{detail: d})
	w.run([]string{"pause", "a1"})
	if strings.Contains(w.err.String(), "waits") {
		t.Errorf("%q, though the kernel serves the device", w.err.String())
	}
}
