package hydrate_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"decant/hydrate"
)

func TestThrottleKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		throttle := hydrate.NewThrottle(1 << 20)
		begun := time.Now()
		for range 10 {
			if err := throttle.Wait(context.Background(), 1<<20); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begun); took < 9800*time.Millisecond || took > 10100*time.Millisecond {
			t.Errorf("10 MiB at 1 MiB/s took %s", took)
		}
	})
}

// A portion above the burst is no error, it only takes its time.
func TestThrottleTakesLargePortions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		if err := hydrate.NewThrottle(1000).Wait(context.Background(), 5000); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < 4800*time.Millisecond || took > 5100*time.Millisecond {
			t.Errorf("5000 bytes at 1000 a second took %s", took)
		}
	})
}

func TestThrottleChangesWhileSomebodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		throttle := hydrate.NewThrottle(1000)
		begun := time.Now()
		go func() {
			time.Sleep(time.Second)
			throttle.Set(0)
		}()
		if err := throttle.Wait(context.Background(), 1<<20); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("waited %s although the limit was lifted after 1 s", took)
		}
	})
}

func TestThrottleEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := hydrate.NewThrottle(1).Wait(ctx, 1<<20); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait ended with %v", err)
		}
	})
}
