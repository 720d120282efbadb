package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

const (
	// inlineTime is how long a request may be expected to take if nobody else reads
	// meanwhile. Waking somebody up for that costs a few microseconds.
	inlineTime = 30 * time.Microsecond
	// inlineBytes is the largest payload of such a request.
	inlineBytes = 64 << 10
	// partingTime and partingBytes bound how long a connection that the server ends
	// stays open for the client to take its last replies.
	partingTime  = time.Second
	partingBytes = 1 << 20
)

// conn is a client in the transmission phase.
type conn struct {
	server     *Server
	export     *export
	stream     net.Conn
	in         *bufio.Reader // for who has the turn
	structured bool
	contexts   contexts
	bytes      int64 // size of the device
	readOnly   bool

	memory   *budget
	out      *outbox
	crew     crew
	watch    *watch
	paces    [2]pace   // of reads and of writes
	deadline time.Time // of reading; for who has the turn

	stopping atomic.Bool // no further request is to be read
	parting  bool        // the client did not ask for the end; set by who ends the turns
}

// serve carries out the requests of the client until it leaves, does not keep to the
// protocol, stalls, or ctx ends.
func (c *conn) serve(ctx context.Context) {
	c.memory = newBudget(c.server.config.Limits.ConnectionBytes)
	c.out = newOutbox(c)
	c.watch = newWatch(c.tookLong)
	stop := context.AfterFunc(ctx, c.stop)
	defer stop()
	c.crew.depth, c.crew.work = c.server.config.Limits.Depth, c.work
	c.crew.start()
	c.crew.all.Wait()
	c.out.send()
	c.watch.timer.Stop()
	if c.parting {
		c.part()
	}
}

// stop makes who has the turn stop reading.
func (c *conn) stop() {
	c.stopping.Store(true)
	c.stream.SetReadDeadline(past) //nolint:errcheck // a closed stream is not read from either
}

// disconnect ends the connection at once.
func (c *conn) disconnect() {
	c.stopping.Store(true)
	c.stream.Close() //nolint:errcheck // nothing more is to be sent
}

// part lets the client take its last replies: closing a socket that still has bytes of
// the client to be read could throw away what is on its way to it.
func (c *conn) part() {
	half, ok := c.stream.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.stream.SetReadDeadline(time.Now().Add(partingTime)) //nolint:errcheck // then the next line fails
	io.CopyN(io.Discard, c.stream, partingBytes)          //nolint:errcheck // whatever comes is of no use
}

// tookLong gives the turn of a worker away that is busy with a slow request. Replies
// that wait for the end of that are sent.
func (c *conn) tookLong() {
	c.crew.all.Go(c.out.send)
	c.crew.pass()
}

// work is the life of a worker that begins with the turn.
func (c *conn) work(w *worker) {
	for {
		// Whoever had the turn may have left replies for after the next request.
		if !c.nextIsThere() || c.out.full() {
			c.out.send()
		}
		q, body, err := c.receive()
		if err != nil {
			c.parting = !errors.Is(err, errLeft)
			c.out.send()
			c.crew.end()
			return
		}
		if !c.perform(w, q, body) && !c.crew.wait(w) {
			return
		}
	}
}

// perform carries a request out and answers it. It says whether the worker still has
// the turn.
func (c *conn) perform(w *worker, q request, body *buffer) bool {
	var p *pace
	if q.flags&cmdFlagFUA == 0 && q.command <= cmdWrite {
		p = &c.paces[q.command]
	}
	if p == nil || q.length > inlineBytes || p.average() > inlineTime {
		c.crew.pass()
		c.out.send() // replies that wait are not to wait for this request
		c.carryOut(w, q, body, p)
		c.out.send()
		return false
	}
	n := c.watch.begin()
	c.carryOut(w, q, body, p)
	if !c.watch.end(n) {
		c.out.send()
		return false
	}
	return true
}

func (c *conn) carryOut(w *worker, q request, body *buffer, p *pace) {
	start := time.Now()
	c.execute(&w.reply, q, body)
	if p != nil {
		p.note(time.Since(start))
	}
	c.out.put(&w.reply)
}

// nextIsThere says whether the whole next request has been received already, so that
// the reply to the one before may wait for it.
func (c *conn) nextIsThere() bool {
	n := c.in.Buffered()
	if n < requestBytes {
		return false
	}
	head, err := c.in.Peek(requestBytes)
	if err != nil {
		return false
	}
	q, ok := parseRequest(head)
	return ok && int64(n) >= requestBytes+q.payloadBytes()
}

// receive reads the next request with its payload, and takes the memory for the
// payload in either direction. A nil body means that there is none, or that the
// request is to be refused. The error is errLeft if the client is the one who left.
func (c *conn) receive() (request, *buffer, error) {
	q, err := c.receiveHead()
	if err != nil {
		return q, nil, err
	}
	if c.check(q) != nil || q.length == 0 || q.command > cmdWrite {
		return q, nil, c.skip(q.payloadBytes())
	}
	body := c.acquire(int(q.length))
	if q.command == cmdWrite {
		if err := c.receivePayload(body.all[:q.length]); err != nil {
			c.release(body)
			return q, nil, err
		}
	}
	return q, body, nil
}

// receiveHead waits for a request; an idle client may take as long as it likes.
func (c *conn) receiveHead() (request, error) {
	for {
		head, err := c.in.Peek(4)
		if err == nil && binary.BigEndian.Uint32(head) != magicRequest {
			return request{}, fmt.Errorf("%w: a request begins with %x", errProtocol, head)
		}
		if err == nil {
			head, err = c.in.Peek(requestBytes)
		}
		if c.stopping.Load() {
			return request{}, net.ErrClosed
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// A leftover of the last payload.
			if err := c.setDeadline(time.Time{}); err != nil {
				return request{}, err
			}
			continue
		}
		if err != nil {
			return request{}, fmt.Errorf("%w: %w", errLeft, err)
		}
		q, _ := parseRequest(head)
		c.in.Discard(requestBytes) //nolint:errcheck // they have just been seen
		if q.command == cmdDisconnect {
			return q, errLeft
		}
		return q, nil
	}
}

// setDeadline is for reading. It never takes back what stop has set.
func (c *conn) setDeadline(t time.Time) error {
	c.deadline = t
	if err := c.stream.SetReadDeadline(t); err != nil {
		return err
	}
	if c.stopping.Load() {
		return c.stream.SetReadDeadline(past)
	}
	return nil
}

// receivePayload fills p, and gives the client the stall time for each piece. The
// deadline is left in place, because taking it back would cost as much again.
func (c *conn) receivePayload(p []byte) error {
	for len(p) > 0 {
		piece := p[:min(len(p), writeBytes)]
		if len(piece) > c.in.Buffered() {
			if err := c.expectPayload(); err != nil {
				return err
			}
		}
		if _, err := io.ReadFull(c.in, piece); err != nil {
			return err
		}
		p = p[len(piece):]
	}
	return nil
}

func (c *conn) expectPayload() error {
	stall := c.server.config.Limits.StallTime
	if now := time.Now(); c.deadline.Sub(now) < stall/2 {
		return c.setDeadline(now.Add(stall))
	}
	return nil
}

// skip reads n bytes that are of no use, but in front of the next request. Those who
// announce more than anybody could want are disconnected.
func (c *conn) skip(n int64) error {
	if n > 2*MaxPayloadBytes {
		return fmt.Errorf("%w: a write of %d bytes", errProtocol, n)
	}
	for n > 0 {
		piece := min(n, writeBytes)
		if err := c.expectPayload(); err != nil {
			return err
		}
		if _, err := c.in.Discard(int(piece)); err != nil {
			return err
		}
		n -= piece
	}
	return nil
}

// acquire waits for the memory of a payload. Who has the turn keeps it meanwhile: a
// client that has too much under way is not read from.
func (c *conn) acquire(n int) *buffer {
	bytes := bufferBytes(n)
	if !c.memory.tryTake(bytes) {
		c.out.send() // what waits there holds memory
		c.memory.take(bytes)
	}
	if !c.server.memory.tryTake(bytes) {
		c.out.send()
		c.server.memory.take(bytes)
	}
	return pools.get(n)
}

// release gives a body back; nil is none.
func (c *conn) release(b *buffer) {
	if b == nil {
		return
	}
	bytes := int64(len(b.all))
	pools.put(b)
	c.memory.give(bytes)
	c.server.memory.give(bytes)
}
