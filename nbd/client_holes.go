package nbd

import (
	"slices"
	"sync"
)

// statusBytes is how much of the export one block status asks about.
const statusBytes = 1 << 30

// window is what the server has said about a part of the export. It does not change.
type window struct {
	start, end int64
	data       []span // in order, without neighbours that touch; between them are zeros
}

// keptHoles is how many holes are remembered: one for each of those who go through the
// export at a time, and some more.
const keptHoles = 8

// extentCache is the window that was asked for last, and the holes that were seen last.
// A hole may reach over many windows, and who goes through it step by step asks once.
type extentCache struct {
	mu         sync.Mutex
	generation uint64 // grows with each forget
	last       window
	holes      []span // the oldest first
}

// forget makes the next NextData ask again.
func (e *extentCache) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.generation++
	e.last, e.holes = window{}, nil
}

func (e *extentCache) get() (window, uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last, e.generation
}

// skip is where the hole ends that off is known to lie in, or off.
func (e *extentCache) skip(off int64) (int64, uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.holes {
		if off >= h.start && off < h.end {
			off = h.end
		}
	}
	return off, e.generation
}

// keepHole keeps a hole that was found since a generation, unless that is over.
func (e *extentCache) keepHole(found span, generation uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	known := slices.ContainsFunc(e.holes, func(h span) bool { return h.start <= found.start && found.end <= h.end })
	if e.generation != generation || known || found.end-found.start <= statusBytes {
		return
	}
	if len(e.holes) == keptHoles {
		e.holes = slices.Delete(e.holes, 0, 1)
	}
	e.holes = append(e.holes, found)
}

// keep keeps what was asked for at a generation, unless that is over.
func (e *extentCache) keep(w window, generation uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.generation == generation {
		e.last = w
	}
}

// next is the first data at or behind off, which lies in the window. Without any it is
// false.
func (w window) next(off int64) (span, bool) {
	i, _ := slices.BinarySearchFunc(w.data, off, func(s span, off int64) int {
		if s.end <= off {
			return -1
		}
		return 1
	})
	if i == len(w.data) {
		return span{}, false
	}
	return span{max(off, w.data[i].start), w.data[i].end}, true
}

// NextData is the first range with data at or behind off, or twice Bytes() if there is
// none. All between off and it reads as zeros, says the server. Data may go on behind
// its end. Against a server without block status everything is data.
func (c *Client) NextData(off int64) (start, end int64, err error) {
	if err := c.within("look for data", off, 0); err != nil {
		return 0, 0, err
	}
	if !c.export.allocation {
		return off, c.Bytes(), nil
	}
	from := off
	off, since := c.holes.skip(off)
	defer func() { c.holes.keepHole(span{from, off}, since) }()
	for off < c.Bytes() {
		w, generation := c.holes.get()
		if off < w.start || off >= w.end {
			if w, err = c.askStatus(off); err != nil {
				return 0, 0, err
			}
			c.holes.keep(w, generation)
		}
		if s, ok := w.next(off); ok {
			off = s.start
			return s.start, s.end, nil
		}
		off = w.end
	}
	return c.Bytes(), c.Bytes(), nil
}

// askStatus asks the server about the export from off on.
func (c *Client) askStatus(off int64) (window, error) {
	start := off &^ (c.export.minBlockBytes - 1)
	w := window{start: start, end: start}
	err := c.eachExtent(start, func(next int64, flags uint32) {
		// What is a hole and is not said to read as zeros has to be read.
		if flags&stateZero == 0 && next > w.end {
			if n := len(w.data); n > 0 && w.data[n-1].end == w.end {
				w.data[n-1].end = next
			} else {
				w.data = append(w.data, span{w.end, next})
			}
		}
		w.end = next
	})
	return w, err
}

// eachExtent asks for block status from start on, which lies on a block, and visits what
// the server answers in order: each extent ends where it is told and begins where the one
// before it ended. That may be less than was asked for.
func (c *Client) eachExtent(start int64, visit func(end int64, flags uint32)) error {
	r := call{request: request{
		command: cmdBlockStatus, offset: uint64(start), length: uint32(min(statusBytes, c.Bytes()-start)),
	}}
	if err := c.do(&r); err != nil {
		return err
	}
	for _, e := range r.extents {
		// The last one may reach further than was asked for, though not beyond the end.
		start = min(start+int64(e.bytes), c.Bytes())
		visit(start, e.flags)
	}
	return nil
}
