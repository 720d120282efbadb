package service

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/region"
)

func TestShowAndExplain(t *testing.T) {
	t.Parallel()
	s, id, _ := halfMoved(t)
	d, err := s.Show(id[:3], 8)
	s.must(err)
	if d.ID != id || d.Source != s.path("image") || d.Destination != s.path("moved") || d.Phase != "running" || d.Direction != "forward" || d.Active ||
		d.BytesTotal != 4*mib || d.RegionBytes != regionBytes || d.Regions != 64 || d.Hydrated == 0 || d.Hydrated == 64 ||
		d.Discarded > d.Hydrated || d.BytesCopied == 0 || d.Journal != s.journalPath(id) || !d.Options.DiscardSource || d.Created.IsZero() {
		t.Errorf("%+v", d)
	}
	if len(d.Map) != 8 || d.Map[0].State != "discarded" || d.Map[0].Hydrated != 1 || d.Map[7].State != "unhydrated" || d.Map[7].Hydrated != 0 {
		t.Errorf("%+v", d.Map)
	}
	if len(d.Transactions) == 0 || d.Transactions[0].Number != d.Transaction || d.Transactions[len(d.Transactions)-1].DiscardedAt == nil {
		t.Errorf("%+v", d.Transactions)
	}
	x, err := s.Explain(id, 100)
	s.must(err)
	if x.State != "discarded" || x.Owner != s.path("moved") || x.Region != 0 || x.RegionBytes != regionBytes || len(x.Checksum) != 16 ||
		x.Transaction == 0 || x.Committed == nil || x.Committed.IsZero() {
		t.Errorf("%+v", x)
	}
	x, err = s.Explain(id, mib+3) // in the hole
	s.must(err)
	if x.Owner == s.path("moved") && x.Checksum != "zeros" || x.RegionStart != mib {
		t.Errorf("%+v", x)
	}
	x, err = s.Explain(id, 4*mib-1)
	s.must(err)
	if x.State != "unhydrated" || x.Owner != s.path("image") || x.Region != 63 || x.Committed != nil || x.Checksum != "" {
		t.Errorf("%+v", x)
	}
	for _, off := range []int64{-1, 4 * mib} {
		if _, err := s.Explain(id, off); OutcomeOf(err) != Usage {
			t.Errorf("offset %d: %v", off, err)
		}
	}
	for name, err := range map[string]error{
		"show":    func() error { _, err := s.Show("nobody", 1); return err }(),
		"explain": func() error { _, err := s.Explain("nobody", 1); return err }(),
		"verify":  func() error { _, err := s.Verify(context.Background(), "nobody", nil); return err }(),
	} {
		if OutcomeOf(err) != Refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRegionMap(t *testing.T) {
	t.Parallel()
	g, err := region.NewGeometry(10*4096, 4096)
	if err != nil {
		t.Fatal(err)
	}
	state := journal.State{
		Hydrated:  region.NewSet(region.Range{First: 0, Count: 5}, region.Range{First: 6, Count: 1}),
		Discarded: region.NewSet(region.Range{First: 0, Count: 2}),
	}
	bad := region.NewSet(region.Range{First: 9, Count: 1})
	letters := map[string]string{"discarded": "D", "hydrated": "H", "partial": "p", "unhydrated": "u", "bad": "b"}
	for cells, want := range map[int]string{10: "DDHHHuHuub", 100: "DDHHHuHuub", 5: "DHppb", 2: "Hb", 1: "b", 0: "", -1: ""} {
		got := ""
		for _, c := range regionMap(g, state, bad, cells) {
			got += letters[c.State]
		}
		if got != want {
			t.Errorf("%d cells: %q, want %q", cells, got, want)
		}
	}
	if c := regionMap(g, state, bad, 5)[2]; c.Hydrated != 0.5 {
		t.Errorf("%+v", c)
	}
}

func TestMapShowsDirtyRegions(t *testing.T) {
	t.Parallel()
	cells := []Cell{{State: "discarded"}, {State: "hydrated"}, {State: "partial"}, {State: "partial"}, {State: "unhydrated"}, {State: "unhydrated"}, {State: "bad"}}
	dirty := region.NewSet(region.Range{First: 2, Count: 3}, region.Range{First: 9, Count: 1}, region.Range{First: 12, Count: 2})
	markDirty(cells, 14, dirty)
	got := ""
	for _, c := range cells {
		got += c.State + " "
	}
	if want := "discarded hydrated dirty partial dirty unhydrated bad "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	markDirty(nil, 0, dirty) // of a journal that could not be read
}

func TestVerify(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", 2*mib)
	id := s.migrate("image", "moved", moving()).last().ID
	r := &recorder{}
	report, err := s.Verify(context.Background(), id, r.sink)
	if err != nil || report.ID != id || report.RegionsChecked != 32 || report.BytesRead != mib+mib/2 || report.MismatchRegions != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	if all := r.all(); all[0].Event != Started || r.last().Event != DoneEvent || r.last().Phase != donePhase || r.last().BytesVerified != report.BytesRead {
		t.Errorf("%+v", all)
	}
	for _, off := range []int64{100, mib/2 + 5, 2*mib - 1} { // the second lies in a hole
		s.overwrite("moved", off)
	}
	r = &recorder{}
	report, err = s.Verify(context.Background(), id, r.sink)
	if OutcomeOf(err) != Failed || !strings.Contains(err.Error(), "3 of 32 regions are not what was written") {
		t.Errorf("%v", err)
	}
	if report.MismatchRegions != 3 || len(report.Mismatches) != 3 || report.Mismatches[0].Offset != 0 || report.Mismatches[1].Offset != mib/2 ||
		!strings.Contains(report.Mismatches[1].Error, "zeros") || report.Mismatches[2].Bytes != regionBytes {
		t.Errorf("%+v", report)
	}
	if e := r.last(); e.Event != FailedEvent || e.Reason == "" || e.Hint == "" {
		t.Errorf("%+v", e)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("no time"))
	if _, err := s.Verify(ctx, id, nil); OutcomeOf(err) != Stopped {
		t.Errorf("%v", err)
	}
}

// Regions that users have written to through the migration are no mismatches, and are
// not passed over in silence.
func TestVerifyKnowsWrittenRegions(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", 2*mib)
	id := s.migrate("image", "moved", moving()).last().ID
	j, err := journal.Open(s.journalPath(id))
	s.must(err)
	_, err = j.Commit(journal.Transaction{
		Hydrated:  region.NewSet(region.Range{Count: 1}),
		Checksums: []journal.Checksum{{Nr: 0, Sum: journal.WrittenSum}},
	})
	s.must(errors.Join(err, j.Close()))
	s.overwrite("moved", 100)
	report, err := s.Verify(context.Background(), id, nil)
	if err != nil || report.RegionsChecked != 32 || report.WrittenRegions != 1 || report.MismatchRegions != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	if x, err := s.Explain(id, 100); err != nil || x.Checksum != "written" {
		t.Errorf("%+v, %v", x, err)
	}
}

func (s *site) overwrite(name string, off int64) {
	s.Helper()
	f, err := os.OpenFile(s.path(name), os.O_WRONLY, 0)
	s.must(err)
	_, err = f.WriteAt([]byte{0}, off)
	s.must(err)
	_, err = f.WriteAt([]byte{0x5a}, off)
	s.must(errors.Join(err, f.Close()))
}

func TestVerifyLooksAtTheRightDestination(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", mib)
	id := s.migrate("image", "moved", moving()).last().ID
	s.must(os.Rename(s.path("moved"), s.path("away")))
	s.wantRefused("cannot be used", func() error { _, err := s.Verify(context.Background(), id, nil); return err })
	s.image("moved", mib)
	s.wantRefused("is another object", func() error { _, err := s.Verify(context.Background(), id, nil); return err })
}

// Fault 49: bits that rot between the copy and the discard are found by --verify,
// before the source is emptied.
func TestFault49And48VerifyWhileMoving(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", mib)
	o := moving()
	o.Verify = true
	_, err := s.runWith("image", "moved", o, func(m *migration) { m.destination.device = &forgetful{m.destination.device} })
	if OutcomeOf(err) != Stopped || !strings.Contains(err.Error(), "verification failed") {
		t.Errorf("%v", err)
	}
	s.wantContent("image", content)
	if errors.Is(err, unix.EIO) {
		t.Error("nobody has reported an error of input or output")
	}
}

// forgetful acknowledges every write and loses it (fault 48).
type forgetful struct{ device }

func (forgetful) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
