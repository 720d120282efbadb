package api

import (
	"errors"
	"flag"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"decant/api/client"
	"decant/service"
)

var update = flag.Bool("update", false, "write openapi.yaml anew")

func TestEveryRoute(t *testing.T) {
	tests := []struct {
		method, path, body string
		status             int
		call, want         string
	}{
		{"GET", "/healthz", "", 200, "", `"state_dir":"/state"`},
		{"GET", "/v1/info", "", 200, "", `"service":"decant"`},
		{"GET", "/openapi.yaml", "", 200, "", "openapi: 3.1.0"},
		{"GET", "/v1/openapi.yaml", "", 200, "", "openapi: 3.1.0"},
		{"GET", "/metrics", "", 200, "pools", "decant_build_info"},
		{"GET", "/v1/migrations", "", 200, "list", `{"migrations":[{"id":"aa11"`},
		{"GET", "/v1/migrations?state=done", "", 200, "list", `{"migrations":[],"total":0}`},
		{"GET", "/v1/migrations/aa11", "", 200, "show aa11 0", `"journal":"/state/aa11.db"`},
		{"GET", "/v1/migrations/aa?cells=4", "", 200, "show aa11 4", `"map":[{"state":"hydrated","hydrated":1}`},
		{"GET", "/v1/migrations/aa11/map?cells=2", "", 200, "show aa11 2", `"cells":[{"state":"hydrated","hydrated":1},{"state":"hydrated","hydrated":1}]`},
		{"GET", "/v1/migrations/aa11/explain?offset=4096", "", 200, "explain aa11 4096", `"offset":4096`},
		{"GET", "/v1/pools", "", 200, "pools", `{"pools":[]}`},
		{"POST", "/v1/migrations", `{"source":"/a","destination":"p/v"}`, 202, "start /a p/v", `"id":"aa11"`},
		{"POST", "/v1/migrations/aa11/pause", "", 200, "pause aa11", `"id":"aa11"`},
		{"POST", "/v1/migrations/aa11/pause", "{}", 200, "pause aa11", `"id":"aa11"`},
		{"POST", "/v1/migrations/aa11/resume", "", 200, "resume aa11", `"id":"aa11"`},
		{"POST", "/v1/migrations/aa11/reverse", "", 200, "reverse aa11", `"id":"aa11"`},
		{"POST", "/v1/migrations/aa11/verify", "", 200, "verify aa11", `"id":"aa11"`},
		{"POST", "/v1/migrations/aa11/cancel", "", 200, "cancel aa11", `"id":"aa11"`},
		{"POST", "/v1/migrations/aa11/cancel", `{"reverse":true}`, 200, "cancel aa11", `"id":"aa11"`},
		{"PATCH", "/v1/migrations/aa11", `{"bwlimit":"1MiB/s"}`, 200, "tune aa11", `"id":"aa11"`},
	}
	for _, test := range tests {
		t.Run(test.method+" "+test.path, func(t *testing.T) {
			f := newFake()
			v := serveUnix(t, fakeConfig(f))
			r := v.do(test.method, test.path, test.body)
			if r.status != test.status || !strings.Contains(r.body, test.want) {
				t.Errorf("status %d, body %s; want %d and %s", r.status, r.body, test.status, test.want)
			}
			if calls := f.noted(); test.call == "" && len(calls) > 0 || test.call != "" && !slices.Contains(calls, test.call) {
				t.Errorf("calls %q, want %q", calls, test.call)
			}
			if r.header.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(r.header.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
				t.Errorf("headers %v", r.header)
			}
		})
	}
}

func TestStartTakesWhatTheCommandLineTakes(t *testing.T) {
	f := newFake()
	v := serveUnix(t, fakeConfig(f))
	v.header.Set("Idempotency-Key", "k-1")
	r := v.do("POST", "/v1/migrations", `{"source":"/images/a.raw","destination":"pool/a","priority":7,"options":{
		"discard_src":true,"verify":true,"remove_src":true,"overwrite":true,"thin_pool":"tp","live":"vm","live_timeout":"30s","engine":"user","region_size":"64KiB","threshold":8,"batch":2,
		"commit_period":"250ms","commit_bytes":8388608,"bwlimit":"50MiB/s"}}`)
	want := service.Request{Source: "/images/a.raw", Destination: "pool/a", Options: service.Options{
		DiscardSource: true, Verify: true, RemoveSource: true, Overwrite: true, ThinPool: "tp", Live: "vm", LiveTimeout: 30 * time.Second, Engine: "user", RegionBytes: 64 << 10, RegionBytesFixed: true,
		ThresholdRegions: 8, BatchRegions: 2, CommitPeriod: 250 * time.Millisecond, CommitBytes: 8 << 20, BytesPerSecond: 50 << 20,
	}}
	if r.status != 202 || !reflect.DeepEqual(f.request, want) {
		t.Errorf("status %d %s, request %+v, want %+v", r.status, r.body, f.request, want)
	}
	if (f.start != service.StartOptions{Priority: 7, IdempotencyKey: "k-1"}) || r.header.Get("Location") != "/v1/migrations/aa11" {
		t.Errorf("start options %+v, location %q", f.start, r.header.Get("Location"))
	}
}

func TestWhatIsLeftOutIsAsOnTheCommandLine(t *testing.T) {
	f := newFake()
	serveUnix(t, fakeConfig(f)).do("POST", "/v1/migrations", `{"source":"/a","destination":"p/a"}`)
	if f.request.Options != service.DefaultOptions() {
		t.Errorf("options %+v", f.request.Options)
	}
	// What the command line hands over comes out as it went in.
	for _, o := range []service.Options{service.DefaultOptions(), {
		DiscardSource: true, RegionBytes: 4096, RegionBytesFixed: true, ThresholdRegions: 1, BatchRegions: 3, CommitPeriod: time.Minute, CommitBytes: 4096, BytesPerSecond: 1,
		Export: "/run/x", LiveTimeout: time.Hour, Engine: "user",
	}} {
		n := client.NewMigrationOf(service.Request{Source: "/a", Destination: "p/a", Options: o})
		if r, err := requestOf(n); err != nil || r.Options != o {
			t.Errorf("%+v came out as %+v, %v", o, r.Options, err)
		}
	}
}

func TestTuneAndCancelPassTheirParameters(t *testing.T) {
	f := newFake()
	v := serveUnix(t, fakeConfig(f))
	v.do("PATCH", "/v1/migrations/aa11", `{"bwlimit":0,"threshold":5,"priority":-3}`)
	if f.tuning.BytesPerSecond == nil || *f.tuning.BytesPerSecond != 0 || *f.tuning.ThresholdRegions != 5 || *f.tuning.Priority != -3 {
		t.Errorf("tuning %+v", f.tuning)
	}
	v.do("POST", "/v1/migrations/aa11/cancel", `{"reverse":true}`)
	if !f.cancel.Reverse {
		t.Error("cancel did not reverse")
	}
}

func TestDryRunAnswersWithThePlanAndStartsNothing(t *testing.T) {
	f := newFake()
	f.plan = service.Plan{Source: "/a", Destination: "p/a", BytesTotal: 5}
	v := serveUnix(t, fakeConfig(f))
	for path, body := range map[string]string{
		"/v1/migrations?dry_run=true": `{"source":"/a","destination":"p/a"}`,
		"/v1/migrations":              `{"source":"/a","destination":"p/a","dry_run":true}`,
	} {
		if r := v.do("POST", path, body); r.status != 200 || decode[service.Plan](t, r).BytesTotal != 5 {
			t.Errorf("%s: status %d, %s", path, r.status, r.body)
		}
	}
	f.planErr = &service.Error{Outcome: service.Refused, Object: "/a", Problem: "no space", Hint: "free some"}
	r := v.do("POST", "/v1/migrations?dry_run=true", `{"source":"/a","destination":"p/a"}`)
	p := r.problem(t)
	if p.Status != 409 || p.Plan == nil || p.Plan.BytesTotal != 5 || p.Hint != "free some" {
		t.Errorf("problem %+v", p)
	}
	for _, call := range f.noted() {
		if call != "plan /a p/a" {
			t.Errorf("a dry run called %q", call)
		}
	}
}

// The outcomes of the command line keep their exit codes and get statuses.
func TestOutcomesBecomeProblems(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		code   int
	}{
		{&service.Error{Outcome: service.Usage, Problem: "x", Hint: "h"}, 400, 2},
		{&service.Error{Outcome: service.Refused, Problem: "x", Hint: "h"}, 409, 4},
		{&service.Error{Outcome: service.Stopped, Problem: "x", Hint: "h"}, 503, 3},
		{&service.Error{Outcome: service.Failed, Problem: "x", Hint: "h"}, 500, 1},
		{unknownID("zz"), 404, 4},
		{tooMany(), 429, 4},
		{errors.New("x"), 500, 1},
	} {
		f := newFake()
		f.err = test.err
		r := serveUnix(t, fakeConfig(f)).do("POST", "/v1/migrations/aa11/pause", "")
		p := r.problem(t)
		if p.Status != test.status || p.ExitCode != test.code || p.Hint != service.HintOf(test.err) {
			t.Errorf("%v became %+v", test.err, p)
		}
		if p.Status == 429 && r.header.Get("Retry-After") == "" {
			t.Error("429 does not say when to try again")
		}
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	v := serveUnix(t, fakeConfig(newFake()))
	for _, test := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/v1/nonsense", 404, ""},
		{"GET", "/nonsense", 404, ""},
		{"DELETE", "/v1/migrations/aa11", 405, "GET, PATCH"},
		{"PUT", "/v1/migrations", 405, "GET, POST"},
		{"GET", "/v1/migrations/aa11/pause", 405, "POST"},
		{"POST", "/metrics", 405, "GET"},
		{"GET", "/v1/migrations/zz", 404, ""},
	} {
		r := v.do(test.method, test.path, "")
		if p := r.problem(t); p.Status != test.status || r.header.Get("Allow") != test.allow {
			t.Errorf("%s %s: status %d, Allow %q", test.method, test.path, p.Status, r.header.Get("Allow"))
		}
	}
}

func TestThePageIsServedBesideTheAPI(t *testing.T) {
	c := fakeConfig(newFake())
	c.Page = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("the page")) })
	v := serveUnix(t, c)
	if r := v.do("GET", "/", ""); r.body != "the page" {
		t.Errorf("/ answers %s", r.body)
	}
	if r := v.do("GET", "/v1/nonsense", ""); r.status != 404 || strings.Contains(r.body, "the page") {
		t.Errorf("/v1/nonsense answers %d %s", r.status, r.body)
	}
}

// What is checked in is what the server says of itself.
func TestOpenAPIDocumentIsCheckedIn(t *testing.T) {
	s, _ := newServer(t, fakeConfig(newFake()))
	if *update {
		if err := os.WriteFile("openapi.yaml", s.OpenAPI(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(s.OpenAPI()) {
		t.Error("api/openapi.yaml differs from the routes; write it anew with: go test ./api -run OpenAPI -update")
	}
}
