package clone

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// ErrOutside says that a guest asked for bytes that the device does not have.
var ErrOutside = errors.New("outside the device")

// guests knows whether anybody uses the device.
type guests struct {
	inFlight atomic.Int64
	last     atomic.Int64 // end of the last request, as a time since epoch
}

// epoch gives times without a wall clock, which may be set.
var epoch = time.Now()

func (g *guests) enter() { g.inFlight.Add(1) }

func (g *guests) leave() {
	g.last.Store(int64(time.Since(epoch)))
	g.inFlight.Add(-1)
}

// GuestBusy says whether a guest's request is in flight, or has ended no longer ago
// than quiet. Background work makes room then.
func (c *Clone) GuestBusy(quiet time.Duration) bool {
	if c.guests.inFlight.Load() > 0 {
		return true
	}
	last := c.guests.last.Load()
	return last != 0 && time.Since(epoch)-time.Duration(last) < quiet
}

// inside refuses a range that is not on the device.
func (c *Clone) inside(op string, off, n int64) error {
	if off < 0 || n < 0 || off > c.Bytes() || n > c.Bytes()-off {
		return fmt.Errorf("%s of %d bytes at %d: %w, which has %d bytes", op, n, off, ErrOutside, c.Bytes())
	}
	return nil
}
