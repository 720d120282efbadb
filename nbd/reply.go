package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"sync"
	"time"
)

const (
	// outboxReplies is how many replies of a connection may wait to be sent.
	outboxReplies = 64
	// writeBytes is about how much goes to the client at once; the deadline is
	// renewed for each such piece.
	writeBytes = 1 << 20
	// messageBytes is the longest message in an error reply.
	messageBytes = 60
)

// reply is one answer. It has room of its own for everything but data, so that answers
// cost no allocation.
type reply struct {
	head      [chunkHeaderBytes + 8 + messageBytes]byte
	headBytes int
	body      *buffer // given back when the reply has been sent; may be nil
	bodyBytes int
}

// setSimple makes it a reply without data.
func (r *reply) setSimple(cookie uint64, e errno) {
	r.headBytes = len(appendSimpleReply(r.head[:0], cookie, e))
	r.body, r.bodyBytes = nil, 0
}

// setData makes it a successful answer to a read.
func (r *reply) setData(structured bool, q request, body *buffer) {
	if !structured {
		r.headBytes = len(appendSimpleReply(r.head[:0], q.cookie, success))
	} else {
		b := chunkHeader{flags: chunkFlagDone, kind: chunkOffsetData, cookie: q.cookie, length: 8 + q.length}.appendTo(r.head[:0])
		r.headBytes = len(binary.BigEndian.AppendUint64(b, q.offset))
	}
	r.body, r.bodyBytes = body, int(q.length)
}

// setError makes it a structured error with a message.
func (r *reply) setError(cookie uint64, e errno, message string) {
	message = message[:min(len(message), messageBytes)]
	b := chunkHeader{flags: chunkFlagDone, kind: chunkError, cookie: cookie, length: uint32(6 + len(message))}.appendTo(r.head[:0])
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	r.headBytes = len(append(b, message...))
	r.body, r.bodyBytes = nil, 0
}

// setNone makes it a structured success without data.
func (r *reply) setNone(cookie uint64) {
	r.headBytes = len(chunkHeader{flags: chunkFlagDone, kind: chunkNone, cookie: cookie}.appendTo(r.head[:0]))
	r.body, r.bodyBytes = nil, 0
}

// outbox holds the replies of a connection until they are sent. Whoever calls send
// while nobody else is sending sends everything there is, in as few system calls as
// possible; the others go on with their work.
type outbox struct {
	c       *conn
	mu      sync.Mutex
	room    sync.Cond
	ring    [outboxReplies]reply
	first   int // the oldest reply
	count   int
	bytes   int // of bodies that wait
	sending bool
	broken  bool // the client gets no more

	// For the one who sends.
	deadline time.Time
	plain    bool // the stream takes several buffers at once
	pieces   net.Buffers
	unsent   net.Buffers // pieces, less what is sent; WriteTo needs an address
	joined   []byte      // the pieces in one, where plain is false
}

func newOutbox(c *conn) *outbox {
	o := &outbox{c: c}
	o.room.L = &o.mu
	_, encrypted := c.stream.(*tls.Conn)
	o.plain = !encrypted
	return o
}

// put adds a reply, and waits for room if there is none. The body belongs to the
// outbox from here on.
func (o *outbox) put(r *reply) {
	o.mu.Lock()
	for o.count == outboxReplies && !o.broken {
		if !o.sending {
			o.drain()
			continue
		}
		o.room.Wait()
	}
	if o.broken {
		o.mu.Unlock()
		o.c.release(r.body)
		return
	}
	o.ring[(o.first+o.count)%outboxReplies] = *r
	o.count++
	o.bytes += r.bodyBytes
	o.mu.Unlock()
}

// full says whether it is time to send.
func (o *outbox) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count >= outboxReplies/2 || o.bytes >= 256<<10
}

// send sends what is there, unless somebody is at it already.
func (o *outbox) send() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.sending {
		o.drain()
	}
}

// drain sends until nothing is left; under mu, which it gives up meanwhile.
func (o *outbox) drain() {
	o.sending = true
	for o.count > 0 {
		first, count := o.first, o.count
		if !o.broken {
			o.mu.Unlock()
			err := o.write(first, count)
			o.mu.Lock()
			if err != nil {
				o.broken = true
				o.c.disconnect()
			}
		}
		for i := range count {
			r := &o.ring[(first+i)%outboxReplies]
			o.bytes -= r.bodyBytes
			o.c.release(r.body)
			r.body = nil
		}
		o.first = (o.first + count) % outboxReplies
		o.count -= count
		o.room.Broadcast()
	}
	o.sending = false
}

// write sends count replies of the ring. Nobody else touches them meanwhile.
func (o *outbox) write(first, count int) error {
	bytes := 0
	for i := range count {
		r := &o.ring[(first+i)%outboxReplies]
		o.pieces = append(o.pieces, r.head[:r.headBytes])
		bytes += r.headBytes
		for at := 0; at < r.bodyBytes; {
			n := min(r.bodyBytes-at, writeBytes)
			o.pieces = append(o.pieces, r.body.all[at:at+n])
			at += n
			if bytes += n; bytes >= writeBytes {
				if err := o.writePieces(); err != nil {
					return err
				}
				bytes = 0
			}
		}
	}
	return o.writePieces()
}

// writePieces sends the pieces, or fails after the stall time.
func (o *outbox) writePieces() (err error) {
	defer func() {
		clear(o.pieces)
		o.pieces = o.pieces[:0]
	}()
	if len(o.pieces) == 0 {
		return nil
	}
	// Moving a deadline costs about as much as sending a small reply.
	stall := o.c.server.config.Limits.StallTime
	if now := time.Now(); o.deadline.Sub(now) < stall/2 {
		o.deadline = now.Add(stall)
		if err := o.c.stream.SetWriteDeadline(o.deadline); err != nil {
			return err
		}
	}
	if o.plain {
		o.unsent = o.pieces
		_, err = o.unsent.WriteTo(o.c.stream)
		return err
	}
	// One record of TLS for many small replies.
	o.joined = o.joined[:0]
	for _, p := range o.pieces {
		if len(o.joined)+len(p) <= readBufferBytes {
			o.joined = append(o.joined, p...)
			continue
		}
		if err := o.writeJoined(); err != nil {
			return err
		}
		if len(p) > readBufferBytes/2 {
			if _, err := o.c.stream.Write(p); err != nil {
				return err
			}
			continue
		}
		o.joined = append(o.joined, p...)
	}
	return o.writeJoined()
}

func (o *outbox) writeJoined() error {
	_, err := o.c.stream.Write(o.joined)
	o.joined = o.joined[:0]
	return err
}
