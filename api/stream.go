package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"decant/api/client"
	"decant/service"
)

// EventsFrom says where a stream of events begins.
type EventsFrom struct {
	LastEventID string `header:"Last-Event-ID" maxLength:"20" pattern:"^[0-9]*$" doc:"the last id that came; the stream goes on behind it"`
	After       string `query:"after" maxLength:"20" pattern:"^(now|[0-9]+)$" default:"now" doc:"without Last-Event-ID: an id, or 0 for all that are kept, or now"`
}

type eventsInput struct {
	MigrationPath
	EventsFrom
}

type streamOutput struct{ Body func(huma.Context) }

func (s *Server) registerEvents(a huma.API, op describe) {
	all := op(http.MethodGet, "/v1/events", "all-events", "Follow the events of all migrations")
	all.Responses = streamResponse(a)
	huma.Register(a, all, func(_ context.Context, input *EventsFrom) (*streamOutput, error) {
		return s.openStream("", *input)
	})
	one := op(http.MethodGet, "/v1/migrations/{id}/events", "migration-events", "Follow the events of one migration")
	one.Responses = streamResponse(a)
	huma.Register(a, one, func(_ context.Context, input *eventsInput) (*streamOutput, error) {
		status, err := s.Manager.Status(input.ID)
		if err != nil {
			return nil, problemOf(err)
		}
		return s.openStream(status.ID, input.EventsFrom)
	})
}

func streamResponse(a huma.API) map[string]*huma.Response {
	schema := schemaOf[service.Event](a)
	return map[string]*huma.Response{"200": {
		Description: "Server-sent events: the name is the kind, the id is the place among all events, the data is the event in JSON. " +
			"The event gap stands for events that are no longer kept. Comments come while there are none.",
		Content: map[string]*huma.MediaType{"text/event-stream": {Schema: schema}},
	}}
}

// openStream subscribes, or refuses: the number of streams is bounded.
func (s *Server) openStream(id string, input EventsFrom) (*streamOutput, error) {
	after, err := startOf(input)
	if err != nil {
		return nil, problemOf(err)
	}
	select {
	case s.subscribers <- struct{}{}:
	default:
		s.metrics.refusedStreams.Inc()
		return nil, huma.ErrorWithHeaders(newProblem(http.StatusTooManyRequests, service.Refused,
			fmt.Sprintf("%d event streams are open already", cap(s.subscribers)), "close some, or try later"), http.Header{"Retry-After": {"10"}})
	}
	events, err := s.Manager.Subscribe(id, after)
	if err != nil {
		<-s.subscribers
		return nil, problemOf(err)
	}
	return &streamOutput{func(ctx huma.Context) {
		defer func() { <-s.subscribers }()
		r, w := humago.Unwrap(ctx)
		s.stream(r, w, id, events)
	}}, nil
}

func startOf(input EventsFrom) (uint64, error) {
	text := input.After
	if input.LastEventID != "" {
		text = input.LastEventID
	}
	if text == "now" || text == "" {
		return service.FromNow, nil
	}
	after, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, &service.Error{Outcome: service.Usage, Object: clip(text), Problem: "not the id of an event"}
	}
	return after, nil
}

// stream writes events until the client leaves, reads too slowly, or the server stops.
func (s *Server) stream(r *http.Request, w http.ResponseWriter, id string, events Events) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // a proxy must not collect events
	out := &eventWriter{w: w, control: http.NewResponseController(w), patience: s.patience}
	w.WriteHeader(http.StatusOK)
	out.send(": decant\nretry: 1000\n\n")
	defer func() { events.Close() }()
	if events.Missed() {
		out.gap()
	}
	for out.err == nil {
		e, err := nextWithin(ctx, events, s.Heartbeat)
		switch {
		case err == nil:
			out.event(e)
		case ctx.Err() != nil:
			return
		case errors.Is(err, context.DeadlineExceeded):
			out.send(": nothing new\n\n")
		case errors.Is(err, service.ErrGap):
			out.gap()
			again, err := s.Manager.Subscribe(id, 0)
			if err != nil {
				return
			}
			events.Close()
			events = again
		default: // no more will come
			return
		}
	}
}

// nextWithin waits for an event for so long.
func nextWithin(ctx context.Context, events Events, patience time.Duration) (service.SequencedEvent, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return events.Next(ctx)
}

// eventWriter writes a stream, each piece within a time: a reader that does not read
// is left, not waited for.
type eventWriter struct {
	w        http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration
	err      error
}

func (o *eventWriter) send(text string) {
	if o.err != nil {
		return
	}
	if o.err = o.control.SetWriteDeadline(time.Now().Add(o.patience)); o.err != nil {
		return
	}
	if _, o.err = o.w.Write([]byte(text)); o.err == nil {
		o.err = o.control.Flush()
	}
}

func (o *eventWriter) event(e service.SequencedEvent) {
	data, err := json.Marshal(e.Event) // one line: JSON escapes what would end it
	if err != nil {
		o.err = err
		return
	}
	o.send(fmt.Sprintf("event: %s\nid: %d\ndata: %s\n\n", e.Event.Event, e.Sequence, data))
}

// gap has no id, so that a reader that comes back goes on from the last event it had.
func (o *eventWriter) gap() {
	o.send("event: " + client.GapEvent + "\ndata: {\"event\":\"" + client.GapEvent + "\"}\n\n")
}
