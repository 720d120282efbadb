package integration

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func commandIn(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(migratePath, args...)
	cmd.Dir = dir
	return cmd
}

// shown is what show --json says.
type shown struct {
	ID          string `json:"id"`
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Phase       string `json:"phase"`
	Active      bool   `json:"active"`
	PID         int    `json:"pid"`
	Regions     uint64 `json:"regions"`
	Hydrated    uint64 `json:"regions_hydrated"`
	Discarded   uint64 `json:"regions_discarded"`
	BytesTotal  int64  `json:"bytes_total"`
	BytesCopied int64  `json:"bytes_copied"`
	Bad         []struct {
		Offset int64  `json:"offset"`
		Bytes  int64  `json:"bytes"`
		Error  string `json:"error"`
	} `json:"bad"`
	Transactions []struct {
		Number uint64 `json:"number"`
	} `json:"transactions"`
}

func (s *site) show(id string) (d shown) {
	s.Helper()
	s.decode(&d, "show", id, "--json")
	s.want(0, s.run("show", id)) // for people
	return d
}

// decode runs a command that answers with JSON.
func (s *site) decode(into any, args ...string) {
	s.Helper()
	o := s.want(0, s.run(args...))
	if err := json.Unmarshal([]byte(o.stdout), into); err != nil {
		s.Fatalf("%v: %v: %s", args, err, o.stdout)
	}
}

type explained struct {
	Region      uint64  `json:"region"`
	RegionStart int64   `json:"region_start"`
	RegionBytes int64   `json:"region_bytes"`
	State       string  `json:"state"`
	Owner       string  `json:"owner"`
	Transaction uint64  `json:"transaction"`
	Committed   *string `json:"committed"`
	Checksum    string  `json:"checksum"`
}

func TestLookingAtMigrations(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if all := s.listed(); len(all) != 0 || exists(s.state) {
		t.Errorf("before anything there is %v", all)
	}
	m := interrupted{site: s, source: s.path("image"), destination: s.path("moved")}
	m.made = makeImage(t, m.source, 48*mib, 140, solid)

	r := m.startMove(m.source, m.destination, slowly...)
	m.id = r.awaitDiscarded().ID
	r.signal(syscall.SIGSTOP) // so that it does not end meanwhile
	waitStopped(t, r)
	running := s.show(m.id)
	if !running.Active || running.PID != r.cmd.Process.Pid || running.Phase != "running" || running.Hydrated == 0 || running.Hydrated >= running.Regions {
		t.Errorf("while it runs: %+v", running)
	}
	if all := s.listed(); len(all) != 1 || all[0]["id"] != m.id || all[0]["active"] != true {
		t.Errorf("while it runs there is %v", all)
	}
	r.signal(syscall.SIGINT)
	r.signal(syscall.SIGCONT)
	o := s.want(3, r.wait())

	stopped := s.show(m.id[:4])
	if stopped.Active || stopped.Phase != "running" || stopped.BytesCopied != o.last().BytesCommitted || len(stopped.Transactions) == 0 ||
		stopped.Transactions[0].Number != o.last().Transaction || stopped.Source != m.source || stopped.Destination != m.destination || stopped.BytesTotal != m.made.bytes {
		t.Errorf("after it was stopped: %+v", stopped)
	}
	var first, end explained
	s.decode(&first, "explain", m.id, "12345", "--json")
	s.decode(&end, "explain", m.id, itoa(m.made.bytes-1), "--json")
	if first.State != "discarded" || first.Owner != m.destination || first.Transaction != 1 || first.Committed == nil || first.Checksum == "" || first.Region != 0 || first.RegionBytes != 256*kib {
		t.Errorf("the first region: %+v", first)
	}
	if end.State != "unhydrated" || end.Owner != m.source || end.RegionStart != m.made.bytes-256*kib || end.Transaction != 0 {
		t.Errorf("the last region: %+v", end)
	}
	s.want(0, s.run("explain", m.id, "5M"))
	for _, off := range []string{itoa(m.made.bytes), "-1", "x"} {
		if o := s.run("explain", m.id, off); o.code != 2 && o.code != 4 {
			t.Errorf("explain %s: %v", off, o)
		}
	}

	m.finish()
	done := s.show(m.id)
	if done.Active || done.Phase != "done" || done.Hydrated != done.Regions || done.Discarded != done.Regions {
		t.Errorf("at the end: %+v", done)
	}
	s.decode(&end, "explain", m.id, itoa(m.made.bytes-1), "--json")
	if end.State != "discarded" || end.Owner != m.destination {
		t.Errorf("the last region at the end: %+v", end)
	}
}

// Looking changes nothing, also at what was killed.
func TestLookingChangesNothing(t *testing.T) {
	t.Parallel()
	m := interrupt(t, syscall.SIGKILL)
	before := treeOf(t, m.dir)
	for _, args := range [][]string{{"list"}, {"list", "--json"}, {"show", m.id}, {"explain", m.id, "0"}, {"verify", m.id}, append([]string{"--dry-run", "--json"}, m.source, m.destination)} {
		m.want(0, m.run(args...))
	}
	if diff := before.difference(treeOf(t, m.dir)); diff != "" {
		t.Error(diff)
	}
	m.finish()
}

// fault 49: verify reads past the cache and finds a changed byte, and where.
func TestFault49Verify(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 48*mib, 141, mixed)
	id := s.want(0, s.move(s.path("image"), s.path("moved"), "--discard-src")).last().ID
	ok := s.want(0, s.run("verify", id, "--progress=json"))
	for _, e := range ok.events {
		wantFields(t, e)
	}
	if first, last := ok.events[0], ok.last(); first.Event != "started" || last.Event != "done" || last.BytesVerified < made.dataBytes {
		t.Errorf("verified from %v to %v", first, last)
	}

	data, hole := placesIn(t, s.path("moved"))
	for _, off := range []int64{data, hole, made.bytes - 1} {
		at := readFile(t, s.path("moved"))[off]
		overwrite(t, s.path("moved"), off, []byte{at ^ 0x40})
		var report struct {
			Mismatches []struct {
				Offset int64 `json:"offset"`
				Bytes  int64 `json:"bytes"`
			} `json:"mismatches"`
		}
		o := s.want(1, s.run("verify", id, "--json"))
		if err := json.Unmarshal([]byte(o.stdout), &report); err != nil || len(report.Mismatches) != 1 {
			t.Fatalf("%v: %s", err, o.stdout)
		}
		found := report.Mismatches[0]
		if off < found.Offset || off >= found.Offset+found.Bytes {
			t.Errorf("byte %d was changed, found was %+v", off, found)
		}
		s.wantMessage(o, itoa(found.Offset))
		overwrite(t, s.path("moved"), off, []byte{at})
	}
	s.want(0, s.run("verify", id))
}

// placesIn are an offset of data and one in a hole.
func placesIn(t *testing.T, path string) (data, hole int64) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	data, err = unix.Seek(fd, 10*mib, unix.SEEK_DATA)
	if err != nil {
		t.Fatal(err)
	}
	hole, err = unix.Seek(fd, data, unix.SEEK_HOLE)
	if err != nil {
		t.Fatal(err)
	}
	return data + 77, hole + 77
}

// --dry-run looks at everything and changes nothing, whatever the answer is.
func TestDryRun(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 24*mib, 142, mixed)
	link(t, s.path("image"), s.path("second name"))
	makeImage(t, s.path("other"), 24*mib, 143, mixed)
	s.thinctl("pool", "create", "tank", "--dir", s.path("tank"), "--size", "1GiB")
	before := treeOf(t, s.dir)
	for _, test := range []struct {
		code int
		args []string
	}{
		{0, []string{s.path("other"), s.path("moved"), "--discard-src"}},
		{0, []string{s.path("other"), s.path("moved")}},
		{0, []string{s.path("other"), "tank/vm", "--discard-src"}},
		{4, []string{s.path("image"), s.path("moved"), "--discard-src"}},
		{4, []string{s.path("other"), s.path("image"), "--discard-src"}},
		{0, []string{s.path("other"), s.path("image"), "--overwrite"}},
		{4, []string{s.path("other"), "nosuchpool/vm"}},
	} {
		args := append([]string{"--dry-run"}, test.args...)
		s.want(test.code, s.run(args...))
		if test.code != 0 {
			continue
		}
		var plan struct {
			BytesTotal int64 `json:"bytes_total"`
			Space      struct {
				DataBytes   int64  `json:"data_bytes"`
				NeededBytes int64  `json:"needed_extra_bytes"`
				Verdict     string `json:"verdict"`
			} `json:"space"`
		}
		s.decode(&plan, append(args, "--json")...)
		if plan.BytesTotal != 24*mib || plan.Space.DataBytes <= 0 || plan.Space.NeededBytes <= 0 || plan.Space.Verdict == "" {
			t.Errorf("%v: %+v", args, plan)
		}
	}
	if diff := before.difference(treeOf(t, s.dir)); diff != "" {
		t.Errorf("a dry run changed something:\n%s", diff)
	}
	other := s.at(s.path("no state yet"))
	other.want(0, other.run("--dry-run", s.path("other"), s.path("moved"), "--discard-src"))
	if exists(other.state) {
		t.Error("a dry run has made a state directory")
	}
}

// fault 72: an image of 15 TiB of which hardly anything is data. It starts at once
// and takes little memory.
func TestFault72HugeSparseImage(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := newFileSystem(t, "xfs", 512*mib)
	const size = 15 << 40
	source, destination := sparse(t, dir+"/image", size), dir+"/moved"
	chunk := strings.Repeat("fifteen tebibytes of nothing. ", 100_000)[:2*mib]
	var places []int64
	for i := range int64(32) { // 64 MiB in all
		places = append(places, i*(size/32)+i*4096)
	}
	places = append(places, size-2*mib)
	for _, off := range places {
		overwrite(t, source, off, []byte(chunk))
	}
	begun := time.Now()
	r := s.startMove(source, destination, "--discard-src")
	r.await("copied bytes", func(e event) bool { return e.BytesCopied > 0 })
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("it took %v until something was copied", took)
	}
	o := s.want(0, r.wait())
	wantEvents(t, o, "done")
	t.Logf("%v, %d MiB of memory", o.elapsed.Round(time.Millisecond), o.peakRSSBytes/mib)
	if o.peakRSSBytes > 100*mib || o.peakRSSBytes == 0 {
		t.Errorf("it took %d bytes of memory", o.peakRSSBytes)
	}
	if got := sizeOf(t, destination); got != size {
		t.Errorf("the destination has %d bytes", got)
	}
	for _, off := range places {
		if readAt(t, destination, off, len(chunk)) != chunk {
			t.Errorf("the destination is wrong at %d", off)
		}
	}
	if got := allocated(t, destination); got > 80*mib {
		t.Errorf("the destination takes %d bytes", got)
	}
	if at := firstData(t, source); at >= 0 {
		t.Errorf("the source still holds something at %d", at)
	}
	// Looking at it, and the way back, are as quick.
	for _, args := range [][]string{{"list"}, {"show", o.last().ID}, {"reverse", o.last().ID}} {
		o := s.want(0, s.run(args...))
		t.Logf("%s: %v, %d MiB of memory", args[0], o.elapsed.Round(time.Millisecond), o.peakRSSBytes/mib)
		if o.peakRSSBytes > 100*mib || o.elapsed > 10*time.Second {
			t.Errorf("%v: %d bytes of memory, %v", args, o.peakRSSBytes, o.elapsed)
		}
	}
	if !slices.Equal(dataOf(t, source), places) {
		t.Error("the source has other places with data than before")
	}
}

func readAt(t *testing.T, path string, off int64, n int) string {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	data := make([]byte, n)
	if got, err := unix.Pread(fd, data, off); err != nil || got != n {
		t.Fatalf("read %s at %d: %d bytes, %v", path, off, got, err)
	}
	return string(data)
}

// dataOf is where the runs of data in a file begin.
func dataOf(t *testing.T, path string) (starts []int64) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for off := int64(0); ; {
		start, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err != nil {
			return starts // ENXIO: there is no more
		}
		starts = append(starts, start)
		if off, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
	}
}
