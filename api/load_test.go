package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"decant/service"
)

// fault 92: a reader that does not read is left, and holds nothing.
func TestSlowReadersAreLeft(t *testing.T) {
	f := newFake()
	s, _ := newServer(t, fakeConfig(f))
	s.patience = 50 * time.Millisecond
	v := serveOn(t, s)
	slow := v.openStream(t, "/v1/events?after=0", nil)
	quick := v.openStream(t, "/v1/events?after=0", nil)
	const events = 5000
	go func() {
		for i := range events {
			f.say(service.Event{Event: service.Progress, ID: "aa11", BytesCopied: int64(i), Message: strings.Repeat("x", 200)})
		}
	}()
	for range events { // more than the buffers between the two take
		quick.next(t)
	}
	waitUntil(t, "the slow reader was left", func() bool { return f.readersNow() == 1 })
	_ = slow.response.Body.Close()
}

// loaded is a real manager with migrations on their way, served.
type loaded struct {
	*served
	manager *service.Manager
	dir     string
	end     func()
}

func newLoaded(t *testing.T) *loaded {
	t.Helper()
	dir := t.TempDir()
	core, err := service.New(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := service.NewManager(core, service.ManagerConfig{Running: 4, RunningPerDisk: 4})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	l := &loaded{manager: m, dir: dir, end: sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})}
	t.Cleanup(func() { l.end() })
	l.served = serveUnix(t, Config{Manager: ManagerOf(m), StateDir: core.StateDir(), Version: "test", MostSubscribers: 120})
	return l
}

// move begins a migration of a new image over the API.
func (l *loaded) move(i int) (id string, content []byte) {
	l.t.Helper()
	content = make([]byte, 3<<20)
	r := rand.New(rand.NewPCG(uint64(i), 1))
	for i := range content {
		content[i] = byte(1 + r.IntN(255))
	}
	source := filepath.Join(l.dir, fmt.Sprintf("image%d", i))
	if err := os.WriteFile(source, content, 0o600); err != nil {
		l.t.Fatal(err)
	}
	answer := l.do("POST", "/v1/migrations", fmt.Sprintf(`{"source":%q,"destination":%q,"options":{
		"discard_src":true,"region_size":"64KiB","commit_period":"5ms","commit_bytes":"256KiB","bwlimit":"1MiB/s"}}`, source, source+".moved"))
	if answer.status != http.StatusAccepted {
		l.t.Fatalf("%d %s", answer.status, answer.body)
	}
	return decode[service.Status](l.t, answer).ID, content
}

// client does what a client does, again and again.
func (l *loaded) client(i int, ids []string, deadline time.Time, requests *atomic.Int64) error {
	transport := clientOf(l.socket)
	defer transport.CloseIdleConnections()
	for n := i; time.Now().Before(deadline); n++ {
		id := ids[n%len(ids)]
		paths := []string{"/v1/migrations", "/v1/migrations/" + id, "/v1/migrations/" + id + "/map?cells=64", "/v1/pools", "/metrics", "/healthz", "/v1/migrations/nosuch", "/v1/x"}
		path := paths[n%len(paths)]
		response, err := transport.Get("http://localhost" + path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		_, err = io.Copy(io.Discard, response.Body)
		if err = errors.Join(err, response.Body.Close()); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		isBusy := path == "/metrics" && response.StatusCode == http.StatusServiceUnavailable // few scrapes at a time
		if response.StatusCode >= 500 && !isBusy {
			return fmt.Errorf("%s: %s", path, response.Status)
		}
		requests.Add(1)
	}
	return nil
}

// fault 92: 200 clients and 120 readers of events, half of whom do not read, while
// migrations run. All migrations end whole, memory stays bounded, and when it is over
// no goroutine is left (TestMain sees to that).
func TestManyClientsWhileMigrationsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("keeps the machine busy for some seconds")
	}
	l := newLoaded(t)
	before := heap()
	var ids []string
	contents := map[string][]byte{}
	for i := range 4 {
		id, content := l.move(i)
		ids = append(ids, id)
		contents[id] = content
	}
	var streams []*stream
	for i := range 120 {
		s := l.openStream(t, "/v1/events?after=0", nil)
		streams = append(streams, s)
		if i%2 == 0 {
			go func() { _, _ = io.Copy(io.Discard, s.lines) }() // until the test closes it
		}
	}
	if r := l.do("GET", "/v1/events", ""); r.status != http.StatusTooManyRequests {
		t.Errorf("one more reader got %d", r.status)
	}
	var clients sync.WaitGroup
	var requests atomic.Int64
	deadline := time.Now().Add(4 * time.Second)
	for i := range 200 {
		clients.Go(func() {
			if err := l.client(i, ids, deadline, &requests); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	if most := before + 96<<20; heap() > most {
		t.Errorf("the heap has grown from %d to %d bytes", before, heap())
	}
	for _, id := range ids {
		waitUntil(t, id+" is done", func() bool {
			status, err := l.manager.Status(id)
			return err == nil && status.State == service.StateDone
		})
	}
	for i, id := range ids {
		moved, err := os.ReadFile(filepath.Join(l.dir, fmt.Sprintf("image%d.moved", i)))
		if err != nil || !bytes.Equal(moved, contents[id]) {
			t.Errorf("%s is not whole: %v", id, err)
		}
	}
	for _, s := range streams {
		s.close()
	}
	waitUntil(t, "all readers are gone", func() bool { return l.manager.Metrics().Subscribers == 0 })
	t.Logf("%d requests", requests.Load())
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
