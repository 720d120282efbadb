package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAllocatedBytes(t *testing.T) {
	const unit, count = kib, 32
	d := &mapped{memory: newMemory(unit * count), unit: unit, units: make([]Extent, count)}
	for i := range d.units {
		d.units[i] = Extent{Hole: i%4 == 0, Zero: i%2 == 0}
	}
	for _, least := range []int64{1, 4 * kib} {
		c := dial(t, serve(t, Config{Exports: []Export{{Device: d, MinBlockBytes: least}}}).uri(""), Options{})
		if n, err := c.AllocatedBytes(0, unit*count); n != unit*count*3/4 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if n, err := c.AllocatedBytes(unit/2, 4*unit); n != 3*unit || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if c.MinBlockBytes() != least || !c.CanFlush() || c.Sessions() != 1 {
			t.Errorf("%d, %v, %d", c.MinBlockBytes(), c.CanFlush(), c.Sessions())
		}
	}
	p := newPuppet(t)
	p.knows = func(o option) bool { return o != optSetMetaContext }
	p.flags = flagHasFlags
	c := dial(t, p.start(), Options{})
	if _, err := c.AllocatedBytes(0, 1); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Error(err)
	}
	if c.CanFlush() {
		t.Error("it can flush")
	}
}

func TestServerIsThePeer(t *testing.T) {
	c := dial(t, serveDevice(t, newMemory(mib)).uri(""), Options{})
	if p, err := c.Server(); err != nil || !p.Local || int(p.PID) != os.Getpid() || int(p.UID) != os.Geteuid() {
		t.Errorf("%+v, %v", p, err)
	}
	c.Close()
	if _, err := c.Server(); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
}

// Whoever uses a client judges each connection but the first, before anything else is
// asked of it.
func TestConnectionsAreRecognized(t *testing.T) {
	for name, judgement := range map[string]error{
		"the same":    nil,
		"another":     fmt.Errorf("%w: by its looks", ErrChanged),
		"cannot tell": errors.New("not now"),
	} {
		t.Run(name, func(t *testing.T) {
			p := newPuppet(t)
			p.once(cmdRead, hangUp)
			var mu sync.Mutex
			asked := 0
			c := dial(t, p.start(), Options{Recognize: func(export io.ReaderAt) error {
				mu.Lock()
				defer mu.Unlock()
				asked++
				if _, err := export.ReadAt(make([]byte, 100*kib+7), 5); err != nil {
					return err
				}
				if _, err := export.ReadAt(make([]byte, 2), puppetBytes-1); !errors.Is(err, unix.EINVAL) {
					t.Error(err)
				}
				if asked > 1 {
					return nil // once is what a server in trouble takes
				}
				return judgement
			}})
			b := bytes.Repeat([]byte{0xff}, 512)
			_, err := c.ReadAt(b, 0)
			if name != "another" {
				if err != nil || !bytes.Equal(b, make([]byte, 512)) {
					t.Error(err)
				}
				if want := map[string]int{"the same": 1, "cannot tell": 2}[name]; asked != want {
					t.Errorf("it was asked %d times", asked)
				}
				return
			}
			for range 2 {
				if !errors.Is(err, ErrChanged) || asked != 1 {
					t.Errorf("%v after it was asked %d times", err, asked)
				}
				_, err = c.ReadAt(b, 0)
			}
			requireError(t, "discard", c.Discard(0, 512), ErrChanged)
		})
	}
}

// Who is in a hurry does not wait for a server that is gone for as long as others do.
func TestHurry(t *testing.T) {
	p := newPuppet(t)
	p.answer = func(io.Writer, request, []byte) bool { return true } // and says nothing
	c := dial(t, p.start(), Options{})
	begun := make(chan struct{})
	ended := make(chan error)
	go func() {
		close(begun)
		_, err := c.ReadAt(make([]byte, 512), 0)
		ended <- err
	}()
	<-begun
	start := time.Now()
	c.Hurry()
	requireError(t, "a read that was under way", <-ended, ErrUnreachable)
	requireError(t, "a later one", c.Flush(), ErrUnreachable)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// Going through a hole that is much larger than what one request can ask about costs one
// walk, not one for each step; also for several who go through several holes.
func TestLargeHolesAreAskedForOnce(t *testing.T) {
	const windows = 64
	h := &sparse{huge: huge{bytes: windows * statusBytes}, data: []int64{20*statusBytes + 5, 41 * statusBytes}}
	c := dial(t, serveDevice(t, h).uri(""), Options{})
	for step := range int64(2 * windows) {
		for _, lag := range []int64{0, 3, 30} {
			off := max(0, step-lag) * statusBytes / 2
			want := h.next(off)
			if start, _, err := c.NextData(off); start != want || err != nil {
				t.Fatalf("data behind %d is at %d, %v; want %d", off, start, err, want)
			}
		}
	}
	if n := h.asked.Load(); n > 12*windows {
		t.Errorf("it was asked %d times", n)
	}
}

// sparse has a byte of data here and there.
type sparse struct {
	huge
	data  []int64
	asked atomic.Int64
}

func (s *sparse) next(off int64) int64 {
	for _, at := range s.data {
		if at >= off {
			return at
		}
	}
	return s.bytes
}

func (s *sparse) Extents(off, n int64) ([]Extent, error) {
	s.asked.Add(1)
	if at := s.next(off); at > off {
		return []Extent{{Bytes: min(n, at-off), Hole: true, Zero: true}}, nil
	}
	return []Extent{{Bytes: 1}}, nil
}
