package api

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decant/api/client"
	"decant/service"
)

func slogTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func serveOn(t *testing.T, s *Server) *served {
	t.Helper()
	socket := filepath.Join(privateDir(t), "s")
	listener, err := ListenUnix(SocketConfig{Path: socket})
	if err != nil {
		t.Fatal(err)
	}
	v := &served{Server: s, t: t, socket: socket, log: &logBuffer{}, base: "http://localhost", header: http.Header{}, client: clientOf(socket)}
	v.run(listener)
	return v
}

// stream is an open event stream.
type stream struct {
	response *http.Response
	lines    *bufio.Reader
	cancel   context.CancelFunc
}

type streamed struct{ name, id, data, comment string }

func (v *served) openStream(t *testing.T, path string, header http.Header) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, v.base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		request.Header[name] = values
	}
	response, err := v.client.Do(request) //nolint:bodyclose // stream.close does
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	s := &stream{response, bufio.NewReader(response.Body), cancel}
	t.Cleanup(s.close)
	if response.StatusCode == http.StatusOK {
		if e := s.read(t); e.comment == "" {
			t.Errorf("the stream begins with %+v", e)
		}
	}
	return s
}

func (s *stream) close() {
	s.cancel()
	_ = s.response.Body.Close()
}

// read is the next block of the stream, also if it is only a comment.
func (s *stream) read(t *testing.T) (e streamed) {
	t.Helper()
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the stream ended: %v", err)
		}
		line = strings.TrimSuffix(line, "\n")
		field, value, _ := strings.Cut(line, ": ")
		switch field {
		case "event":
			e.name = value
		case "id":
			e.id = value
		case "data":
			e.data += value
		case "":
			if line == "" {
				return e
			}
			e.comment = value
		}
	}
}

// next is the next event.
func (s *stream) next(t *testing.T) streamed {
	t.Helper()
	for {
		if e := s.read(t); e.name != "" {
			return e
		}
	}
}

func event(id string, kind service.EventKind, copied int64) service.Event {
	return service.Event{Event: kind, ID: id, BytesCopied: copied}
}

func TestStreamTellsEventsInOrderAndGoesOn(t *testing.T) {
	f := newFake()
	v := serveUnix(t, fakeConfig(f))
	for i := range int64(5) {
		f.say(event("aa11", service.Progress, i))
	}
	s := v.openStream(t, "/v1/migrations/aa/events", http.Header{"Last-Event-Id": {"3"}})
	if kind := s.response.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Errorf("content type %q", kind)
	}
	f.say(event("bb22", service.Progress, 99))
	f.say(event("aa11", service.DoneEvent, 5))
	for i, want := range []streamed{{"progress", "4", `"bytes_copied":3`, ""}, {"progress", "5", `"bytes_copied":4`, ""}, {"done", "7", `"bytes_copied":5`, ""}} {
		if e := s.next(t); e.name != want.name || e.id != want.id || !strings.Contains(e.data, want.data) {
			t.Errorf("event %d is %+v, want %+v", i, e, want)
		}
	}
	all := v.openStream(t, "/v1/events?after=5", nil)
	if e := all.next(t); e.id != "6" || !strings.Contains(e.data, "bb22") {
		t.Errorf("the stream of all has %+v", e)
	}
	if want := []string{"aa11 3", " 5"}; fmt.Sprint(f.subscribe) != fmt.Sprint(want) {
		t.Errorf("subscriptions %q, want %q", f.subscribe, want)
	}
	if r := v.do("GET", "/v1/migrations/zz/events", ""); r.status != 404 {
		t.Errorf("events of no migration: %d", r.status)
	}
}

func TestNewStreamTellsWhatIsToCome(t *testing.T) {
	f := newFake()
	v := serveUnix(t, fakeConfig(f))
	f.say(event("aa11", service.Progress, 1))
	s := v.openStream(t, "/v1/events", nil)
	f.say(event("aa11", service.Progress, 2))
	if e := s.next(t); e.id != "2" {
		t.Errorf("the first event is %+v", e)
	}
}

func TestStreamTellsOfGaps(t *testing.T) {
	f := newFake()
	f.missed = true
	v := serveUnix(t, fakeConfig(f))
	f.say(event("aa11", service.Progress, 1))
	s := v.openStream(t, "/v1/events?after=0", nil)
	if e := s.next(t); e.name != client.GapEvent || e.id != "" {
		t.Errorf("after a restart: %+v", e)
	}
	f.mu.Lock()
	f.gapAfter, f.missed = 1, false
	f.mu.Unlock()
	for _, want := range []string{"progress", client.GapEvent, "progress"} {
		if e := s.next(t); e.name != want {
			t.Errorf("%+v, want %s", e, want)
		}
		f.say(event("aa11", service.Progress, 2))
	}
}

func TestStreamHasAHeartbeat(t *testing.T) {
	c := fakeConfig(newFake())
	c.Heartbeat = time.Millisecond
	v := serveUnix(t, c)
	s := v.openStream(t, "/v1/events", nil)
	for range 3 {
		if e := s.read(t); e.comment == "" {
			t.Errorf("%+v is no heartbeat", e)
		}
	}
}

// fault 92: event-stream hoarders.
func TestStreamsAreBounded(t *testing.T) {
	f := newFake()
	c := fakeConfig(f)
	c.MostSubscribers = 3
	v := serveUnix(t, c)
	var streams []*stream
	for range 3 {
		streams = append(streams, v.openStream(t, "/v1/events", nil))
	}
	r := v.do("GET", "/v1/events", "")
	if p := r.problem(t); p.Status != 429 || r.header.Get("Retry-After") == "" || p.Hint == "" {
		t.Errorf("one too many got %d %+v", r.status, p)
	}
	if r := v.do("GET", "/healthz", ""); r.status != 200 {
		t.Errorf("other requests get %d", r.status)
	}
	streams[0].close()
	waitUntil(t, "the place is free again", func() bool { return f.readersNow() == 2 })
	again := v.openStream(t, "/v1/events", nil)
	if again.response.StatusCode != http.StatusOK {
		t.Errorf("after one has left: %d", again.response.StatusCode)
	}
}

func TestStreamsEndWithTheServer(t *testing.T) {
	f := newFake()
	v := serveUnix(t, fakeConfig(f))
	s := v.openStream(t, "/v1/events", nil)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := v.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s.lines); err != nil {
		t.Errorf("the stream broke: %v", err)
	}
	if f.readersNow() != 0 {
		t.Error("a subscription is left")
	}
}

func TestStreamsEndWhenNoMoreEventsCome(t *testing.T) {
	f := newFake()
	v := serveUnix(t, fakeConfig(f))
	s := v.openStream(t, "/v1/events", nil)
	f.mu.Lock()
	f.ended = true
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	if _, err := io.ReadAll(s.lines); err != nil {
		t.Errorf("the stream broke: %v", err)
	}
}

// waitUntil waits for something that another goroutine brings about.
func waitUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
