package nbd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Options say how a Client behaves. A zero field means its default.
type Options struct {
	// Connections is how many are used where the server allows several (multi-conn).
	// Default 2.
	Connections int
	// DialTime is how long one attempt to connect may take, the handshake included.
	// Default 10 s.
	DialTime time.Duration
	// RequestTime is how long the server may leave one request without an answer;
	// after that its connections are given up. Default 30 s.
	RequestTime time.Duration
	// TotalTime is how long a call takes at most, with all its attempts and
	// reconnections. Default 2 minutes.
	TotalTime time.Duration
	// ReadOnly lets no change through.
	ReadOnly bool
	// Recognize, if set, is called for each connection but the first, before anything
	// else uses it, and reads from the export to see whether it is still the same. With
	// an error that is ErrChanged the Client does nothing any more, after any other one
	// it connects anew. It must not use the Client.
	Recognize func(export io.ReaderAt) error
	// TLS is used for nbds; nil means what the URI says.
	TLS *tls.Config
	// Dial, if set, makes each connection, in place of what the URI says.
	Dial func(context.Context) (net.Conn, error)
}

func (o Options) withDefaults() Options {
	o.Connections = orDefault(o.Connections, 2)
	o.DialTime = orDefault(o.DialTime, 10*time.Second)
	o.RequestTime = orDefault(o.RequestTime, 30*time.Second)
	o.TotalTime = orDefault(o.TotalTime, 2*time.Minute)
	return o
}

// Reasons why a Client fails, besides ServerError.
var (
	// ErrUnreachable: the server could not be reached in time, or no more.
	ErrUnreachable = errors.New("the NBD server cannot be reached")
	// ErrInterrupted: the connection was lost while a change was under way; whether
	// the change took place is not known.
	ErrInterrupted = errors.New("the connection to the NBD server was lost meanwhile")
	// ErrNotFlushed: the connection was lost when the server had acknowledged writes
	// that no flush had covered. If it was restarted they may be gone. The Client
	// does not change anything any more, and it can be read.
	ErrNotFlushed = errors.New("the connection to the NBD server was lost before a flush")
	// ErrChanged: after a reconnection the export is not what it was. The Client
	// does nothing any more.
	ErrChanged = errors.New("the NBD server offers another export under this name")
	// ErrProtocol: the server does not keep to the protocol.
	ErrProtocol = errors.New("the NBD server does not keep to the protocol")
	// ErrClosed: the Client is closed.
	ErrClosed = errors.New("the NBD client is closed")
)

// Client is an export of an NBD server as a device. Its methods may be called
// concurrently; ranges of concurrent changes must not overlap.
//
// When a connection is lost, all of them are given up and made anew, and it is checked
// that the export has the same size and can do the same; a server that offers another
// image of the same size under the same name is found out by Options.Recognize only. Reads are repeated then,
// as often as TotalTime allows. So is a Discard as long as this Client has never
// written: the old one could come late, after a write to the same range. Writes are not
// repeated. A Flush never covers what a connection took with it: see ErrNotFlushed.
type Client struct {
	uri     URI
	options Options
	export  exportInfo
	holes   extentCache

	// acked counts writes and zeroes that the server has acknowledged; flushed is how
	// many of them a flush has covered. Those who read from a connection count.
	acked, flushed atomic.Uint64
	wrote          atomic.Bool // a write was sent, ever
	sessions       atomic.Uint64
	failures       atomic.Int32

	life   context.Context //nolint:containedctx // ends with Close; no call has one of its own
	end    context.CancelFunc
	hurry  context.Context //nolint:containedctx // ends with Hurry
	hasten context.CancelFunc
	dialer chan struct{} // holds one token; who has it may make a session

	mu      sync.Mutex
	session *session // nil while there is none
	lost    error    // ErrNotFlushed or ErrChanged, for ever
}

// Dial connects to an export. The context is for this call only.
func Dial(ctx context.Context, uri string, options Options) (*Client, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	options = options.withDefaults()
	if options.Connections < 0 || min(options.DialTime, options.RequestTime, options.TotalTime) < 0 {
		return nil, fmt.Errorf("the options of a client for %v are negative: %+v", u, options)
	}
	if options.TLS, err = tlsConfig(u, options.TLS); err != nil {
		return nil, err
	}
	c := &Client{uri: u, options: options, dialer: make(chan struct{}, 1)}
	c.life, c.end = context.WithCancel(context.Background())
	c.hurry, c.hasten = context.WithCancel(c.life)
	s, err := c.newSession(ctx)
	if err != nil {
		c.end()
		return nil, fmt.Errorf("connect to %v: %w", u, err)
	}
	c.export = s.export
	c.dialer <- struct{}{}
	return c, c.adopt(s)
}

// Close leaves the server. It does not flush. Calls that are under way fail.
func (c *Client) Close() error {
	c.end()
	c.mu.Lock()
	s := c.session
	c.session = nil
	c.mu.Unlock()
	if s != nil {
		s.leave()
	}
	return nil
}

// hurryTime is how long a call may take once there is hurry.
const hurryTime = 3 * time.Second

// Hurry ends the patience with the server, for example because the user wants to stop:
// calls that are under way, and all later ones, end within a few seconds.
func (c *Client) Hurry() { c.hasten() }

// URI says where the export is.
func (c *Client) URI() URI { return c.uri }

// Bytes is the size of the export.
func (c *Client) Bytes() int64 { return c.export.bytes }

// ReadOnly says whether changes are refused, by the server or by Options.
func (c *Client) ReadOnly() bool { return c.options.ReadOnly || c.export.flags&flagReadOnly != 0 }

// CanDiscard says whether the server takes discards.
func (c *Client) CanDiscard() bool { return !c.ReadOnly() && c.export.flags&flagTrim != 0 }

// KnowsHoles says whether NextData knows more than that everything is data.
func (c *Client) KnowsHoles() bool { return c.export.allocation }

// current is the session to use, which is made if there is none. What became of the
// sessions before it is known by then.
func (c *Client) current(ctx context.Context, r *call) (*session, error) {
	for {
		c.mu.Lock()
		s, lost := c.session, c.lost
		c.mu.Unlock()
		if errors.Is(lost, ErrChanged) || lost != nil && r.changes() {
			return nil, lost
		}
		if s != nil {
			return s, nil
		}
		select {
		case <-c.dialer:
		case <-c.life.Done():
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ErrUnreachable
		}
		err := c.reconnect(ctx)
		c.dialer <- struct{}{}
		if err != nil {
			return nil, err
		}
	}
}

// reconnect makes a session if there is none. The caller has the dialer's token.
func (c *Client) reconnect(ctx context.Context) error {
	c.mu.Lock()
	there := c.session != nil
	c.mu.Unlock()
	if there {
		return nil
	}
	for {
		if err := c.pause(ctx); err != nil {
			return err
		}
		s, err := c.newSession(ctx)
		if err == nil {
			err = c.recognize(ctx, s)
		}
		if err == nil || errors.Is(err, ErrChanged) {
			return cmp.Or(err, c.adopt(s))
		}
		c.failures.Add(1)
		if ctx.Err() != nil || c.life.Err() != nil {
			return fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
	}
}

// pause waits the longer, the more attempts in a row have come to nothing, and leaves
// most of the time of the call for the next one.
func (c *Client) pause(ctx context.Context) error {
	const first, longest = 20 * time.Millisecond, 2 * time.Second
	n := c.failures.Load()
	if n == 0 {
		return nil
	}
	wait := min(first<<min(n, 10), longest)
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)/4)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-c.life.Done():
		return ErrClosed
	case <-ctx.Done():
		return ErrUnreachable
	}
}

// adopt takes a new session into use if it is for the same export.
func (c *Client) adopt(s *session) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.life.Err()
	if err != nil {
		err = ErrClosed
	} else if why := s.export.differs(c.export); why != "" {
		err = fmt.Errorf("%w: %v: %s", ErrChanged, c.uri, why)
		c.lost = err
	}
	if err != nil {
		go s.leave()
		return err
	}
	c.holes.forget()
	c.sessions.Add(1)
	if !s.ended { // otherwise the next request makes another one
		c.session = s
	}
	return nil
}

// gone is called once for each session, when nobody reads from any of its connections
// any more: every acknowledgement that came through it has been counted.
func (c *Client) gone(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.ended = true
	if c.session == s {
		c.session = nil
	}
	if c.lost == nil && c.life.Err() == nil && c.acked.Load() > c.flushed.Load() {
		c.lost = fmt.Errorf("%w: %v had acknowledged writes that may be gone; write them again with a new client",
			ErrNotFlushed, c.uri)
	}
}

// flushFailed ends all changes: a second flush that succeeds would say nothing of what
// was written before the first one.
func (c *Client) flushFailed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost == nil {
		c.lost = fmt.Errorf("an earlier flush has failed: %w", err)
	}
}

// do carries one request out, with as many sessions as it takes and the call may use.
func (c *Client) do(r *call) error {
	ctx, cancel := context.WithTimeout(c.life, c.options.TotalTime)
	defer cancel()
	stop := context.AfterFunc(c.hurry, func() { time.AfterFunc(hurryTime, cancel) })
	defer stop()
	for {
		s, err := c.current(ctx, r)
		if err != nil {
			return c.describe(r, err)
		}
		r.ackedFirst = c.acked.Load()
		sent, err := s.carryOut(ctx, r)
		if !errors.Is(err, errSessionLost) {
			if err == nil {
				c.failures.Store(0)
			}
			return c.describe(r, err)
		}
		<-s.gone
		c.failures.Add(1)
		if sent && !c.repeatable(r) {
			return c.describe(r, fmt.Errorf("%w: %w", ErrInterrupted, s.cause()))
		}
		if ctx.Err() != nil || errors.Is(s.cause(), ErrProtocol) {
			return c.describe(r, fmt.Errorf("%w: %w", ErrUnreachable, s.cause()))
		}
	}
}

// repeatable says whether a request that may or may not have been carried out can be
// sent once more. A flush can: gone has decided whether there is anything it would
// have to cover.
func (c *Client) repeatable(r *call) bool {
	switch r.command {
	case cmdWrite, cmdWriteZeroes:
		return false
	case cmdTrim:
		return !c.wrote.Load()
	default:
		return true
	}
}

// describe says which request failed and where; a ServerError does so itself.
func (c *Client) describe(r *call, err error) error {
	if err == nil {
		return nil
	}
	if c.life.Err() != nil {
		err = ErrClosed
	}
	var answer *ServerError
	if errors.As(err, &answer) {
		return fmt.Errorf("%v: %w", c.uri, err)
	}
	return fmt.Errorf("%v: %s of %d bytes at byte %d: %w", c.uri, r.command, r.length, r.offset, err)
}
