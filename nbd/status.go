package nbd

import (
	"encoding/binary"
	"fmt"
)

// maxDescriptors is how many extents one reply describes; the client asks again.
const maxDescriptors = 4096

// maxStatusBytes is the reply for two contexts.
const maxStatusBytes = 2 * (chunkHeaderBytes + 4 + 8*maxDescriptors)

// blockStatus answers with one chunk for each context that the client has selected.
func (c *conn) blockStatus(r *reply, q request) error {
	mapped, ok := c.export.Device.(Mapped)
	if !ok {
		return errInval.asUnix()
	}
	extents, err := mapped.Extents(int64(q.offset), int64(q.length))
	if err != nil {
		return err
	}
	limit := maxDescriptors
	if q.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	body := c.acquire(maxStatusBytes)
	b := body.all[:0]
	selected := c.contexts.list()
	for i, x := range selected {
		head := chunkHeader{kind: chunkBlockStatus, cookie: q.cookie}
		if i == len(selected)-1 {
			head.flags = chunkFlagDone
		}
		if b, err = appendStatus(b, head, int64(q.length), extents, x, limit); err != nil {
			c.release(body)
			return err
		}
	}
	r.headBytes, r.body, r.bodyBytes = 0, body, len(b)
	return nil
}

// view is what one metadata context says of an extent.
type view struct {
	id    uint32
	flags func(Extent) uint32
}

func (c contexts) list() []view {
	var all []view
	if c.allocation {
		all = append(all, view{allocationID, allocationFlags})
	}
	if c.hydrated {
		all = append(all, view{hydratedID, hydratedFlags})
	}
	return all
}

func allocationFlags(e Extent) (flags uint32) {
	if e.Hole {
		flags |= stateHole
	}
	if e.Zero {
		flags |= stateZero
	}
	return flags
}

func hydratedFlags(e Extent) uint32 {
	if e.Hydrated {
		return stateHydrated
	}
	return 0
}

// appendStatus adds a chunk with at most limit descriptors, which reach over the next
// left bytes at most. Neighbours with the same flags become one.
func appendStatus(b []byte, head chunkHeader, left int64, extents []Extent, x view, limit int) ([]byte, error) {
	start, asked := len(b), left
	b = head.appendTo(b)
	b = binary.BigEndian.AppendUint32(b, x.id)
	first := len(b)
	for _, e := range extents {
		if e.Bytes <= 0 {
			return b, fmt.Errorf("the device describes an extent of %d bytes", e.Bytes)
		}
		// left began as 32 bits, so that every sum of extents fits as well.
		n, flags := uint32(min(e.Bytes, left)), x.flags(e)
		left -= int64(n)
		if len(b) > first && binary.BigEndian.Uint32(b[len(b)-4:]) == flags {
			binary.BigEndian.PutUint32(b[len(b)-8:], n+binary.BigEndian.Uint32(b[len(b)-8:]))
		} else if (len(b)-first)/8 == limit {
			break
		} else {
			b = binary.BigEndian.AppendUint32(b, n)
			b = binary.BigEndian.AppendUint32(b, flags)
		}
		if left == 0 {
			break
		}
	}
	if len(b) == first {
		return b, fmt.Errorf("the device describes nothing of the next %d bytes", asked)
	}
	binary.BigEndian.PutUint32(b[start+16:], uint32(len(b)-start-chunkHeaderBytes))
	return b, nil
}
