package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/service"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestMain is the program itself when a test starts this binary again with
// DECANT_MIGRATE_FAKE, which names what its service does.
func TestMain(m *testing.M) {
	if behaviour := os.Getenv("DECANT_MIGRATE_FAKE"); behaviour != "" {
		p := newProgram(func(string) (migrations, error) {
			return &fakeService{run: fakeRuns[behaviour]}, nil
		})
		os.Exit(p.run(os.Args[1:]))
	}
	if os.Getenv("DECANT_MIGRATE_REAL") != "" { // the program as it is
		os.Exit(newProgram(openService).run(os.Args[1:]))
	}
	time.Local = time.UTC // golden files hold times
	// A service of this machine is none of the tests' business.
	if err := errors.Join(os.Setenv(serviceVariable, noService), keepOnDisk()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// keepOnDisk has temporary directories where journals can be, which is not in memory.
func keepOnDisk() error {
	if journal.CheckFileSystem(os.TempDir()) == nil {
		return nil
	}
	return errors.Join(journal.CheckFileSystem("/var/tmp"), os.Setenv("TMPDIR", "/var/tmp"))
}

// fakeService answers with what it was given, and notes what it was asked.
type fakeService struct {
	calls   []string
	request service.Request

	run       func(context.Context, service.Sink) error // of Migrate, Resume, Reverse and Verify
	err       error                                     // of everything else
	plan      service.Plan
	list      []service.Summary
	detail    service.Detail
	cells     int
	explained service.Explanation
	verified  service.VerifyReport
}

func (f *fakeService) note(format string, args ...any) {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeService) work(ctx context.Context, sink service.Sink) error {
	if f.run == nil {
		return f.err
	}
	return f.run(ctx, sink)
}

func (f *fakeService) Plan(_ context.Context, request service.Request) (service.Plan, error) {
	f.note("plan %s %s", request.Source, request.Destination)
	f.request = request
	return f.plan, f.err
}

func (f *fakeService) Migrate(ctx context.Context, request service.Request, sink service.Sink) error {
	f.note("migrate %s %s", request.Source, request.Destination)
	f.request = request
	return f.work(ctx, sink)
}

func (f *fakeService) Resume(ctx context.Context, id string, sink service.Sink) error {
	f.note("resume %s", id)
	return f.work(ctx, sink)
}

func (f *fakeService) Reverse(ctx context.Context, id string, sink service.Sink) error {
	f.note("reverse %s", id)
	return f.work(ctx, sink)
}

func (f *fakeService) Verify(ctx context.Context, id string, sink service.Sink) (service.VerifyReport, error) {
	f.note("verify %s", id)
	return f.verified, f.work(ctx, sink)
}

func (f *fakeService) Pause(_ context.Context, id string) error {
	f.note("pause %s", id)
	return f.err
}

func (f *fakeService) Cancel(_ context.Context, id string) error {
	f.note("cancel %s", id)
	return f.err
}

func (f *fakeService) List() ([]service.Summary, error) {
	f.note("list")
	return f.list, f.err
}

func (f *fakeService) Show(id string, cells int) (service.Detail, error) {
	f.note("show %s", id)
	f.cells = cells
	return f.detail, f.err
}

func (f *fakeService) Explain(id string, offset int64) (service.Explanation, error) {
	f.note("explain %s %d", id, offset)
	return f.explained, f.err
}

// world is a program whose streams are kept, without terminals unless columns says
// otherwise.
type world struct {
	*program
	fake     *fakeService
	out, err bytes.Buffer
	stateDir string
}

func newWorld(fake *fakeService) *world {
	w := &world{fake: fake}
	w.program = &program{
		stdout: &w.out, stderr: &w.err,
		stdoutColumns: func() int { return 0 },
		stderrColumns: func() int { return 0 },
		unicode:       true,
		openService: func(stateDir string) (migrations, error) {
			w.stateDir = stateDir
			return fake, nil
		},
		exitAtOnce:  func(int) { panic("exit at once") },
		serveSafely: func() {},
	}
	return w
}

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew); got:\n%s\nwant:\n%s", path, got, want)
	}
}

// The runs that a program started by a test can be told to make.
var fakeRuns = map[string]func(context.Context, service.Sink) error{
	"until-stopped": runUntilStopped,
	"stuck": func(_ context.Context, sink service.Sink) error {
		sink(scripted(service.Started, 0))
		select {}
	},
	"chatter":    runChatter,
	"file-limit": runFileLimit,
	"short":      runShort,
	"until-told": runUntilTold,
}

// runUntilStopped works until its context ends, and stops as the service does.
func runUntilStopped(ctx context.Context, sink service.Sink) error {
	sink(scripted(service.Started, 0))
	<-ctx.Done()
	time.Sleep(50 * time.Millisecond) // a commit
	sink(scripted(service.StoppedRun, 10))
	return &service.Error{Outcome: service.Stopped, Object: "m1", Problem: "stopped", Hint: "the same command goes on", Err: context.Cause(ctx)}
}

// runChatter sends many events over some time, whatever becomes of its readers,
// and then makes the file that DECANT_MIGRATE_FILE names.
func runChatter(ctx context.Context, sink service.Sink) error {
	sink(scripted(service.Started, 0))
	for i := range 200 {
		if ctx.Err() != nil {
			return &service.Error{Outcome: service.Stopped, Problem: "stopped", Err: context.Cause(ctx)}
		}
		e := scripted(service.Warning, i/2)
		e.Message = strings.Repeat("x", 1000)
		sink(e)
		time.Sleep(time.Millisecond)
	}
	sink(scripted(service.DoneEvent, 100))
	return os.WriteFile(os.Getenv("DECANT_MIGRATE_FILE"), []byte("whole"), 0o600)
}

// runFileLimit fails as a journal does that grows beyond RLIMIT_FSIZE.
func runFileLimit(_ context.Context, sink service.Sink) error {
	sink(scripted(service.Started, 0))
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4096, Max: 4096}); err != nil {
		return err
	}
	err := os.WriteFile(os.Getenv("DECANT_MIGRATE_FILE"), make([]byte, 8192), 0o600)
	if !errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("a write beyond the limit gave %w", err)
	}
	return &service.Error{Outcome: service.Stopped, Problem: "the journal cannot grow", Err: err}
}

func runShort(_ context.Context, sink service.Sink) error {
	sink(scripted(service.Started, 0))
	for percent := range 100 {
		sink(scripted(service.Progress, percent))
		time.Sleep(2 * time.Millisecond)
	}
	sink(scripted(service.DoneEvent, 100))
	return nil
}

// runUntilTold ends when the file that DECANT_MIGRATE_FILE names is there, and not
// because its context does.
func runUntilTold(_ context.Context, sink service.Sink) error {
	sink(scripted(service.Started, 0))
	for {
		if _, err := os.Stat(os.Getenv("DECANT_MIGRATE_FILE")); err == nil {
			sink(scripted(service.DoneEvent, 100))
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// gib is the size of the scripted migration's data.
const gib = 1 << 30

// scripted is an event of a migration of 2 GiB that holds 1 GiB of data, of which
// this percentage is copied, at 64 MiB/s.
func scripted(kind service.EventKind, percentCopied int) service.Event {
	copied := (int64(percentCopied)*gib + 99) / 100 // so that it is not a little less
	left := float64(gib-copied) / (64 << 20)
	e := service.Event{
		Event: kind, ID: "m1", Phase: "hydrating",
		Time:       time.Date(2030, 1, 2, 3, 4, percentCopied%60, 0, time.UTC),
		BytesTotal: 2 * gib, BytesData: gib,
		BytesCopied: copied, BytesCommitted: copied, BytesDiscarded: copied / 2,
		RateBytesPerSecond: 64 << 20, ETASeconds: &left,
		Transaction: uint64(percentCopied), PeakExtraBytes: 128 << 20,
	}
	switch kind {
	case service.Started:
		e.Source, e.Destination = "/images/a.raw", "pool/a"
	case service.DoneEvent:
		elapsed, freed := 16.4, int64(gib)
		e.Phase, e.ElapsedSeconds, e.SourceFreedBytes = "done", &elapsed, &freed
	case service.StoppedRun, service.FailedEvent:
		e.Reason, e.Hint = "interrupted", "the same command goes on"
	}
	return e
}

// resumed is the start of a run that finds this percentage copied.
func resumed(percentCopied int) service.Event {
	e := scripted(service.Started, percentCopied)
	e.Resumed, e.RateBytesPerSecond, e.ETASeconds = true, 0, nil
	return e
}
