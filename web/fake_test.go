package web

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"decant/api"
	"decant/service"
)

// token is what clients have to show on the network, where browsers come from.
const token = "a-token-that-is-long-enough"

// fakeManager has migrations that a test has made up, of states that real ones are hard
// to bring into, behind the real API. It notes what it was asked to do.
type fakeManager struct {
	*httptest.Server

	mu       sync.Mutex
	list     []service.Status
	cells    map[string][]service.Cell
	bad      map[string][]service.BadBytes
	pools    []service.PoolStatus
	events   []service.Event
	changed  chan struct{}
	asked    []string
	refusals map[string]*service.Error // of what is asked, by method and path
	streams  []uint64                  // behind which event each was opened
	readers  int                       // streams that are open
}

func newFake(t *testing.T) *fakeManager {
	t.Helper()
	f := &fakeManager{
		cells: map[string][]service.Cell{}, bad: map[string][]service.BadBytes{},
		changed: make(chan struct{}), refusals: map[string]*service.Error{},
	}
	secret, err := api.NewToken(token)
	if err != nil {
		t.Fatal(err)
	}
	server, err := api.New(api.Config{Manager: f, Token: secret, Page: Handler()})
	if err != nil {
		t.Fatal(err)
	}
	f.Server = httptest.NewServer(server.Handler())
	t.Cleanup(f.vanish)
	return f
}

// vanish ends the service with everything that is open.
func (f *fakeManager) vanish() {
	f.CloseClientConnections()
	f.Close()
}

// comeBack begins the service anew where it was.
func (f *fakeManager) comeBack(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", f.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	handler := f.Config.Handler
	f.Server = httptest.NewUnstartedServer(handler)
	f.Listener.Close()
	f.Listener = listener
	f.Server.Start()
}

// put makes the list what a test wants.
func (f *fakeManager) put(list ...service.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = list
	for _, s := range list {
		if f.cells[s.ID] == nil {
			f.cells[s.ID] = cellsOf(s)
		}
	}
}

// change changes what there is.
func (f *fakeManager) change(what func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	what()
}

// refuse has everything of a kind refused from now on.
func (f *fakeManager) refuse(what string, e *service.Error) {
	f.change(func() { f.refusals[what] = e })
}

// requests is what the service was asked to do.
func (f *fakeManager) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// note notes what is asked for, and refuses it if a test wants that.
func (f *fakeManager) note(what, id string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	f.asked = append(f.asked, fmt.Sprintf("%s %s %s", what, id, text))
	return f.refusal(what)
}

func (f *fakeManager) refusal(what string) error {
	if e := f.refusals[what]; e != nil {
		return e
	}
	return nil
}

func (f *fakeManager) List() ([]service.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.list), f.refusal("list")
}

func (f *fakeManager) Pools(context.Context) ([]service.PoolStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.pools), f.refusal("pools")
}

// find is the migration of an id. The caller holds mu.
func (f *fakeManager) find(id string) (*service.Status, error) {
	i := slices.IndexFunc(f.list, func(s service.Status) bool { return s.ID == id })
	if i < 0 {
		return nil, &service.Error{Outcome: service.Refused, Object: id, Problem: "there is no such migration", Err: service.ErrUnknownMigration}
	}
	return &f.list[i], nil
}

func (f *fakeManager) Status(id string) (service.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err != nil {
		return service.Status{}, err
	}
	return *s, nil
}

func (f *fakeManager) Show(id string, cells int) (service.Detail, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err != nil {
		return service.Detail{}, err
	}
	all := f.cells[id]
	d := service.Detail{Summary: s.Summary, Bad: f.bad[id], Transactions: transactionsOf(*s), Journal: "/var/lib/decant/" + id + ".db"}
	for i, n := 0, min(cells, len(all)); i < n; i++ {
		d.Map = append(d.Map, all[i*len(all)/n])
	}
	return d, nil
}

func (f *fakeManager) Explain(string, int64) (service.Explanation, error) {
	return service.Explanation{}, nil
}

func (f *fakeManager) Metrics() service.Metrics { return service.Metrics{} }

// transactionsOf makes up the last transactions of a migration, one a second.
func transactionsOf(s service.Status) []service.Transaction {
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

func (f *fakeManager) Plan(_ context.Context, r service.Request) (service.Plan, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return service.Plan{
		Source: r.Source, Destination: r.Destination, BytesTotal: 20 << 30, RegionBytes: r.Options.RegionBytes,
		Warnings: []string{"its blocks are shared with a snapshot: freeing them frees nothing"},
		Space: service.SpaceProof{
			DataBytes: 12 << 30, NeededExtraBytes: 132 << 20, SlackBytes: 4 << 20, AvailableBytes: 2 << 30, ReserveBytes: 64 << 20,
			SameSpace: true, Bounded: true, Verdict: "132 MiB are needed beside what the source frees, 2 GiB are there",
		},
	}, f.note("plan", r.Source+" "+r.Destination, r.Options)
}

func (f *fakeManager) Start(_ context.Context, r service.Request, o service.StartOptions) (service.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.note("start", r.Source+" "+r.Destination, r.Options); err != nil {
		return service.Status{}, err
	}
	made := migrationOf(fmt.Sprintf("%08x", len(f.asked)), r.Source, r.Destination, "queued")
	made.State, made.Priority = service.StateRunning, o.Priority
	f.cells[made.ID] = cellsOf(made)
	f.list = append(f.list, made)
	return made, nil
}

// turn notes what is done to a migration and gives it a state.
func (f *fakeManager) turn(what, id string, body any, state service.State) (service.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err == nil {
		err = f.note(what, id, body)
	}
	if err != nil {
		return service.Status{}, err
	}
	s.State = cmp.Or(state, s.State)
	return *s, nil
}

func (f *fakeManager) Pause(_ context.Context, id string) (service.Status, error) {
	return f.turn("pause", id, nil, service.StatePaused)
}

func (f *fakeManager) Resume(_ context.Context, id string) (service.Status, error) {
	return f.turn("resume", id, nil, service.StateRunning)
}

func (f *fakeManager) Reverse(_ context.Context, id string) (service.Status, error) {
	return f.turn("reverse", id, nil, service.StateQueued)
}

func (f *fakeManager) Verify(_ context.Context, id string) (service.Status, error) {
	return f.turn("verify", id, nil, service.StateRunning)
}

func (f *fakeManager) Cancel(_ context.Context, id string, o service.CancelOptions) (service.Status, error) {
	return f.turn("cancel", id, o, service.StateCancelled)
}

func (f *fakeManager) Tune(_ context.Context, id string, tuning service.Tuning) (service.Status, error) {
	return f.turn("tune", id, tuning, "")
}

// fakeEvents reads what the manager was told to tell.
type fakeEvents struct {
	f     *fakeManager
	after uint64
}

// Subscribe numbers events from 1 on.
func (f *fakeManager) Subscribe(_ string, after uint64) (api.Events, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams = append(f.streams, after)
	if err := f.refusal("events"); err != nil {
		return nil, err
	}
	f.readers++
	return &fakeEvents{f, after}, nil
}

func (e *fakeEvents) Next(ctx context.Context) (service.SequencedEvent, error) {
	for {
		e.f.mu.Lock()
		all, changed := e.f.events, e.f.changed
		e.f.mu.Unlock()
		if e.after < uint64(len(all)) {
			e.after++
			return service.SequencedEvent{Sequence: e.after, Event: all[e.after-1]}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return service.SequencedEvent{}, ctx.Err()
		}
	}
}

func (e *fakeEvents) Missed() bool { return false }
func (e *fakeEvents) Close()       { e.f.change(func() { e.f.readers-- }) }

// tell sends events to all readers.
func (f *fakeManager) tell(events ...service.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, events...)
	close(f.changed)
	f.changed = make(chan struct{})
}

const fakeRegions = 12 << 10

// migrationOf makes a migration up that has come as far as its state is likely to have.
func migrationOf(id, source, destination string, state service.State) service.Status {
	share := map[service.State]float64{"queued": 0, "done": 1, "running": 0.62, "paused": 0.35, "stopped": 0.48, "failed": 0.8}[state]
	s := service.Status{State: state, Options: service.DefaultOptions()}
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
func eventOf(s service.Status, kind service.EventKind, seconds float64) service.Event {
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
func cellsOf(s service.Status) []service.Cell {
	const n = 1600
	cells := make([]service.Cell, n)
	at, freed := int(s.Hydrated*n/s.Regions), int(s.Discarded*n/s.Regions)
	for i := range cells {
		switch {
		case i < freed:
			cells[i] = service.Cell{State: "discarded", Hydrated: 1}
		case i < at:
			cells[i] = service.Cell{State: "hydrated", Hydrated: 1}
		case i < at+2 && at > 0 && s.State == "running":
			cells[i] = service.Cell{State: "dirty"}
		case i == at+2 && at > 0 && s.State != "done":
			cells[i] = service.Cell{State: "partial", Hydrated: 0.5}
		default:
			cells[i] = service.Cell{State: "unhydrated"}
		}
	}
	return cells
}
