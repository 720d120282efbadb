package nbd

import (
	"crypto/tls"
	"fmt"

	"golang.org/x/sys/unix"
)

// CanFlush says whether the server knows flush, so that writes can be made durable.
func (c *Client) CanFlush() bool { return c.export.flags&flagFlush != 0 }

// MinBlockBytes is the least that the server writes: offsets and lengths of writes and
// zeroes have to be multiples of it.
func (c *Client) MinBlockBytes() int64 { return c.export.minBlockBytes }

// Sessions counts how often the server was connected to. A change between two calls
// means that a restarted server may have lost what it had acknowledged in between and
// no flush had covered.
func (c *Client) Sessions() uint64 { return c.sessions.Load() }

// AllocatedBytes is how much of a range of the export the server has space for, which it
// is asked for anew: everything that is no hole, also where it reads as zeros. A server
// without block status is unix.EOPNOTSUPP.
func (c *Client) AllocatedBytes(off, n int64) (int64, error) {
	if err := c.within("count what is allocated", off, n); err != nil {
		return 0, err
	}
	if !c.KnowsHoles() {
		return 0, fmt.Errorf("%v: count what is allocated: the server knows no block status: %w", c.uri, unix.EOPNOTSUPP)
	}
	var total int64
	for limit := off + n; off < limit; {
		at := off &^ (c.export.minBlockBytes - 1)
		err := c.eachExtent(at, func(end int64, flags uint32) {
			if flags&stateHole == 0 {
				total += max(0, min(end, limit)-max(at, off))
			}
			at = end
		})
		if err != nil {
			return 0, err
		}
		off = max(at, off+1)
	}
	return total, nil
}

// Server says who is at the other end of a connection. It is an error while there is
// none.
func (c *Client) Server() (Peer, error) {
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	if s == nil {
		return Peer{}, ErrUnreachable
	}
	stream := s.links[0].stream
	if encrypted, ok := stream.(*tls.Conn); ok {
		stream = encrypted.NetConn()
	}
	return peerOf(stream)
}
