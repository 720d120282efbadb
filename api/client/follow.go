package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"decant/service"
)

// mostLineBytes is longer than any event: its names have at most a few kilobytes.
const mostLineBytes = 1 << 20

// Heartbeat is how often at least a server says something on a stream, be it that
// nothing is new, unless it is configured to do so at other times.
const Heartbeat = 15 * time.Second

// silence is how long a stream may say nothing at all, not even that nothing is new.
const silence = 3 * Heartbeat

// GapEvent is the name of what a stream says in place of events that are no longer
// kept: the reader should ask for the state anew.
const GapEvent = "gap"

// EventReader reads a stream of events. It is used by one goroutine.
type EventReader struct {
	client  *Client
	cancel  context.CancelCauseFunc
	ctx     context.Context //nolint:containedctx // of the request whose body is read
	body    io.ReadCloser
	lines   *bufio.Scanner
	last    uint64
	timer   *time.Timer
	silence time.Duration
}

// errSilent is why a stream ends that says nothing.
var errSilent = errors.New("it has said nothing for too long")

// Events follows the events of one migration, or of all if id is empty, from those on
// that come after a number; service.FromNow is from now on. The stream is open when
// it returns: what happens from then on is in it. The caller closes it.
func (c *Client) Events(ctx context.Context, id string, after uint64) (*EventReader, error) {
	from := "now"
	if after != service.FromNow {
		from = strconv.FormatUint(after, 10)
	}
	path := "/v1/events"
	if id != "" {
		path = migrationURL(id, "events")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	response, err := c.send(ctx, http.MethodGet, path+"?after="+from, nil, http.Header{"Accept": {"text/event-stream"}}) //nolint:bodyclose // EventReader.Close does
	if err != nil {
		cancel(nil)
		return nil, err
	}
	r := &EventReader{client: c, cancel: cancel, ctx: ctx, body: response.Body, lines: bufio.NewScanner(response.Body), last: after, silence: silence}
	r.lines.Buffer(nil, mostLineBytes)
	r.timer = time.AfterFunc(silence, func() { cancel(errSilent) })
	return r, nil
}

// Close ends the stream.
func (r *EventReader) Close() {
	r.timer.Stop()
	r.cancel(nil)
	_ = r.body.Close() // nothing was written
}

// Last is the number after which a stream that follows this one has to go on.
func (r *EventReader) Last() uint64 { return r.last }

// Next is the next event; isGap says instead that some were lost. The error says that
// the stream has ended.
func (r *EventReader) Next() (e service.SequencedEvent, isGap bool, err error) {
	var name, id, data string
	for r.lines.Scan() {
		r.timer.Reset(r.silence)
		field, value, _ := strings.Cut(r.lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			name = value
		case "id":
			id = value
		case "data":
			data = value // the server never needs two lines
		case "":
			if value != "" || name == "" {
				continue // a comment, or the end of one
			}
			if name == GapEvent {
				return e, true, nil
			}
			e, err = r.event(id, data)
			return e, false, err
		}
	}
	err = r.lines.Err()
	if err == nil {
		err = io.EOF
	}
	if cause := context.Cause(r.ctx); errors.Is(cause, errSilent) {
		err = cause
		return e, false, r.client.lost(context.WithoutCancel(r.ctx), err)
	}
	return e, false, r.client.lost(r.ctx, err)
}

func (r *EventReader) event(id, data string) (e service.SequencedEvent, err error) {
	if e.Sequence, err = strconv.ParseUint(id, 10, 64); err == nil {
		err = json.Unmarshal([]byte(data), &e.Event)
	}
	if err != nil {
		return e, &service.Error{Outcome: service.Failed, Object: r.client.name, Problem: "an event cannot be read", Hint: "is it a service of this version?", Err: fmt.Errorf("%.100q: %w", data, err)}
	}
	r.last = e.Sequence
	return e, nil
}
