package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

var _ Device = (*Client)(nil)

func dial(t *testing.T, uri string, o Options) *Client {
	t.Helper()
	c, err := Dial(context.Background(), uri, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Whatever is done through the client is what the device holds, and what it reads.
func TestClientAndServerAreADevice(t *testing.T) {
	const size, unit = 256 * kib, 4 * kib
	for _, connections := range []int{1, 3} {
		d := randomMemory(size)
		s := serveDevice(t, d)
		c := dial(t, s.uri(""), Options{Connections: connections})
		rapid.Check(t, func(t *rapid.T) {
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			n := rapid.Int64Range(1, size-off).Draw(t, "n")
			want := d.content(0, size)
			var err error
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				p := pattern(int(n), byte(off))
				copy(want[off:], p)
				_, err = c.WriteAt(p, off)
			case 1:
				clear(want[off : off+n])
				err = c.Zero(off, n)
			case 2:
				clear(want[off : off+n])
				err = c.Discard(off, n)
			case 3:
				err = c.Flush()
			}
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, size)
			if _, err := c.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) || !bytes.Equal(d.content(0, size), want) {
				t.Fatal("the content is wrong")
			}
		})
	}
}

func TestClientIsUsedConcurrently(t *testing.T) {
	const workers, part = 24, 256 * kib
	d := randomMemory(workers * part)
	s := serve(t, Config{Exports: []Export{{Device: d}}, Limits: Limits{Depth: 4}})
	c := dial(t, s.uri(""), Options{Connections: 2})
	var all sync.WaitGroup
	for i := range int64(workers) {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(i)))
			for j := range 40 {
				n := 1 + rng.Int64N(part/(1+int64(j%10)*10))
				off := i*part + rng.Int64N(part-n+1)
				want, got := pattern(int(n), byte(rng.Int())), make([]byte, n)
				if _, err := c.WriteAt(want, off); err != nil {
					t.Error(err)
				}
				if j%16 == 0 {
					if err := c.Flush(); err != nil {
						t.Error(err)
					}
				}
				if _, err := c.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes at %d are not what was written: %v", n, off, err)
				}
			}
		})
	}
	all.Wait()
}

func TestReadAtTheEnd(t *testing.T) {
	d := randomMemory(1000)
	c := dial(t, serveDevice(t, d).uri(""), Options{})
	p := make([]byte, 600)
	if n, err := c.ReadAt(p, 500); n != 500 || !errors.Is(err, io.EOF) || !bytes.Equal(p[:n], d.content(500, 500)) {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := c.ReadAt(p, 1000); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%d, %v", n, err)
	}
	for _, off := range []int64{-1, 1001, 1<<63 - 1} {
		if _, err := c.ReadAt(p, off); !errors.Is(err, unix.EINVAL) {
			t.Errorf("at %d: %v", off, err)
		}
		requireError(t, "zero", c.Zero(off, 1), unix.EINVAL)
		requireError(t, "discard", c.Discard(off, 1), unix.EINVAL)
	}
	requireError(t, "zero", c.Zero(1, 1<<63-1), unix.EINVAL)
	if _, err := c.WriteAt(p, 500); !errors.Is(err, unix.EINVAL) {
		t.Errorf("write: %v", err)
	}
}

func TestLargeRequestsAreDivided(t *testing.T) {
	d := randomMemory(40 * mib)
	c := dial(t, serveDevice(t, d).uri(""), Options{})
	p := make([]byte, 40*mib)
	if _, err := c.ReadAt(p, 0); err != nil || !bytes.Equal(p, d.content(0, 40*mib)) {
		t.Errorf("read: %v", err)
	}
	if _, err := c.WriteAt(p[:35*mib], 5*mib); err != nil || !bytes.Equal(p[:35*mib], d.content(5*mib, 35*mib)) {
		t.Errorf("write: %v", err)
	}
	h := &huge{bytes: 1 << 40}
	c = dial(t, serveDevice(t, h).uri(""), Options{})
	requireError(t, "discard", c.Discard(1, 600*mib), nil)
	requireAccesses(t, h.seen(), access{"discard", 1, 256 * mib}, access{"discard", 1 + 256*mib, 256 * mib}, access{"discard", 1 + 512*mib, 88 * mib})
}

func TestServerErrorsKeepTheirMeaning(t *testing.T) {
	d := newMemory(mib)
	d.before = func(access) error { return unix.ENOSPC }
	c := dial(t, serveDevice(t, d).uri(""), Options{})
	_, err := c.WriteAt(make([]byte, 10), 20)
	var answer *ServerError
	if !errors.Is(err, unix.ENOSPC) || !errors.As(err, &answer) || answer.Op != "write" || answer.Off != 20 || answer.Bytes != 10 {
		t.Errorf("write: %v", err)
	}
	if !strings.Contains(err.Error(), "nbd+unix:") {
		t.Errorf("%v does not say where", err)
	}
}

func TestReadOnlyClients(t *testing.T) {
	d := newMemory(mib)
	s := serve(t, Config{Exports: []Export{{Name: "ro", Device: d, ReadOnly: true}, {Name: "rw", Device: d}}})
	for _, c := range []*Client{dial(t, s.uri("ro"), Options{}), dial(t, s.uri("rw"), Options{ReadOnly: true})} {
		if !c.ReadOnly() || c.CanDiscard() {
			t.Error("it is not read-only")
		}
		_, err := c.WriteAt(make([]byte, 1), 0)
		requireError(t, "write", err, unix.EROFS)
		requireError(t, "discard", c.Discard(0, 512), unix.EROFS)
		requireError(t, "zero", c.Zero(0, 512), unix.EROFS)
		requireError(t, "flush", c.Flush(), nil)
	}
	requireAccesses(t, d.seen())
}

// The forms in which an old or a small server may answer.
func TestClientWorksWithSmallServers(t *testing.T) {
	for name, set := range map[string]func(p *puppet){
		"all":                   func(*puppet) {},
		"no block status":       func(p *puppet) { p.knows = func(o option) bool { return o != optSetMetaContext } },
		"no structured replies": func(p *puppet) { p.knows = func(o option) bool { return o == optGo } },
		"no GO":                 func(p *puppet) { p.knows = func(option) bool { return false } },
		"not fixed":             func(p *puppet) { p.greeting = 0 },
		"not fixed, no zeroes":  func(p *puppet) { p.greeting = flagNoZeroes },
		"fixed, with zeroes":    func(p *puppet) { p.greeting = flagFixedNewstyle; p.knows = func(option) bool { return false } },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPuppet(t)
			set(p)
			c := dial(t, p.start(), Options{})
			if c.Bytes() != puppetBytes {
				t.Errorf("%d bytes", c.Bytes())
			}
			b := pattern(100*kib, 1)
			if _, err := c.ReadAt(b, 5); err != nil || !bytes.Equal(b, make([]byte, len(b))) {
				t.Errorf("read: %v", err)
			}
			if _, err := c.WriteAt(b, 5); err != nil {
				t.Error(err)
			}
			requireError(t, "zero", c.Zero(0, mib), nil)
			requireError(t, "flush", c.Flush(), nil)
			if start, end, err := c.NextData(77); start != 77 || end != puppetBytes || err != nil {
				t.Errorf("data is [%d,%d), %v", start, end, err)
			}
		})
	}
}

func TestServerWithoutAbilities(t *testing.T) {
	p := newPuppet(t)
	p.flags = flagHasFlags
	c := dial(t, p.start(), Options{})
	requireError(t, "flush", c.Flush(), unix.EOPNOTSUPP)
	requireError(t, "discard", c.Discard(0, 512), unix.EOPNOTSUPP)
	requireError(t, "zero", c.Zero(0, 3*mib/4), nil)
	if p.count(cmdWriteZeroes)+p.count(cmdTrim)+p.count(cmdFlush) > 0 || p.count(cmdWrite) != 12 {
		t.Errorf("the server was asked for %v", p.log())
	}
}

func TestServerWithLargeBlocks(t *testing.T) {
	p := newPuppet(t)
	p.minBlock, p.bytes = 4096, mib
	content := pattern(mib, 9)
	p.answer = func(w io.Writer, q request, _ []byte) bool {
		if (q.offset|uint64(q.length))%4096 != 0 || q.command == cmdRead && q.length > 65536 {
			t.Errorf("%s of %d at %d", q.command, q.length, q.offset)
		}
		if q.command != cmdRead {
			return p.succeed(w, q)
		}
		p.chunk(w, q, chunkFlagDone, chunkOffsetData, q.offset, content[q.offset:q.offset+uint64(q.length)])
		return true
	}
	c := dial(t, p.start(), Options{})
	for _, r := range []span{{0, 1}, {4095, 4097}, {4096, 8192}, {1, mib}, {mib - 1, mib}, {100, 200000}} {
		b := make([]byte, r.end-r.start)
		if _, err := c.ReadAt(b, r.start); err != nil || !bytes.Equal(b, content[r.start:r.end]) {
			t.Errorf("%v: %v", r, err)
		}
	}
	_, err := c.WriteAt(make([]byte, 512), 0)
	requireError(t, "write", err, unix.EINVAL)
	requireError(t, "zero", c.Zero(512, 4096), unix.EINVAL)
	requireError(t, "discard of less than a block", c.Discard(1, 8190), nil)
	if n := p.count(cmdTrim); n != 0 {
		t.Errorf("%d trims", n)
	}
	requireError(t, "discard", c.Discard(1, 8192), nil)
	if all := p.log(); all[len(all)-1].command != cmdTrim {
		t.Errorf("the requests are %+v", all)
	} else if q := all[len(all)-1]; q.offset != 4096 || q.length != 4096 {
		t.Errorf("the trim is %+v", q)
	}
	if start, _, err := c.NextData(4097); start != 4097 || err != nil {
		t.Errorf("data is at %d, %v", start, err)
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	uri := "nbd+unix:///?socket=" + ln.Addr().String()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err = Dial(ctx, uri, Options{})
	requireError(t, "with a context", err, context.DeadlineExceeded)
	_, err = Dial(context.Background(), uri, Options{DialTime: 10 * time.Millisecond})
	requireError(t, "with a limit", err, context.DeadlineExceeded)
}

func TestNextDataFindsWhatIsNotZero(t *testing.T) {
	const unit, count = kib, 32
	d := &mapped{memory: newMemory(unit * count), unit: unit, units: make([]Extent, count)}
	s := serveDevice(t, d)
	c := dial(t, s.uri(""), Options{})
	if !c.KnowsHoles() {
		t.Error("there is no block status")
	}
	rapid.Check(t, func(t *rapid.T) {
		for i := range d.units {
			d.set(i, Extent{Hole: rapid.Bool().Draw(t, "hole"), Zero: rapid.Bool().Draw(t, "zero")})
		}
		c.holes.forget()
		// A hole that is not said to read as zeros may hold anything.
		isData := func(at int64) bool { return !d.units[at/unit].Zero }
		for off := rapid.Int64Range(0, unit*count).Draw(t, "off"); off < unit*count; {
			start, end, err := c.NextData(off)
			if err != nil || start < off || end < start || end > unit*count || start == end && start != unit*count {
				t.Fatalf("data behind %d is [%d,%d), %v", off, start, end, err)
			}
			for at := off; at < end; at++ {
				if isData(at) != (at >= start) {
					t.Fatalf("data behind %d is [%d,%d), and at %d it is %v", off, start, end, at, isData(at))
				}
			}
			if end < unit*count && isData(end) {
				t.Fatalf("data ends at %d and goes on", end)
			}
			off = max(end, off+1)
		}
	})
}

// What was asked is kept, until the client itself changes something.
func TestNextDataAsksOnceUntilSomethingChanges(t *testing.T) {
	d := &mapped{memory: newMemory(64 * kib), unit: kib, units: make([]Extent, 64)}
	for i := range d.units {
		d.units[i].Zero = i%2 == 0
	}
	c := dial(t, serveDevice(t, d).uri(""), Options{})
	asked := func() (n int) {
		for _, a := range d.seen() {
			if a.op == "extents" {
				n++
			}
		}
		return n
	}
	for off := int64(0); off < c.Bytes(); {
		_, end, err := c.NextData(off)
		if err != nil {
			t.Fatal(err)
		}
		off = end
	}
	if n := asked(); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
	d.set(0, Extent{})
	if _, err := c.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if start, _, err := c.NextData(0); start != 0 || err != nil {
		t.Errorf("data is at %d, %v", start, err)
	}
}

// An answer that was on its way when something changed is not kept.
func TestOldExtentsAreNotKept(t *testing.T) {
	var e extentCache
	_, before := e.get()
	e.forget()
	e.keep(window{start: 0, end: 10}, before)
	if w, _ := e.get(); w.end != 0 {
		t.Errorf("%+v is kept", w)
	}
	_, now := e.get()
	e.keep(window{start: 0, end: 10}, now)
	if w, _ := e.get(); w.end != 10 {
		t.Errorf("%+v is kept", w)
	}
}
