package hydrate

import (
	"context"
	"sync"

	"golang.org/x/time/rate"
)

// Limiter holds copies back.
type Limiter interface {
	// Wait returns when n more bytes may be copied, or with the context's error.
	Wait(ctx context.Context, n int64) error
}

// Throttle is a Limiter whose rate can change while copies wait on it.
type Throttle struct {
	mu      sync.Mutex
	limiter *rate.Limiter
}

// NewThrottle limits to bytesPerSecond; 0 is no limit.
func NewThrottle(bytesPerSecond int64) *Throttle {
	t := &Throttle{limiter: rate.NewLimiter(rate.Inf, 0)}
	t.Set(bytesPerSecond)
	return t
}

// Set changes the rate, from now on and for those who wait already.
func (t *Throttle) Set(bytesPerSecond int64) {
	limit, burst := rate.Inf, 0
	if bytesPerSecond > 0 {
		// A tenth of a second's worth, so that the rate is even.
		limit, burst = rate.Limit(bytesPerSecond), int(max(1, bytesPerSecond/10))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limiter.SetLimit(limit)
	t.limiter.SetBurst(burst)
}

// Wait takes n bytes out of the rate, in portions of at most one burst: a single
// larger portion would never be granted.
func (t *Throttle) Wait(ctx context.Context, n int64) error {
	for n > 0 {
		if t.limiter.Limit() == rate.Inf {
			return ctx.Err()
		}
		portion := min(n, int64(max(1, t.limiter.Burst())))
		if err := t.limiter.WaitN(ctx, int(portion)); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue // the burst shrank between the two calls
		}
		n -= portion
	}
	return ctx.Err()
}
