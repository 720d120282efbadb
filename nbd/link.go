package nbd

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// linkDepth is how many requests are under way on one connection.
const linkDepth = 64

// call is a request of the client with all that belongs to it.
type call struct {
	request
	data       []byte // what is written, or where to read to
	ackedFirst uint64 // for a flush: how many acknowledgements it covers

	extents []extent // the answer to block status
}

// extent is a descriptor of base:allocation.
type extent struct {
	bytes uint32
	flags uint32
}

func (r *call) changes() bool { return r.writes() || r.command == cmdFlush }

// pending is the place of a request that is under way.
type pending struct {
	place int
	done  chan error

	// Under mu of the link.
	call   *call // nil if the place is free
	cookie uint64

	// For who reads.
	filled spans
	failed *ServerError
	status bool // a chunk with extents has come
}

// link is one connection. Anybody may send; one goroutine reads.
type link struct {
	session *session
	stream  net.Conn
	in      *bufio.Reader
	free    chan *pending

	sending  sync.Mutex
	head     [requestBytes]byte
	pieces   net.Buffers
	deadline time.Time

	mu      sync.Mutex
	places  [linkDepth]*pending
	serial  uint64
	readErr error // set when nobody reads any more
}

func newLink(s *session, w *wire) *link {
	l := &link{session: s, stream: w.stream, in: w.in, free: make(chan *pending, linkDepth)}
	for i := range l.places {
		l.places[i] = &pending{place: i, done: make(chan error, 1)}
		l.free <- l.places[i]
	}
	return l
}

// send sends a request, and says whether the server may have seen any of it. The place
// gets exactly one answer afterwards, whatever send returns.
func (l *link) send(p *pending, r *call) (sent bool, err error) {
	l.mu.Lock()
	if l.readErr != nil {
		l.mu.Unlock()
		p.done <- errSessionLost
		return false, l.readErr
	}
	l.serial++
	// The place makes it easy to find, the number tells it from one that had the
	// place before.
	p.cookie = l.serial*linkDepth + uint64(p.place)
	p.call, p.failed, p.status = r, nil, false
	p.filled.reset()
	r.cookie, r.extents = p.cookie, r.extents[:0]
	l.mu.Unlock()

	l.sending.Lock()
	defer l.sending.Unlock()
	limit := l.session.client.options.RequestTime
	if now := time.Now(); l.deadline.Sub(now) < limit/2 {
		l.deadline = now.Add(limit)
		if err := l.stream.SetWriteDeadline(l.deadline); err != nil {
			return false, err
		}
	}
	l.pieces = append(l.pieces[:0], r.appendTo(l.head[:0]))
	if r.command == cmdWrite {
		l.pieces = append(l.pieces, r.data)
	}
	n, err := l.pieces.WriteTo(l.stream)
	return n > 0, err
}

// sayGoodbye asks the server to close the connection. It does not wait for those who
// are sending.
func (l *link) sayGoodbye() {
	if !l.sending.TryLock() {
		return
	}
	defer l.sending.Unlock()
	l.stream.SetWriteDeadline(time.Now().Add(time.Second))               //nolint:errcheck // then the next line fails
	l.stream.Write(request{command: cmdDisconnect}.appendTo(l.head[:0])) //nolint:errcheck // it is a courtesy
}

// read takes answers until the connection ends, and ends the session then.
func (l *link) read() {
	var err error
	for err == nil {
		err = l.readReply()
	}
	l.session.fail(fmt.Errorf("receive an answer: %w", err))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readErr = err
	for _, p := range l.places {
		if p.call != nil {
			p.call = nil
			p.done <- errSessionLost
		}
	}
}

// readReply reads one message.
func (l *link) readReply() error {
	var head [chunkHeaderBytes]byte
	if _, err := io.ReadFull(l.in, head[:simpleReplyBytes]); err != nil {
		return err
	}
	switch binary.BigEndian.Uint32(head[:]) {
	case magicSimpleReply:
		return l.readSimple(binary.BigEndian.Uint64(head[8:]), errno(binary.BigEndian.Uint32(head[4:])))
	case magicChunk:
		if _, err := io.ReadFull(l.in, head[simpleReplyBytes:]); err != nil {
			return err
		}
		return l.readChunk(parseChunkHeader(head[:]))
	default:
		return fmt.Errorf("%w: a reply begins with %x", ErrProtocol, head[:4])
	}
}

// find is the request with the cookie.
func (l *link) find(cookie uint64) (*pending, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.places[cookie%linkDepth]
	if p.call == nil || p.cookie != cookie {
		return nil, fmt.Errorf("%w: an answer to nothing that was asked", ErrProtocol)
	}
	return p, nil
}

// finish gives a request its answer.
func (l *link) finish(p *pending) {
	c, r := l.session.client, p.call
	var err error
	if p.failed != nil {
		err = p.failed
	} else {
		switch r.command {
		case cmdWrite, cmdWriteZeroes:
			c.acked.Add(1)
		case cmdFlush:
			for old := c.flushed.Load(); old < r.ackedFirst && !c.flushed.CompareAndSwap(old, r.ackedFirst); {
				old = c.flushed.Load()
			}
		default:
		}
	}
	l.mu.Lock()
	p.call = nil
	l.mu.Unlock()
	p.done <- err
}

func (l *link) readSimple(cookie uint64, e errno) error {
	p, err := l.find(cookie)
	if err != nil {
		return err
	}
	r := p.call
	switch {
	case l.session.export.structured && r.command == cmdRead || e == success && r.command == cmdBlockStatus:
		return fmt.Errorf("%w: a simple reply to %s", ErrProtocol, r.command)
	case e != success:
		p.fail(e, "")
	case r.command == cmdRead:
		if _, err := io.ReadFull(l.in, r.data); err != nil {
			return err
		}
	}
	return l.conclude(p)
}

// conclude ends a request, unless the server wants to go: then it ends the session.
func (l *link) conclude(p *pending) error {
	goes := p.failed != nil && errno(p.failed.Errno) == errShut
	if goes && !p.call.writes() {
		return fmt.Errorf("%w: the server is shutting down", io.EOF)
	}
	l.finish(p)
	if goes {
		return fmt.Errorf("%w: the server is shutting down", io.EOF)
	}
	return nil
}

func (p *pending) fail(e errno, message string) {
	if p.failed != nil {
		return // the first one says most
	}
	r := p.call
	p.failed = &ServerError{
		Op: r.command.String(), Off: int64(r.offset), Bytes: int64(r.length), Errno: e.asUnix(), Message: message,
	}
}
