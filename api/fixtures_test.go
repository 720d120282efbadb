package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"decant/api/client"
	"decant/journal"
	"decant/service"
)

func TestMain(m *testing.M) {
	if os.Getenv("DECANT_API_STRANGER") != "" {
		os.Exit(beStranger())
	}
	// Journals are refused in memory.
	if err := journal.CheckFileSystem(os.TempDir()); err != nil {
		if err := errors.Join(journal.CheckFileSystem("/var/tmp"), os.Setenv("TMPDIR", "/var/tmp")); err != nil {
			fmt.Fprintln(os.Stderr, "no temporary directory is on a disk, set TMPDIR:", err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// fakeManager answers with what it was given, and notes what it was asked.
type fakeManager struct {
	mu      sync.Mutex
	calls   []string
	request service.Request
	start   service.StartOptions
	tuning  service.Tuning
	cancel  service.CancelOptions

	err      error
	statuses []service.Status
	detail   service.Detail
	pools    []service.PoolStatus
	metrics  service.Metrics
	plan     service.Plan
	planErr  error

	events    []service.SequencedEvent
	changed   chan struct{}
	ended     bool
	missed    bool
	gapAfter  uint64 // the reader that has seen this number is told of a gap, once
	readers   int
	subscribe []string
}

func newFake() *fakeManager {
	return &fakeManager{
		changed:  make(chan struct{}),
		statuses: []service.Status{{Summary: service.Summary{ID: "aa11", Source: "/a", Destination: "/b", Phase: "running"}, State: "running"}},
		detail:   service.Detail{Summary: service.Summary{ID: "aa11", BytesTotal: 8 << 20, RegionBytes: 1 << 20, Regions: 8}, Journal: "/state/aa11.db"},
	}
}

func (f *fakeManager) note(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fakeManager) noted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.calls...)
}

func (f *fakeManager) one(id string, err error) (service.Status, error) {
	if err != nil {
		return service.Status{}, err
	}
	for _, s := range f.statuses {
		if strings.HasPrefix(s.ID, id) {
			return s, nil
		}
	}
	return service.Status{}, unknownID(id)
}

func (f *fakeManager) Start(_ context.Context, r service.Request, o service.StartOptions) (service.Status, error) {
	err := f.note("start %s %s", r.Source, r.Destination)
	f.mu.Lock()
	f.request, f.start = r, o
	f.mu.Unlock()
	return f.one("", err)
}

func (f *fakeManager) List() ([]service.Status, error) { return f.statuses, f.note("list") }

func (f *fakeManager) Status(id string) (service.Status, error) { return f.one(id, f.err) }

func (f *fakeManager) Show(id string, cells int) (service.Detail, error) {
	err := f.note("show %s %d", id, cells)
	d := f.detail
	for range min(cells, int(d.Regions)) {
		d.Map = append(d.Map, service.Cell{State: "hydrated", Hydrated: 1})
	}
	return d, err
}

func (f *fakeManager) Pause(_ context.Context, id string) (service.Status, error) {
	return f.one(id, f.note("pause %s", id))
}

func (f *fakeManager) Resume(_ context.Context, id string) (service.Status, error) {
	return f.one(id, f.note("resume %s", id))
}

func (f *fakeManager) Reverse(_ context.Context, id string) (service.Status, error) {
	return f.one(id, f.note("reverse %s", id))
}

func (f *fakeManager) Verify(_ context.Context, id string) (service.Status, error) {
	return f.one(id, f.note("verify %s", id))
}

func (f *fakeManager) Cancel(_ context.Context, id string, o service.CancelOptions) (service.Status, error) {
	err := f.note("cancel %s", id)
	f.mu.Lock()
	f.cancel = o
	f.mu.Unlock()
	return f.one(id, err)
}

func (f *fakeManager) Tune(_ context.Context, id string, t service.Tuning) (service.Status, error) {
	err := f.note("tune %s", id)
	f.mu.Lock()
	f.tuning = t
	f.mu.Unlock()
	return f.one(id, err)
}

func (f *fakeManager) Pools(context.Context) ([]service.PoolStatus, error) {
	return f.pools, f.note("pools")
}
func (f *fakeManager) Metrics() service.Metrics { return f.metrics }

func (f *fakeManager) Plan(_ context.Context, r service.Request) (service.Plan, error) {
	_ = f.note("plan %s %s", r.Source, r.Destination)
	return f.plan, f.planErr
}

func (f *fakeManager) Explain(id string, offset int64) (service.Explanation, error) {
	return service.Explanation{ID: id, Offset: offset, State: "hydrated"}, f.note("explain %s %d", id, offset)
}

// say appends an event.
func (f *fakeManager) say(e service.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, service.SequencedEvent{Sequence: uint64(len(f.events) + 1), Event: e})
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeManager) Subscribe(id string, after uint64) (Events, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subscribe = append(f.subscribe, fmt.Sprintf("%s %d", id, after))
	if f.err != nil {
		return nil, f.err
	}
	f.readers++
	e := &fakeEvents{f: f, id: id, after: after, missed: f.missed}
	if after == service.FromNow {
		e.after = uint64(len(f.events))
	}
	return e, nil
}

func (f *fakeManager) readersNow() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readers
}

type fakeEvents struct {
	f      *fakeManager
	id     string
	after  uint64
	missed bool
}

func (e *fakeEvents) Missed() bool { return e.missed }

func (e *fakeEvents) Close() {
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	e.f.readers--
}

func (e *fakeEvents) Next(ctx context.Context) (service.SequencedEvent, error) {
	for {
		e.f.mu.Lock()
		changed, ended := e.f.changed, e.f.ended
		if e.f.gapAfter != 0 && e.after == e.f.gapAfter {
			e.f.gapAfter = 0
			e.f.mu.Unlock()
			return service.SequencedEvent{}, service.ErrGap
		}
		for _, s := range e.f.events {
			if s.Sequence > e.after && (e.id == "" || e.id == s.Event.ID) {
				e.after = s.Sequence
				e.f.mu.Unlock()
				return s, nil
			}
		}
		e.f.mu.Unlock()
		if ended {
			return service.SequencedEvent{}, service.ErrEventsEnded
		}
		select {
		case <-ctx.Done():
			return service.SequencedEvent{}, ctx.Err()
		case <-changed:
		}
	}
}

// served is a server on a Unix socket, with a client to it.
type served struct {
	*Server
	t      *testing.T
	socket string
	client *http.Client
	log    *logBuffer
	base   string
	header http.Header
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newServer(t *testing.T, c Config) (*Server, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	c.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if c.StateDir == "" {
		c.StateDir = "/state"
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s, log
}

func fakeConfig(f *fakeManager) Config { return Config{Manager: f, Version: "test"} }

// serveUnix serves on a socket in a directory of the test.
func serveUnix(t *testing.T, c Config) *served {
	t.Helper()
	s, log := newServer(t, c)
	socket := filepath.Join(privateDir(t), "s")
	listener, err := ListenUnix(SocketConfig{Path: socket, Log: s.log})
	if err != nil {
		t.Fatal(err)
	}
	v := &served{Server: s, t: t, socket: socket, log: log, base: "http://localhost", header: http.Header{}}
	v.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	v.run(listener)
	return v
}

// privateDir is a directory that ListenUnix takes: t.TempDir's may let a group write.
func privateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (v *served) run(listener net.Listener) {
	done := make(chan error, 1)
	go func() { done <- v.Serve(listener) }()
	v.t.Cleanup(func() {
		v.client.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := v.Shutdown(ctx); err != nil {
			v.t.Error(err)
		}
		if err := <-done; err != nil {
			v.t.Error(err)
		}
	})
}

type reply struct {
	status int
	header http.Header
	body   string
}

// do makes one request; a body is sent as JSON.
func (v *served) do(method, path, body string) reply {
	v.t.Helper()
	header := v.header.Clone()
	if method != http.MethodGet && header.Get("Content-Type") == "" {
		header.Set("Content-Type", "application/json")
	}
	return v.send(method, path, strings.NewReader(body), header)
}

func (v *served) send(method, path string, body io.Reader, header http.Header) reply {
	v.t.Helper()
	request, err := http.NewRequest(method, v.base+path, body)
	if err != nil {
		v.t.Fatal(err)
	}
	if host := header.Get("Host"); host != "" {
		request.Host = host
	}
	for name, values := range header {
		request.Header[name] = values
	}
	response, err := v.client.Do(request)
	if err != nil {
		v.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		v.t.Fatalf("%s %s: %v", method, path, err)
	}
	return reply{response.StatusCode, response.Header, string(text)}
}

// problem is the problem that a reply is.
func (r reply) problem(t *testing.T) client.Problem {
	t.Helper()
	if kind := r.header.Get("Content-Type"); kind != client.ProblemType {
		t.Fatalf("status %d with content type %q: %s", r.status, kind, r.body)
	}
	var p client.Problem
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		t.Fatal(err)
	}
	if p.Status != r.status {
		t.Errorf("the problem says %d, the status line %d", p.Status, r.status)
	}
	return p
}

func decode[T any](t *testing.T, r reply) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Fatalf("%v in %d %s", err, r.status, r.body)
	}
	return v
}

func unknownID(id string) error {
	return &service.Error{Outcome: service.Refused, Object: id, Problem: "no such migration", Hint: "list them", Err: service.ErrUnknownMigration}
}

func tooMany() error {
	return &service.Error{Outcome: service.Refused, Problem: "limit", Hint: "later", Err: service.ErrTooMany}
}
