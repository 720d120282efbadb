package hydrate

import (
	"context"
	"time"
)

// yield makes room for guests: while they use the device, a copy begins only when no
// other is in flight, so that one worker is left, and never none.
func (r *run) yield(ctx context.Context) {
	for r.o.GuestQuiet > 0 && r.copies.Load() > 0 && r.c.GuestBusy(r.o.GuestQuiet) {
		select {
		case <-ctx.Done():
			return
		case <-r.ended:
		case <-time.After(r.o.GuestQuiet): // the guests may have gone
		}
	}
}

// stop says that a copy has ended.
func (r *run) stop() {
	r.copies.Add(-1)
	select {
	case r.ended <- struct{}{}:
	default: // the planner has not looked since another one ended
	}
}
