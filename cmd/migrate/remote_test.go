package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"decant/api"
	"decant/api/client"
	"decant/service"
)

// house is a real service on a state directory, with its API on a socket.
type house struct {
	*testing.T
	dir, state, socket string
	end                func()
	log                bytes.Buffer
}

func newHouse(t *testing.T) *house {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &house{T: t, dir: dir, state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "s")}
	h.open()
	t.Cleanup(func() { h.end() })
	return h
}

// open starts the service; h.end stops it as a SIGTERM would.
func (h *house) open() {
	h.Helper()
	s, err := service.New(h.state)
	h.must(err)
	m, err := service.NewManager(s, service.ManagerConfig{Log: slog.New(slog.NewTextHandler(&lockedBuffer{b: &h.log}, nil))})
	h.must(err)
	server, err := api.New(api.Config{Manager: api.ManagerOf(m), StateDir: s.StateDir(), Version: "test"})
	h.must(err)
	listener, err := api.ListenUnix(api.SocketConfig{Path: h.socket})
	h.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(listener); err != nil {
			h.Error(err)
		}
	})
	running.Go(func() {
		if err := m.Run(ctx); err != nil {
			h.Error(err)
		}
	})
	h.end = sync.OnceFunc(func() {
		cancel()
		closing, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		if err := server.Shutdown(closing); err != nil {
			h.Error(err)
		}
		running.Wait()
	})
}

func (h *house) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  *bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (h *house) path(name string) string { return filepath.Join(h.dir, name) }

// image makes a file of random bytes.
func (h *house) image(name string, n int) []byte {
	h.Helper()
	content := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range content {
		content[i] = byte(1 + r.IntN(255))
	}
	h.must(os.WriteFile(h.path(name), content, 0o600))
	return content
}

// command is a program in a world whose service this is.
func (h *house) command() *world {
	w := newWorld(nil)
	w.openService, w.find = openService, w.findService
	return w
}

// run runs one command line; it has to end with the code.
func (h *house) run(code int, args ...string) *world {
	h.Helper()
	w := h.command()
	if got := w.run(append([]string{"--service", h.socket}, args...)); got != code {
		h.Errorf("migrate %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, w.out.String(), w.err.String())
	}
	return w
}

// detach hands a migration over and returns its ID.
func (h *house) detach(args ...string) string {
	h.Helper()
	w := h.run(0, append([]string{"--detach"}, args...)...)
	id := strings.TrimSpace(w.out.String())
	if len(id) != 8 || w.out.String() != id+"\n" {
		h.Fatalf("--detach wrote %q, %s", w.out.String(), w.err.String())
	}
	return id
}

func (h *house) client() *client.Client {
	h.Helper()
	c, err := client.New(h.socket, "")
	h.must(err)
	h.Cleanup(c.Close)
	return c
}

// await waits until a migration has a state.
func (h *house) await(id string, state service.State) client.Migration {
	h.Helper()
	c := h.client()
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		m, err := c.Get(h.Context(), id, 0)
		h.must(err)
		if m.State == state {
			return m
		}
		if time.Since(begun) > 30*time.Second {
			h.Fatalf("%s is %s (%s), want %s", id, m.State, m.Reason, state)
		}
	}
}

func (h *house) wantContent(name string, want []byte) {
	h.Helper()
	got, err := os.ReadFile(h.path(name))
	if err != nil || !bytes.Equal(got, want) {
		h.Errorf("%s is not what was moved: %d bytes, %v", name, len(got), err)
	}
}

// slow are options of a migration that is on its way for long enough to be steered.
var slow = []string{"--discard-src", "--region-size", "64KiB", "--commit-period", "10ms", "--commit-bytes", "256KiB", "--bwlimit", "2MiB/s"}

// crawling are options of a migration that no test waits for, unless it has lifted the
// limit: on a machine that is busy with other things it is on its way for long enough.
var crawling = append(slices.Clone(slow), "--bwlimit", "128KiB/s")

// hurry lifts the limit of a migration.
func (h *house) hurry(id string) {
	h.Helper()
	_, err := h.client().Tune(h.Context(), id, client.Tuning{BWLimit: new(client.Rate)})
	h.must(err)
}

func TestDetachedMigrationIsDoneByTheService(t *testing.T) {
	h := newHouse(t)
	content := h.image("image", 2<<20)
	t.Chdir(h.dir)
	h.must(os.Symlink("image", "link"))
	id := h.detach("--discard-src", "link", "./moved") // relative, and through a link
	h.await(id, service.StateDone)
	h.wantContent("moved", content)

	for _, test := range []struct{ args, want string }{
		{"list", "done"},
		{"list --json", `"state": "done"`},
		{"show " + id, "Phase        done"},
		{"show --json " + id[:4], `"journal": "` + h.state},
		{"explain " + id + " 1MiB", "discarded"},
		{"verify " + id, "0 mismatches"},
		{"verify --json " + id, `"mismatch_regions": 0`},
	} {
		if w := h.run(0, strings.Fields(test.args)...); !strings.Contains(w.out.String(), test.want) {
			t.Errorf("migrate %s: %q, want %q", test.args, w.out.String(), test.want)
		}
	}
	// Completion offers what the service knows.
	w := h.command()
	if w.run([]string{"__complete", "--service", h.socket, "show", ""}) != 0 || !strings.Contains(w.out.String(), id) {
		t.Errorf("completion: %s", w.out.String())
	}
}

func TestServiceIsSteeredFromTheCommandLine(t *testing.T) {
	h := newHouse(t)
	content := h.image("image", 4<<20)
	id := h.detach(append(crawling, h.path("image"), h.path("moved"))...)
	h.await(id, service.StateRunning)
	if w := h.run(0, "pause", id); !strings.Contains(w.err.String(), "paused "+id) {
		t.Errorf("pause: %s", w.err.String())
	}
	if m := h.await(id, service.StatePaused); m.Hydrated == m.Regions {
		t.Fatal("it was done before it was paused")
	}
	for args, want := range map[string]string{"list": "forward, paused", "show " + id: "forward, paused"} {
		if w := h.run(0, strings.Fields(args)...); !strings.Contains(w.out.String(), want) {
			t.Errorf("migrate %s: %q, want %q", args, w.out.String(), want)
		}
	}
	h.run(4, "verify", "nosuchid")
	h.hurry(id)
	w := h.run(0, "resume", "--progress=json", id)
	var last service.Event
	for line := range strings.Lines(w.out.String()) {
		h.must(json.Unmarshal([]byte(line), &last))
	}
	if last.Event != service.DoneEvent || last.ID != id {
		t.Errorf("the last event is %+v", last)
	}
	h.wantContent("moved", content)
	if w := h.run(0, "reverse", "--progress=plain", id); !strings.Contains(w.err.String(), "done") {
		t.Errorf("reverse: %s", w.err.String())
	}
	h.wantContent("image", content)
	if m := h.await(id, service.StateReversed); m.Direction != "backward" {
		t.Errorf("%+v", m)
	}
	h.run(4, "resume", id)
}

// fault 95: a migration of which something was freed on the source is not given up.
func TestCancelThroughTheService(t *testing.T) {
	h := newHouse(t)
	content := h.image("image", 4<<20)
	id := h.detach(append(crawling, h.path("image"), h.path("moved"))...)
	for h.await(id, service.StateRunning).Discarded == 0 {
		time.Sleep(time.Millisecond)
	}
	if w := h.run(4, "cancel", id); !strings.Contains(w.err.String(), "migrate reverse") {
		t.Errorf("cancel: %s", w.err.String())
	}
	if m := h.await(id, service.StateRunning); m.Direction != "forward" {
		t.Errorf("it no longer goes on: %+v", m)
	}
	h.run(0, "pause", id)

	untouched := h.image("other", 1<<20)
	args := append([]string{"--threshold", "1"}, crawling[1:]...)
	kept := h.detach(append(args, h.path("other"), h.path("kept"))...)
	h.run(0, "cancel", kept)
	h.await(kept, service.StateCancelled)
	h.wantContent("other", untouched)
	if _, err := os.Stat(h.path("kept")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the destination of what was cancelled: %v", err)
	}
	h.hurry(id)
	h.run(0, "resume", "--progress=none", id)
	h.wantContent("moved", content)
}

func TestWatchingSurvivesARestartOfTheService(t *testing.T) {
	h := newHouse(t)
	content := h.image("image", 6<<20)
	id := h.detach(append(crawling, h.path("image"), h.path("moved"))...)
	h.run(0, "pause", id)
	w := h.command()
	ended := make(chan int)
	go func() { ended <- w.run([]string{"--service", h.socket, "resume", "--progress=plain", id}) }()
	before := h.await(id, service.StateRunning)
	for h.await(id, service.StateRunning).Transaction <= before.Transaction {
		time.Sleep(time.Millisecond)
	}
	h.end()
	h.open()
	h.hurry(id)
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d: %s\nthe service said: %s", code, w.err.String(), h.log.String())
	}
	for _, want := range []string{"the service is gone", "the service is back", "done"} {
		if !strings.Contains(w.err.String(), want) {
			t.Errorf("standard error does not say %q: %s", want, w.err.String())
		}
	}
	h.wantContent("moved", content)
}

func TestTheRightServiceIsFound(t *testing.T) {
	h := newHouse(t)
	h.image("image", 1<<20)
	h.await(h.detach(h.path("image"), h.path("moved")), service.StateDone)

	// Named, and on another state directory: that cannot be meant.
	if w := h.run(2, "--state-dir", h.path("elsewhere"), "list"); !strings.Contains(w.err.String(), "--state-dir "+h.state) {
		t.Errorf("another state directory: %s", w.err.String())
	}
	link := h.path("link")
	h.must(os.Symlink(h.state, link))
	if w := h.run(0, "--state-dir", link, "list"); !strings.Contains(w.out.String(), "done") {
		t.Errorf("the same one under another name: %s", w.out.String())
	}
	// By the environment, and switched off.
	t.Setenv(serviceVariable, h.socket)
	w := h.command()
	if w.run([]string{"list", "--json"}) != 0 || !strings.Contains(w.out.String(), `"state"`) {
		t.Errorf("by the environment: %s%s", w.out.String(), w.err.String())
	}
	w = h.command()
	if w.run([]string{"--service", "none", "--state-dir", h.state, "list", "--json"}) != 0 || strings.Contains(w.out.String(), `"state"`) {
		t.Errorf("switched off: %s%s", w.out.String(), w.err.String())
	}
	// One that was named has to be there.
	h.end()
	w = h.command()
	if code := w.run([]string{"list"}); code != 3 || !strings.Contains(w.err.String(), "hydrated") {
		t.Errorf("one that is gone: %d, %s", code, w.err.String())
	}
}

func TestWithoutAServiceTheJournalsAnswer(t *testing.T) {
	h := newHouse(t)
	content := h.image("image", 4<<20)
	id := h.detach(append(slow, h.path("image"), h.path("moved"))...)
	h.await(id, service.StateRunning)
	h.end()
	t.Setenv(serviceVariable, noService)
	run := func(code int, args ...string) *world {
		t.Helper()
		w := h.command()
		if got := w.run(append([]string{"--state-dir", h.state}, args...)); got != code {
			t.Errorf("migrate %s: exit code %d, want %d: %s", strings.Join(args, " "), got, code, w.err.String())
		}
		return w
	}
	if w := run(0, "list"); !strings.Contains(w.out.String(), "forward, stopped") {
		t.Errorf("list: %s", w.out.String())
	}
	if w := run(4, "--detach", h.path("image"), h.path("x")); !strings.Contains(w.err.String(), "start hydrated") {
		t.Errorf("--detach: %s", w.err.String())
	}
	run(0, "resume", "--progress=none", id)
	h.wantContent("moved", content)
	run(0, "verify", id)
}
