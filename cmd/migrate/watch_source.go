package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"decant/api/client"
	"decant/service"
)

const (
	watchListPeriod = 2 * time.Second        // of the list, for what no event tells
	watchPollPeriod = time.Second            // of the journals
	watchRetry      = 500 * time.Millisecond // until a service that is gone is looked for again
)

// news is what a watch learns. Only what is set says something.
type news struct {
	link  *string          // where it comes from; what is wrong with that
	list  []service.Status // every migration that is watched; nil: nothing
	event *service.Event
	cells []service.Cell // of the map of the migration cellsOf
	of    string
	said  string // the outcome of what a person asked for
	err   error  // the watch cannot go on
}

// watching finds out how migrations go: from the service, as long as there is one, and
// else from the journals.
type watching struct {
	p      *program
	id     string // the only one that is watched; empty: all are
	client *client.Client
	polls  bool // the journals are ours to read when there is no service

	mu      sync.Mutex
	current *client.Client // that answers now; nil: none

	last  uint64 // event
	rates map[string]*pollRate
}

// newWatching begins with the service that there is; c is nil for none.
func (p *program) newWatching(c *client.Client, id string) *watching {
	address, named := firstOf(p.serviceAddress, serviceFromEnvironment(), "")
	return &watching{
		p: p, id: id, client: c, polls: !named || address == noService || p.stateDir != "",
		last: service.FromNow, rates: map[string]*pollRate{},
	}
}

// follow tells what happens until ctx ends.
func (w *watching) follow(ctx context.Context, tell func(news)) {
	for ctx.Err() == nil {
		c := w.client
		w.client = nil
		if c == nil && w.p.find != nil {
			c, _ = w.p.find(ctx) // why it is not there is not worth a word each time
		}
		switch {
		case c != nil:
			w.use(c)
			err := w.stream(ctx, c, tell)
			w.use(nil)
			c.Close()
			if err != nil && !errors.Is(err, client.ErrNoService) && ctx.Err() == nil {
				tell(news{err: err})
				return
			}
			if ctx.Err() == nil {
				tell(news{link: text("the service is gone, looking for it")})
			}
		case w.polls:
			if err := w.poll(tell); err != nil {
				tell(news{err: err})
				return
			}
			pause(ctx, watchPollPeriod)
			continue
		}
		pause(ctx, watchRetry)
	}
}

func text(s string) *string { return &s }

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (w *watching) use(c *client.Client) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current = c
}

// steering is whom to ask for something now.
func (w *watching) steering() (*remote, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &remote{client: w.current}, w.current != nil
}

// stream tells the events of the service until it is gone.
func (w *watching) stream(ctx context.Context, c *client.Client, tell func(news)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := c.Events(ctx, w.id, w.last)
	if err != nil {
		return err
	}
	tell(news{link: text("")})
	if err := w.tellList(ctx, c, tell); err != nil {
		events.Close()
		return err
	}
	arrived, ended := make(chan *service.Event), make(chan error, 1)
	go func() {
		defer events.Close()
		for {
			e, isGap, err := events.Next()
			if err != nil {
				ended <- err
				return
			}
			var event *service.Event
			if !isGap {
				event = &e.Event
			}
			select {
			case arrived <- event:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() { w.last = events.Last() }()
	ticker := time.NewTicker(watchListPeriod)
	defer ticker.Stop()
	for {
		wantsList := true
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return err
		case event := <-arrived:
			if event != nil {
				tell(news{event: event})
				wantsList = event.Event != service.Progress && event.Event != service.CommittedTx
			}
		case <-ticker.C:
		}
		if wantsList {
			if err := w.tellList(ctx, c, tell); err != nil {
				return err
			}
		}
	}
}

func (w *watching) tellList(ctx context.Context, c *client.Client, tell func(news)) error {
	if w.id != "" {
		m, err := c.Get(ctx, w.id, 0)
		if err == nil {
			tell(news{list: []service.Status{m.Status}})
		}
		return err
	}
	list, err := c.List(ctx)
	if err == nil {
		tell(news{list: list})
	}
	return err
}

// poll tells what the journals say.
func (w *watching) poll(tell func(news)) error {
	m, err := w.p.openService(w.p.stateDir)
	if err != nil {
		return err
	}
	summaries, err := w.summaries(m)
	if err != nil {
		return err
	}
	list := make([]service.Status, 0, len(summaries))
	for _, s := range summaries {
		list = append(list, w.statusOf(s))
	}
	tell(news{list: list, link: text("no service runs, reading the journals")})
	return nil
}

func (w *watching) summaries(m steering) ([]service.Summary, error) {
	if w.id == "" {
		return m.List()
	}
	detail, err := m.Show(w.id, 0)
	return []service.Summary{detail.Summary}, err
}

// pollRate is how fast a migration was seen to go.
type pollRate struct {
	bytes int64
	at    time.Time
	rate  int64
}

// statusOf is what a journal tells without a service.
func (w *watching) statusOf(s service.Summary) service.Status {
	status := service.Status{Summary: s, State: service.State(s.Phase)}
	if s.Phase == "running" && !s.Active {
		status.State = service.StateStopped
	}
	r := w.rates[s.ID]
	now := time.Now()
	if r == nil {
		r = &pollRate{bytes: s.BytesCopied, at: now}
		w.rates[s.ID] = r
	} else if took := now.Sub(r.at); took >= watchPollPeriod/2 {
		r.rate = max(0, int64(float64(s.BytesCopied-r.bytes)/took.Seconds()))
		r.bytes, r.at = s.BytesCopied, now
	}
	if s.Active {
		status.Event = &service.Event{Event: service.Progress, ID: s.ID, BytesCopied: s.BytesCopied, RateBytesPerSecond: r.rate}
	}
	return status
}

// regionMap is the states of the regions of one migration.
func (w *watching) regionMap(ctx context.Context, id string, cells int) ([]service.Cell, error) {
	if r, ok := w.steering(); ok {
		m, err := r.client.Map(ctx, id, cells)
		return m.Cells, err
	}
	if !w.polls {
		return nil, nil
	}
	m, err := w.p.openService(w.p.stateDir)
	if err != nil {
		return nil, err
	}
	detail, err := m.Show(id, cells)
	return detail.Map, err
}

// pause and resume do what their keys say, and return what came of it.
func (w *watching) pauseMigration(ctx context.Context, id string) string {
	var err error
	if r, ok := w.steering(); ok {
		err = r.Pause(ctx, id)
	} else {
		var m migrations
		if m, err = w.p.openService(w.p.stateDir); err == nil {
			err = m.Pause(ctx, id)
		}
	}
	if err != nil {
		return err.Error()
	}
	return "paused " + id
}

func (w *watching) resumeMigration(ctx context.Context, id string) string {
	r, ok := w.steering()
	if !ok {
		return "no service runs that could go on with it; in another terminal: migrate resume " + id
	}
	if _, err := r.client.Resume(ctx, id); err != nil {
		return err.Error()
	}
	return "resumed " + id
}
