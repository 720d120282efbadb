package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hydratedSite is a hydrated on the state directory of a site, and what a user's script needs
// to talk to it: HTTP over its socket.
type hydratedSite struct {
	*site
	socket string
	flags  []string
	http   *http.Client
	daemon *running
}

func newHydratedSite(t *testing.T, flags ...string) *hydratedSite {
	t.Helper()
	s := newSite(t)
	dir, err := os.MkdirTemp("", "served") //nolint:usetesting // that of the test has too long a name for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, dir) })
	v := &hydratedSite{site: s, socket: dir + "/s", flags: flags}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", v.socket)
	}}
	v.http = &http.Client{Transport: transport}
	t.Cleanup(transport.CloseIdleConnections)
	v.serve()
	return v
}

// serve starts the service and waits until it answers.
func (v *hydratedSite) serve() {
	v.Helper()
	args := append([]string{"--config", os.DevNull, "--state-dir", v.state, "--socket", v.socket, "--group="}, v.flags...)
	v.serveBy(exec.Command(hydratedPath, args...))
}

// serveBy starts the service as cmd says.
func (v *hydratedSite) serveBy(cmd *exec.Cmd) {
	v.Helper()
	v.daemon = v.launch(cmd)
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		response, err := v.http.Get("http://localhost/healthz")
		if err == nil {
			_ = response.Body.Close() // that it answers is all
			return
		}
		if v.daemon.hasEnded() || time.Since(begun) > patience {
			v.Fatalf("hydrated does not answer: %v; %v", err, v.daemon.wait())
		}
	}
}

// ask makes a request, which must be answered with the status.
func (v *hydratedSite) ask(status int, method, path, body string) []byte {
	v.Helper()
	got, answer := v.request(method, path, body)
	if got != status {
		v.Fatalf("%s %s: status %d, want %d: %s", method, path, got, status, answer)
	}
	return answer
}

// request makes a request, and returns how it was answered.
func (v *hydratedSite) request(method, path, body string) (status int, answer []byte) {
	v.Helper()
	request, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		v.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := v.http.Do(request)
	if err != nil {
		v.Fatal(err)
	}
	defer response.Body.Close()
	if answer, err = io.ReadAll(response.Body); err != nil {
		v.Fatalf("%s %s: %v", method, path, err)
	}
	return response.StatusCode, answer
}

// migrationState is what the tests read of a migration.
type migrationState struct {
	ID          string `json:"id"`
	State       string `json:"state"`
	Reason      string `json:"reason"`
	Hint        string `json:"hint"`
	RetryAt     string `json:"retry_at"`
	Transaction uint64 `json:"transaction"`
	Discarded   uint64 `json:"regions_discarded"`
	Regions     uint64 `json:"regions"`
}

func (v *hydratedSite) migration(id string) migrationState {
	v.Helper()
	var m migrationState
	if err := json.Unmarshal(v.ask(200, "GET", "/v1/migrations/"+id, ""), &m); err != nil {
		v.Fatal(err)
	}
	return m
}

// until waits until a migration satisfies the condition.
func (v *hydratedSite) until(id, what string, is func(migrationState) bool) migrationState {
	v.Helper()
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		m := v.migration(id)
		if is(m) {
			return m
		}
		if time.Since(begun) > patience {
			v.Fatalf("waited in vain until %s: %+v", what, m)
		}
	}
}

// post begins a migration that takes some seconds.
func (v *hydratedSite) post(source, destination, bwlimit string) string {
	v.Helper()
	body := fmt.Sprintf(`{"source":%q,"destination":%q,"options":{"discard_src":true,"region_size":"256KiB","commit_period":"20ms","commit_bytes":"1MiB","bwlimit":%q}}`,
		source, destination, bwlimit)
	var m migrationState
	if err := json.Unmarshal(v.ask(202, "POST", "/v1/migrations", body), &m); err != nil {
		v.Fatal(err)
	}
	return m.ID
}

// follower reads the events of the service and comes back when they break off, as a
// user's script would: with the last id that it has seen.
type follower struct {
	v      *hydratedSite
	cancel context.CancelFunc
	over   sync.WaitGroup

	mu     sync.Mutex
	events []event
	ids    []string
	opened int
}

func (v *hydratedSite) follow() *follower {
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{v: v, cancel: cancel}
	f.over.Go(func() {
		for ctx.Err() == nil {
			f.readStream(ctx)
			time.Sleep(10 * time.Millisecond)
		}
	})
	v.Cleanup(f.stop)
	return f
}

func (f *follower) stop() {
	f.cancel()
	f.over.Wait()
}

func (f *follower) readStream(ctx context.Context) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/v1/events?after=0", nil)
	if err != nil {
		return
	}
	f.mu.Lock()
	if len(f.ids) > 0 {
		request.Header.Set("Last-Event-ID", f.ids[len(f.ids)-1])
	}
	f.mu.Unlock()
	response, err := f.v.http.Do(request)
	if err != nil {
		return // the service is away
	}
	defer response.Body.Close()
	f.mu.Lock()
	f.opened++
	f.mu.Unlock()
	lines, id := bufio.NewScanner(response.Body), ""
	for lines.Scan() {
		line := lines.Text()
		if text, ok := strings.CutPrefix(line, "id: "); ok {
			id = text
		}
		text, ok := strings.CutPrefix(line, "data: ")
		var e event
		if !ok || json.Unmarshal([]byte(text), &e) != nil || e.ID == "" {
			continue
		}
		_ = json.Unmarshal([]byte(text), &e.fields) // it was just found to be an object
		f.mu.Lock()
		f.events, f.ids = append(f.events, e), append(f.ids, id)
		f.mu.Unlock()
	}
}

// await waits for an event of one migration, of that kind.
func (f *follower) await(id, kind string) event {
	f.v.Helper()
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		f.mu.Lock()
		for _, e := range f.events {
			if e.ID == id && e.Event == kind {
				f.mu.Unlock()
				return e
			}
		}
		f.mu.Unlock()
		if time.Since(begun) > patience {
			f.v.Fatalf("no event %s of %s came", kind, id)
		}
	}
}

// A migration that was asked for over the socket ends whole although the service is
// killed in the middle, and events and metrics tell of it.
func TestServiceKilledInTheMiddleOfWhatItWasAskedFor(t *testing.T) {
	v := newHydratedSite(t)
	made := makeImage(t, v.path("image"), 64*mib, 7, mixed)
	events := v.follow()
	id := v.post(v.path("image"), v.path("moved"), "4MiB/s")
	begun := v.until(id, "something was discarded", func(m migrationState) bool { return m.Discarded > 0 })
	if begun.Discarded == begun.Regions {
		t.Fatal("it was done before the service was killed")
	}
	v.daemon.signal(syscall.SIGKILL)
	if o := v.daemon.wait(); o.code != -1 {
		t.Fatalf("the service ended by itself: %v", o)
	}
	v.serve()
	v.ask(200, "PATCH", "/v1/migrations/"+id, `{"bwlimit":"unlimited"}`)
	v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
	wantWhole(t, v.path("moved"), made)
	wantEmptied(t, v.path("image"), made)

	done := events.await(id, "done")
	wantFields(t, done)
	events.stop()
	if events.opened < 2 {
		t.Errorf("the stream was opened %d times", events.opened)
	}
	wantNumbered(t, events)
	metrics := string(v.ask(200, "GET", "/metrics", ""))
	for _, want := range []string{`decant_migrations{state="done"} 1`, `decant_migrations{state="running"} 0`, "decant_commit_seconds_count ", "decant_build_info{"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics do not say %s", want)
		}
	}
	if strings.Contains(metrics, "decant_copied_bytes_total 0\n") || strings.Contains(metrics, "decant_discarded_bytes_total 0\n") {
		t.Error("the metrics know of no bytes")
	}
	v.daemon.signal(syscall.SIGTERM)
	if o := v.daemon.wait(); o.code != 0 {
		t.Errorf("the service ended with %v", o)
	}
	if _, err := os.Lstat(v.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// wantNumbered wants every event once and in order, over both lives of the service.
func wantNumbered(t *testing.T, f *follower) {
	t.Helper()
	last := ""
	for i, id := range f.ids {
		if len(id) < len(last) || len(id) == len(last) && id <= last {
			t.Fatalf("event %d has id %s, the one before it %s", i, id, last)
		}
		last = id
	}
}

// The same from the command line, on a state directory whose service is killed at random
// moments while several migrations are on their way.
func TestSeveralMigrationsSurviveKillsOfTheirService(t *testing.T) {
	v := newHydratedSite(t, "--running-per-disk", "3")
	kills := 4
	if nightly() {
		kills = 40
	}
	var ids []string
	var images []image
	for i := range 3 {
		name := fmt.Sprintf("image%d", i)
		images = append(images, makeImage(t, v.path(name), 24*mib, 60+uint64(i), mixed))
		o := v.want(0, v.run("--service", v.socket, "--detach", "--discard-src", "--region-size", "256KiB", "--commit-period", "20ms", "--bwlimit", "4MiB/s",
			v.path(name), v.path(name+".moved")))
		ids = append(ids, strings.TrimSpace(o.stdout))
	}
	for i := range kills {
		time.Sleep(time.Duration(100+150*(i%4)) * time.Millisecond)
		v.daemon.signal(syscall.SIGKILL)
		v.daemon.wait()
		v.serve()
	}
	for i, id := range ids {
		v.ask(200, "PATCH", "/v1/migrations/"+id, `{"bwlimit":"unlimited"}`)
		v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
		wantWhole(t, v.path(fmt.Sprintf("image%d.moved", i)), images[i])
		wantEmptied(t, v.path(fmt.Sprintf("image%d", i)), images[i])
	}
	o := v.want(0, v.run("--service", v.socket, "list", "--json"))
	var list []migrationState
	if err := json.Unmarshal([]byte(o.stdout), &list); err != nil || len(list) != 3 {
		t.Errorf("list: %s (%v)", o.stdout, err)
	}
}

// Requests that are refused change nothing, whoever sends them.
func TestServiceRefusesWhatIsOutsideOfItsRoots(t *testing.T) {
	s := newHydratedSite(t)
	inside := s.path("inside")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	s.daemon.signal(syscall.SIGTERM)
	s.daemon.wait()
	s.flags = []string{"--root", inside}
	s.serve()
	made := makeImage(t, s.path("image"), 4*mib, 3, mixed)
	before := treeOf(t, s.dir)
	for _, names := range [][2]string{
		{s.path("image"), inside + "/moved"},                    // source outside
		{inside + "/../image", inside + "/moved"},               // a way out
		{"/etc/passwd", inside + "/moved"},                      // far outside
		{inside + "/none", s.path("moved")},                     // destination outside
		{"image", inside + "/moved"},                            // relative
		{inside + "/" + strings.Repeat("a", 5000), "/dev/null"}, // longer than any path
	} {
		body, err := json.Marshal(map[string]string{"source": names[0], "destination": names[1]})
		if err != nil {
			t.Fatal(err)
		}
		for _, query := range []string{"", "?dry_run=true"} {
			response, err := s.http.Post("http://localhost/v1/migrations"+query, "application/json", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close() // the status is all
			if response.StatusCode < 400 || response.StatusCode >= 500 {
				t.Errorf("%.80q%s: status %d", names, query, response.StatusCode)
			}
		}
	}
	if diff := before.difference(treeOf(t, s.dir)); diff != "" {
		t.Errorf("something changed:\n%s", diff)
	}
	wantWhole(t, s.path("image"), made)
}
