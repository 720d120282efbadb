package api

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"decant/api/client"
	"decant/service"
)

func newClient(t *testing.T, address, token string) *client.Client {
	t.Helper()
	c, err := client.New(address, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestClientReadsWhatTheServerWrites(t *testing.T) {
	f := newFake()
	f.plan = service.Plan{Source: "/a", BytesTotal: 7}
	f.pools = []service.PoolStatus{{SizeBytes: 9}}
	v := serveUnix(t, fakeConfig(f))
	c := newClient(t, v.socket, "")
	ctx := t.Context()

	info, err := c.Info(ctx)
	if err != nil || info.StateDir != "/state" || info.PID != os.Getpid() || info.Service != "decant" {
		t.Errorf("info %+v, %v", info, err)
	}
	list, err := c.List(ctx)
	if err != nil || len(list) != 1 || list[0].ID != "aa11" || list[0].State != service.StateRunning {
		t.Errorf("list %+v, %v", list, err)
	}
	m, err := c.Get(ctx, "aa11", 3)
	if err != nil || len(m.Map) != 3 || m.Journal != "/state/aa11.db" || m.ID != "aa11" {
		t.Errorf("migration %+v, %v", m, err)
	}
	if r, err := c.Map(ctx, "aa11", 2); err != nil || len(r.Cells) != 2 || r.Regions != 8 {
		t.Errorf("map %+v, %v", r, err)
	}
	if x, err := c.Explain(ctx, "aa11", 4096); err != nil || x.Offset != 4096 {
		t.Errorf("explanation %+v, %v", x, err)
	}
	if pools, err := c.Pools(ctx); err != nil || len(pools) != 1 || pools[0].SizeBytes != 9 {
		t.Errorf("pools %+v, %v", pools, err)
	}
	n := client.NewMigrationOf(service.Request{Source: "/a", Destination: "p/a", Options: service.DefaultOptions()})
	if s, err := c.Start(ctx, n, "key"); err != nil || s.ID != "aa11" || f.start.IdempotencyKey != "key" {
		t.Errorf("start %+v, %v", s, err)
	}
	if p, err := c.Plan(ctx, n); err != nil || p.BytesTotal != 7 {
		t.Errorf("plan %+v, %v", p, err)
	}
	for name, do := range map[string]func() (service.Status, error){
		"pause": func() (service.Status, error) { return c.Pause(ctx, "aa11") }, "resume": func() (service.Status, error) { return c.Resume(ctx, "aa11") },
		"reverse": func() (service.Status, error) { return c.Reverse(ctx, "aa11") }, "verify": func() (service.Status, error) { return c.Verify(ctx, "aa11") },
		"cancel": func() (service.Status, error) { return c.Cancel(ctx, "aa11", client.Cancellation{Reverse: true}) },
		"tune": func() (service.Status, error) {
			return c.Tune(ctx, "aa11", client.Tuning{BWLimit: new(client.Rate(5))})
		},
	} {
		if s, err := do(); err != nil || s.ID != "aa11" {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if !f.cancel.Reverse || *f.tuning.BytesPerSecond != 5 {
		t.Errorf("cancel %+v, tuning %+v", f.cancel, f.tuning)
	}
}

func TestClientListsMoreThanAPage(t *testing.T) {
	f := newFake()
	f.statuses = make([]service.Status, 2500)
	for i := range f.statuses {
		f.statuses[i].ID = string(rune('a'+i%26)) + strings.Repeat("x", i/26)
	}
	c := newClient(t, serveUnix(t, fakeConfig(f)).socket, "")
	if list, err := c.List(t.Context()); err != nil || len(list) != 2500 {
		t.Errorf("%d of 2500, %v", len(list), err)
	}
}

func TestClientPassesOnProblems(t *testing.T) {
	f := newFake()
	f.err = &service.Error{Outcome: service.Refused, Object: "aa11", Problem: "is on its way", State: "nothing was changed", Hint: "wait"}
	c := newClient(t, serveUnix(t, fakeConfig(f)).socket, "")
	_, err := c.Pause(t.Context(), "aa11")
	if service.OutcomeOf(err) != service.Refused || err.Error() != f.err.Error() || service.HintOf(err) != "wait" {
		t.Errorf("%v, outcome %v, hint %q", err, service.OutcomeOf(err), service.HintOf(err))
	}
	var p *client.Problem
	if !errors.As(err, &p) || p.Status != http.StatusConflict {
		t.Errorf("no problem in %v", err)
	}
	_, err = c.Tune(t.Context(), "aa11", client.Tuning{Threshold: new(uint64(0))})
	if service.OutcomeOf(err) != service.Usage || !strings.Contains(err.Error(), "body.threshold") {
		t.Errorf("%v", err)
	}
	f.plan = service.Plan{Source: "/a", BytesTotal: 7}
	f.planErr = f.err
	if p, err := c.Plan(t.Context(), client.NewMigration{Source: "/a", Destination: "p/a"}); p.BytesTotal != 7 || service.OutcomeOf(err) != service.Refused {
		t.Errorf("plan %+v, %v", p, err)
	}
}

func TestClientShowsItsToken(t *testing.T) {
	f := newFake()
	v := serveTCP(t, f, TCPConfig{Address: "127.0.0.1:0"})
	if _, err := newClient(t, v.base, secret).List(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := newClient(t, v.base, "another-token-0123").List(t.Context()); service.OutcomeOf(err) != service.Refused {
		t.Errorf("another token: %v", err)
	}
}

func TestClientFollowsEvents(t *testing.T) {
	f := newFake()
	c := fakeConfig(f)
	c.Heartbeat = time.Millisecond
	v := serveUnix(t, c)
	follower := newClient(t, v.socket, "")
	r, err := follower.Events(t.Context(), "aa11", service.FromNow)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f.say(service.Event{Event: service.Warning, ID: "aa11", Message: "one\ntwo: \u2028 three", Time: time.Unix(1, 0).UTC()})
	f.say(event("aa11", service.Progress, 5))
	e, isGap, err := r.Next()
	if err != nil || isGap || e.Event != f.events[0].Event || e.Sequence != 1 {
		t.Errorf("%+v, %v, want %+v", e, err, f.events[0])
	}
	if e, _, err = r.Next(); err != nil || e.Event.BytesCopied != 5 || r.Last() != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	f.mu.Lock()
	f.gapAfter = 2
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	if _, isGap, err = r.Next(); err != nil || !isGap {
		t.Errorf("no gap: %v", err)
	}
	again, err := follower.Events(t.Context(), "", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if e, _, err = again.Next(); err != nil || e.Sequence != 2 {
		t.Errorf("after 1 comes %+v, %v", e, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := v.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := again.Next(); !errors.Is(err, client.ErrNoService) {
		t.Errorf("the stream of a service that is gone: %v", err)
	}
	if _, err := follower.Events(t.Context(), "", 1); !errors.Is(err, client.ErrNoService) {
		t.Errorf("a stream of no service: %v", err)
	}
}
