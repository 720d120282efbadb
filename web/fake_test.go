package web

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"decant/service"
)

// status is a migration as the API lists it.
type status struct {
	service.Summary
	State    string          `json:"state"`
	Reason   string          `json:"reason,omitempty"`
	Hint     string          `json:"hint,omitempty"`
	Priority int             `json:"priority"`
	Position int             `json:"position,omitempty"`
	Options  service.Options `json:"options"`
	Event    *service.Event  `json:"event,omitempty"`
}

// fakeAPI answers as the API does, about migrations that a test has made up: of states
// that real ones are hard to bring into. It says what it was asked to do.
type fakeAPI struct {
	*httptest.Server
	token string

	mu       sync.Mutex
	list     []status
	cells    map[string][]service.Cell
	bad      map[string][]service.BadBytes
	pools    []map[string]any
	events   []service.Event
	changed  chan struct{}
	asked    []string // method, path and body
	answers  map[string]problem
	streamed []string // Last-Event-ID of each stream
}

// problem is what a request is refused with.
type problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

func newFakeAPI(t *testing.T) *fakeAPI {
	f := &fakeAPI{list: []status{}, pools: []map[string]any{}, cells: map[string][]service.Cell{}, bad: map[string][]service.BadBytes{}, changed: make(chan struct{}), answers: map[string]problem{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/migrations", func(w http.ResponseWriter, _ *http.Request) {
		f.write(w, func() any { return map[string]any{"migrations": f.list, "total": len(f.list)} })
	})
	mux.HandleFunc("POST /v1/migrations", f.start)
	mux.HandleFunc("GET /v1/migrations/{id}", f.show)
	mux.HandleFunc("PATCH /v1/migrations/{id}", f.change)
	mux.HandleFunc("POST /v1/migrations/{id}/{verb}", f.change)
	mux.HandleFunc("GET /v1/migrations/{id}/map", func(w http.ResponseWriter, r *http.Request) {
		f.write(w, func() any { return map[string]any{"cells": fewer(f.cells[r.PathValue("id")], r.FormValue("cells"))} })
	})
	mux.HandleFunc("GET /v1/pools", func(w http.ResponseWriter, _ *http.Request) {
		f.write(w, func() any { return map[string]any{"pools": f.pools} })
	})
	mux.HandleFunc("GET /v1/events", f.stream)
	mux.Handle("/", Handler())
	f.Server = httptest.NewServer(f.gate(mux))
	t.Cleanup(f.vanish)
	return f
}

// vanish ends the service with everything that is open.
func (f *fakeAPI) vanish() {
	f.CloseClientConnections()
	f.Close()
}

// comeBack begins the service anew where it was.
func (f *fakeAPI) comeBack(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", f.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	handler := f.Config.Handler
	f.Server = httptest.NewUnstartedServer(handler)
	f.Listener.Close()
	f.Listener = listener
	f.Start()
}

// gate wants the token, notes what is asked, and refuses what a test wants refused.
func (f *fakeAPI) gate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/") && f.token != "" && r.Header.Get("Authorization") != "Bearer "+f.token {
			refuse(w, problem{Status: http.StatusUnauthorized, Title: "Unauthorized", Detail: "the token is missing or wrong"})
			return
		}
		f.mu.Lock()
		p, refused := f.answers[r.Method+" "+r.URL.Path]
		f.mu.Unlock()
		if refused {
			refuse(w, p)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func refuse(w http.ResponseWriter, p problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

func (f *fakeAPI) write(w http.ResponseWriter, of func() any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text, err := json.Marshal(of())
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text)
}

func (f *fakeAPI) show(w http.ResponseWriter, r *http.Request) {
	f.write(w, func() any {
		id := r.PathValue("id")
		i := slices.IndexFunc(f.list, func(s status) bool { return s.ID == id })
		return struct {
			status
			Bad          []service.BadBytes    `json:"bad,omitempty"`
			Transactions []service.Transaction `json:"transactions"`
			Journal      string                `json:"journal"`
		}{f.list[i], f.bad[id], transactionsOf(f.list[i]), "/var/lib/decant/" + id + ".db"}
	})
}

// transactionsOf makes up the last transactions of a migration, one a second.
func transactionsOf(s status) []service.Transaction {
	list := []service.Transaction{}
	for i := range min(20, s.Transaction) {
		at := s.Created.Add(time.Duration(s.Transaction-i) * time.Second)
		freed := at.Add(300 * time.Millisecond)
		t := service.Transaction{Number: s.Transaction - i, Direction: s.Direction, Committed: at, Regions: 60 + 4*(i%3), CopiedBytes: int64(60+4*(i%3)) << 20}
		if s.Options.DiscardSource && i > 0 {
			t.DiscardedAt = &freed
		}
		list = append(list, t)
	}
	return list
}

func (f *fakeAPI) note(r *http.Request) map[string]any {
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		body = map[string]any{"unreadable": err.Error()}
	}
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.Method+" "+r.URL.Path+" "+string(text))
	return body
}

func (f *fakeAPI) start(w http.ResponseWriter, r *http.Request) {
	body := f.note(r)
	if body["dry_run"] == true {
		f.write(w, func() any {
			return service.Plan{
				Source: body["source"].(string), Destination: body["destination"].(string), BytesTotal: 20 << 30, RegionBytes: 1 << 20,
				Warnings: []string{"the source is mounted read-only elsewhere"},
				Space: service.SpaceProof{
					DataBytes: 12 << 30, NeededExtraBytes: 132 << 20, SlackBytes: 4 << 20, AvailableBytes: 2 << 30, ReserveBytes: 64 << 20,
					SameSpace: true, Bounded: true, Verdict: "132 MiB are needed beside what the source frees, 2 GiB are there",
				},
			}
		})
		return
	}
	made := migrationOf(fmt.Sprintf("%08x", len(f.asked)), body["source"].(string), body["destination"].(string), "running")
	f.mu.Lock()
	f.list = append(f.list, made)
	f.mu.Unlock()
	f.write(w, func() any { return made })
}

func (f *fakeAPI) change(w http.ResponseWriter, r *http.Request) {
	f.note(r)
	states := map[string]string{"pause": "paused", "resume": "running", "cancel": "cancelled", "reverse": "running", "verify": "running"}
	f.write(w, func() any {
		i := slices.IndexFunc(f.list, func(s status) bool { return s.ID == r.PathValue("id") })
		if state := states[r.PathValue("verb")]; state != "" {
			f.list[i].State = state
		}
		return f.list[i]
	})
}

func (f *fakeAPI) stream(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.Atoi(r.Header.Get("Last-Event-ID")) // none is 0: all
	w.Header().Set("Content-Type", "text/event-stream")
	f.mu.Lock()
	f.streamed = append(f.streamed, r.Header.Get("Last-Event-ID"))
	f.mu.Unlock()
	for {
		f.mu.Lock()
		news, changed := f.events[min(after, len(f.events)):], f.changed
		f.mu.Unlock()
		for _, e := range news {
			after++
			text, err := json.Marshal(e)
			if err != nil {
				panic(err)
			}
			fmt.Fprintf(w, "event: %s\nid: %d\ndata: %s\n\n", e.Event, after, text)
		}
		fmt.Fprint(w, ": heartbeat\n\n")
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// tell sends events to all readers.
func (f *fakeAPI) tell(events ...service.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, events...)
	close(f.changed)
	f.changed = make(chan struct{})
}

// requests is what the service was asked to do.
func (f *fakeAPI) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// put makes the list what a test wants.
func (f *fakeAPI) put(list ...status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = list
	for _, s := range list {
		if f.cells[s.ID] == nil {
			f.cells[s.ID] = cellsOf(s)
		}
	}
}

// fewer takes every so many of the cells of a map.
func fewer(cells []service.Cell, wanted string) []service.Cell {
	n, err := strconv.Atoi(wanted)
	if err != nil {
		panic(err)
	}
	n = min(n, len(cells))
	list := make([]service.Cell, n)
	for i := range list {
		list[i] = cells[i*len(cells)/n]
	}
	return list
}

const fakeRegions = 12 << 10

// migrationOf makes a migration up that has come as far as its state is likely to have.
func migrationOf(id, source, destination, state string) status {
	share := map[string]float64{"queued": 0, "done": 1, "running": 0.62, "paused": 0.35, "stopped": 0.48, "failed": 0.8}[state]
	s := status{State: state, Options: service.DefaultOptions()}
	s.Options.DiscardSource = true
	s.ID, s.Source, s.Destination, s.Direction, s.Phase = id, source, destination, "forward", "running"
	s.RegionBytes, s.Regions = 1<<20, fakeRegions
	s.BytesTotal = int64(s.Regions) * s.RegionBytes
	s.Hydrated = uint64(share * fakeRegions)
	s.Discarded = s.Hydrated - min(s.Hydrated, 90)
	if state == "done" {
		s.Discarded = s.Hydrated
	}
	s.BytesCopied = int64(s.Hydrated) * s.RegionBytes
	s.Transaction = s.Hydrated / 64
	s.PeakExtraBytes = 131 << 20
	s.Created = time.Now().Add(-time.Duration(s.Transaction) * time.Second)
	if state != "queued" {
		e := eventOf(s, service.Progress, 0)
		s.Event = &e
	}
	return s
}

// eventOf makes up an event of a migration, seconds after now.
func eventOf(s status, kind service.EventKind, seconds float64) service.Event {
	rate := int64(112<<20) + int64(s.Transaction%7)<<20
	e := service.Event{
		Event: kind, ID: s.ID, Time: time.Now().Add(time.Duration(seconds * float64(time.Second))), Phase: "hydrating",
		BytesTotal: s.BytesTotal, BytesData: s.BytesTotal, BytesCopied: s.BytesCopied + 20<<20, BytesCommitted: s.BytesCopied,
		BytesDiscarded: int64(s.Discarded) * s.RegionBytes, RateBytesPerSecond: rate, Transaction: s.Transaction, PeakExtraBytes: s.PeakExtraBytes,
	}
	left := float64(e.BytesData-e.BytesCopied) / float64(rate)
	e.ETASeconds = &left
	return e
}

// cellsOf draws a map as a migration of that state would have it.
func cellsOf(s status) []service.Cell {
	const n = 1600
	cells := make([]service.Cell, n)
	at, freed := int(s.Hydrated*n/s.Regions), int(s.Discarded*n/s.Regions)
	for i := range cells {
		switch {
		case i < freed:
			cells[i] = service.Cell{State: "discarded", Hydrated: 1}
		case i < at:
			cells[i] = service.Cell{State: "hydrated", Hydrated: 1}
		case i < at+2 && s.State == "running":
			cells[i] = service.Cell{State: "dirty"}
		case i == at+2 && at > 0 && s.State != "done":
			cells[i] = service.Cell{State: "partial", Hydrated: 0.5}
		default:
			cells[i] = service.Cell{State: "unhydrated"}
		}
	}
	return cells
}
