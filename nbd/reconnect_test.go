package nbd

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func hangUp(io.Writer, request) bool { return false }

func TestReadsAreRepeatedOverALostConnection(t *testing.T) {
	for name, f := range map[string]func(p *puppet) func(w io.Writer, q request) bool{
		"no answer": func(*puppet) func(io.Writer, request) bool { return hangUp },
		"half an answer": func(p *puppet) func(io.Writer, request) bool {
			return func(w io.Writer, q request) bool {
				p.chunk(w, q, 0, chunkOffsetData, q.offset, bytes.Repeat([]byte{0xbb}, 100))
				return false
			}
		},
		"shutting down": func(p *puppet) func(io.Writer, request) bool {
			return func(w io.Writer, q request) bool {
				p.chunk(w, q, chunkFlagDone, chunkError, uint32(errShut), uint16(0))
				return true
			}
		},
		"silence": func(*puppet) func(io.Writer, request) bool {
			return func(io.Writer, request) bool { return true }
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPuppet(t)
			p.once(cmdRead, f(p))
			// Only silence has to be waited for.
			c := dial(t, p.start(), Options{RequestTime: map[bool]time.Duration{true: 20 * time.Millisecond}[name == "silence"]})
			b := bytes.Repeat([]byte{0xff}, 512)
			if _, err := c.ReadAt(b, 0); err != nil || !bytes.Equal(b, make([]byte, 512)) {
				t.Errorf("%v, %x", err, b)
			}
			if p.seen() != 2 {
				t.Errorf("%d connections", p.seen())
			}
		})
	}
}

func TestBlockStatusIsRepeatedOverALostConnection(t *testing.T) {
	p := newPuppet(t)
	p.once(cmdBlockStatus, func(w io.Writer, q request) bool {
		p.chunk(w, q, 0, chunkBlockStatus, uint32(42), uint32(1000), uint32(stateZero))
		return false
	})
	c := dial(t, p.start(), Options{})
	if start, end, err := c.NextData(0); start != 0 || end != puppetBytes || err != nil {
		t.Errorf("data is [%d,%d), %v", start, end, err)
	}
}

// A write that was sent may still be carried out by the server that has it, after one
// that was made since.
func TestWritesAreNotRepeated(t *testing.T) {
	for _, kind := range []command{cmdWrite, cmdWriteZeroes} {
		p := newPuppet(t)
		p.once(kind, hangUp)
		c := dial(t, p.start(), Options{})
		change := func() error {
			if kind == cmdWrite {
				_, err := c.WriteAt(make([]byte, 512), 0)
				return err
			}
			return c.Zero(0, 512)
		}
		requireError(t, kind.String(), change(), ErrInterrupted)
		if n := p.count(kind); n != 1 {
			t.Errorf("%s was sent %d times", kind, n)
		}
		// Nothing that was acknowledged is lost, so it can go on.
		requireError(t, kind.String(), change(), nil)
		requireError(t, "flush", c.Flush(), nil)
	}
}

func TestDiscardsAreRepeatedUnlessTheClientHasWritten(t *testing.T) {
	for _, wrote := range []bool{false, true} {
		p := newPuppet(t)
		p.once(cmdTrim, hangUp)
		c := dial(t, p.start(), Options{})
		want, count := error(nil), 2
		if wrote {
			if _, err := c.WriteAt([]byte{1}, 0); err != nil {
				t.Fatal(err)
			}
			requireError(t, "flush", c.Flush(), nil)
			want, count = ErrInterrupted, 1
		}
		requireError(t, "discard", c.Discard(0, 512), want)
		if n := p.count(cmdTrim); n != count {
			t.Errorf("it was sent %d times, want %d", n, count)
		}
	}
}

// fault 79: a server that was restarted may have lost what it had acknowledged, and its
// next flush says nothing about that.
func TestFault79FlushNeverCoversWhatALostConnectionTookAlong(t *testing.T) {
	for name, lose := range map[string]func(c *Client, p *puppet){
		"noticed by a read": func(c *Client, p *puppet) {
			p.hangUp()
			if _, err := c.ReadAt(make([]byte, 1), 0); err != nil {
				t.Error(err)
			}
		},
		"noticed by the flush": func(_ *Client, p *puppet) { p.once(cmdFlush, hangUp) },
		"shutting down": func(_ *Client, p *puppet) {
			p.once(cmdFlush, func(w io.Writer, q request) bool {
				put(w, appendSimpleReply(nil, q.cookie, errShut))
				return true
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPuppet(t)
			p.flags |= flagCanMultiConn
			c := dial(t, p.start(), Options{Connections: 3})
			write := func() error { _, err := c.WriteAt([]byte{1}, 0); return err }
			requireError(t, "write", write(), nil)
			lose(c, p)
			requireError(t, "flush", c.Flush(), ErrNotFlushed)
			requireError(t, "a second flush", c.Flush(), ErrNotFlushed)
			requireError(t, "write", write(), ErrNotFlushed)
			requireError(t, "discard", c.Discard(0, 512), ErrNotFlushed)
			if _, err := c.ReadAt(make([]byte, 1), 0); err != nil {
				t.Errorf("it cannot be read: %v", err)
			}
		})
	}
}

// fault 79: what was flushed before is safe.
func TestFault79FlushedWritesSurviveALostConnection(t *testing.T) {
	p := newPuppet(t)
	c := dial(t, p.start(), Options{})
	for range 3 {
		if _, err := c.WriteAt([]byte{1}, 0); err != nil {
			t.Fatal(err)
		}
		requireError(t, "flush", c.Flush(), nil)
		p.hangUp()
		if _, err := c.ReadAt(make([]byte, 1), 0); err != nil {
			t.Fatal(err)
		}
	}
	// With nothing to cover, a flush may be repeated.
	p.once(cmdFlush, hangUp)
	requireError(t, "flush", c.Flush(), nil)
}

// fault 79: connections live and die together, since the flush on one says nothing of
// what a server before it acknowledged on another.
func TestFault79OneLostConnectionEndsAll(t *testing.T) {
	p := newPuppet(t)
	p.flags |= flagCanMultiConn
	var writer io.Writer
	p.answer = func(w io.Writer, q request, _ []byte) bool {
		if q.command == cmdWrite {
			writer = w
		}
		// The first read comes on the other connection, and takes only that one away.
		if q.command == cmdRead && w != writer && p.seen() == 2 {
			return false
		}
		return p.succeed(w, q)
	}
	c := dial(t, p.start(), Options{Connections: 2})
	if _, err := c.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	if p.seen() != 4 {
		t.Errorf("%d connections, want 4", p.seen())
	}
	requireError(t, "flush", c.Flush(), ErrNotFlushed)
}

// fault 79: the same client after a flush that the server failed.
func TestFault79FailedFlushIsNotTriedAgain(t *testing.T) {
	p := newPuppet(t)
	p.once(cmdFlush, func(w io.Writer, q request) bool {
		put(w, appendSimpleReply(nil, q.cookie, errIO))
		return true
	})
	c := dial(t, p.start(), Options{})
	if _, err := c.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	requireError(t, "flush", c.Flush(), unix.EIO)
	requireError(t, "a second flush", c.Flush(), unix.EIO)
	if n := p.count(cmdFlush); n != 1 {
		t.Errorf("%d flushes were sent", n)
	}
}

func TestAnotherExportUnderTheNameIsRefused(t *testing.T) {
	for name, change := range map[string]func(p *puppet){
		"size":     func(p *puppet) { p.bytes++ },
		"flags":    func(p *puppet) { p.flags |= flagReadOnly },
		"contexts": func(p *puppet) { p.knows = func(o option) bool { return o != optSetMetaContext } },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPuppet(t)
			c := dial(t, p.start(), Options{})
			p.close()
			change(p)
			p.listen()
			for range 2 {
				_, err := c.ReadAt(make([]byte, 1), 0)
				requireError(t, "read", err, ErrChanged)
			}
		})
	}
}

// Connections that do not lead to the same export are not used together.
func TestConnectionsToDifferentExportsAreNotJoined(t *testing.T) {
	p := newPuppet(t)
	p.flags |= flagCanMultiConn
	p.grows = 512
	c := dial(t, p.start(), Options{Connections: 3})
	if n := len(c.session.links); n != 1 || c.Bytes() != puppetBytes {
		t.Errorf("%d connections to %d bytes", n, c.Bytes())
	}
}

func TestServerThatStaysAwayFailsTheCallInTime(t *testing.T) {
	p := newPuppet(t)
	c := dial(t, p.start(), Options{TotalTime: 50 * time.Millisecond})
	p.close()
	_, err := c.ReadAt(make([]byte, 1), 0)
	requireError(t, "read", err, ErrUnreachable)
	// It may come back for the next call.
	p.listen()
	for range 100 {
		if _, err = c.ReadAt(make([]byte, 1), 0); err == nil {
			return
		}
	}
	t.Error(err)
}

func TestSilentServerFailsTheCallInTime(t *testing.T) {
	p := newPuppet(t)
	p.answer = func(io.Writer, request, []byte) bool { return true }
	c := dial(t, p.start(), Options{RequestTime: 20 * time.Millisecond, TotalTime: 100 * time.Millisecond})
	_, err := c.ReadAt(make([]byte, 1), 0)
	requireError(t, "read", err, ErrUnreachable)
}

func TestCloseEndsCallsThatWait(t *testing.T) {
	for name, prepare := range map[string]func(p *puppet){
		"for an answer": func(p *puppet) { p.answer = func(io.Writer, request, []byte) bool { return true } },
		"for the server": func(p *puppet) {
			p.answer = func(io.Writer, request, []byte) bool { p.ln.Close(); return false }
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPuppet(t)
			prepare(p)
			c := dial(t, p.start(), Options{})
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() {
					_, err := c.ReadAt(make([]byte, 1), 0)
					requireError(t, "read", err, ErrClosed)
				})
			}
			for p.count(cmdRead) == 0 {
				time.Sleep(time.Millisecond)
			}
			c.Close()
			all.Wait()
			_, err := c.ReadAt(make([]byte, 1), 0)
			requireError(t, "read", err, ErrClosed)
			c.Close()
		})
	}
}

// A session can end before anybody has used it.
func TestSessionThatHasEndedIsNotTakenIntoUse(t *testing.T) {
	p := newPuppet(t)
	c := dial(t, p.start(), Options{})
	p.hangUp()
	for c.alive() {
		time.Sleep(time.Millisecond)
	}
	s, err := c.newSession(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	p.hangUp()
	<-s.gone
	requireError(t, "adopt", c.adopt(s), nil)
	if c.alive() {
		t.Error("it is in use")
	}
}

// The whole way: a server is replaced by the next one while a client works.
func TestClientOutlivesItsServer(t *testing.T) {
	d := randomMemory(4 * mib)
	first := serveDevice(t, d)
	c := dial(t, first.uri(""), Options{Connections: 2})
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for i := range int64(4) {
		all.Go(func() {
			b := make([]byte, 100*kib)
			for ctx.Err() == nil {
				if _, err := c.ReadAt(b, i*mib); err != nil || !bytes.Equal(b, d.content(i*mib, 100*kib)) {
					t.Errorf("read: %v", err)
					return
				}
			}
		})
	}
	server := first
	for range 3 {
		server.wait(t)
		server = serveAt(t, first.socket, Config{Exports: []Export{{Device: d}}})
		for server.Clients() == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	all.Wait()
}

// A request that was never sent can be sent by the next session.
func TestWritesWaitForTheServer(t *testing.T) {
	p := newPuppet(t)
	c := dial(t, p.start(), Options{})
	p.close()
	for c.alive() {
		time.Sleep(time.Millisecond) // until the client has noticed
	}
	var all sync.WaitGroup
	all.Go(func() {
		_, err := c.WriteAt([]byte{1}, 0)
		requireError(t, "write", err, nil)
	})
	p.listen()
	all.Wait()
	requireError(t, "flush", c.Flush(), nil)
}

func (c *Client) alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session != nil
}
