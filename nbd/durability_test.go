package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// fault 79: no promise before it is kept.
func TestFault79FlushIsAnsweredAfterTheDeviceHasFlushed(t *testing.T) {
	for name, q := range map[string]request{
		"flush":       {command: cmdFlush},
		"write":       {command: cmdWrite, flags: cmdFlagFUA, length: 512},
		"trim":        {command: cmdTrim, flags: cmdFlagFUA, length: 512},
		"write zeros": {command: cmdWriteZeroes, flags: cmdFlagFUA, length: 512},
	} {
		t.Run(name, func(t *testing.T) {
			d := newMemory(mib)
			entered, release := make(chan access), make(chan struct{})
			d.before = func(a access) error {
				if a.op == "flush" {
					entered <- a
					<-release
				}
				return nil
			}
			p := ready(t, serveDevice(t, d))
			p.request(q, make([]byte, q.payloadBytes())...)
			<-entered
			p.silent()
			close(release)
			if _, e := p.simple(); e != success {
				t.Errorf("error %d", e)
			}
			if accesses := d.seen(); accesses[len(accesses)-1].op != "flush" {
				t.Errorf("the device saw %v", accesses)
			}
		})
	}
}

// silent is that the server has nothing to say as long as it is not asked or released.
// It cannot prove that, and never fails a server that keeps quiet.
func (p *peer) silent() {
	p.t.Helper()
	p.must(p.SetReadDeadline(time.Now().Add(5 * time.Millisecond)))
	if b, err := p.in.Peek(1); err == nil {
		p.t.Fatalf("the server answers with %x before its time", b)
	}
	p.must(p.SetReadDeadline(time.Now().Add(patience)))
}

// fault 79: with FUA it is the flush that fails, and the write with it.
func TestFault79FailedFlushFailsFUAAndEveryFlushAfterIt(t *testing.T) {
	d := newMemory(mib)
	failures := 1
	d.before = func(a access) error {
		if a.op == "flush" && failures > 0 {
			failures--
			return unix.ENOSPC
		}
		return nil
	}
	s := serveDevice(t, d)
	p := ready(t, s)
	p.expect(request{command: cmdWrite, flags: cmdFlagFUA, length: 512}, errNoSpc, make([]byte, 512)...)
	p.expect(request{command: cmdFlush}, errNoSpc)
	ready(t, s).expect(request{command: cmdFlush}, errNoSpc)
	p.expect(request{command: cmdRead, length: 512}, success)
	p.take(512)
	if d.flushes != 0 {
		t.Errorf("the device was flushed %d times after it had failed", d.flushes)
	}
}

// fault 79: a flush on one connection covers what was written through another, since
// the server says so.
func TestFault79FlushCoversAllConnections(t *testing.T) {
	d := newMemory(mib)
	s := serveDevice(t, d)
	a, b := ready(t, s), greeted(t, s)
	if flags := b.enter(""); flags&flagCanMultiConn == 0 {
		t.Error("several connections are not offered")
	}
	a.expect(request{command: cmdWrite, length: 512}, success, pattern(512, 1)...)
	b.expect(request{command: cmdFlush}, success)
	requireAccesses(t, d.seen(), access{"write", 0, 512}, access{"flush", 0, 0})
}

// fault 79: a flush that is already running may have passed by what was written since.
// Those who come meanwhile share the next one.
func TestFault79FlushThatRunsDoesNotCoverLaterWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemory(mib)
		entered, release := 0, make(chan error)
		d.before = func(access) error { entered++; return <-release }
		f := flusher{device: d}
		var done atomic.Int32
		flush := func() {
			if err := f.flush(); err != nil {
				t.Error(err)
			}
			done.Add(1)
		}
		go flush()
		synctest.Wait()
		for range 5 {
			go flush()
		}
		synctest.Wait()
		if entered != 1 || done.Load() != 0 {
			t.Errorf("%d flushes have begun, %d are done", entered, done.Load())
		}
		release <- nil
		synctest.Wait()
		if entered != 2 || done.Load() != 1 {
			t.Errorf("%d flushes have begun, %d are done", entered, done.Load())
		}
		release <- nil
		synctest.Wait()
		if entered != 2 || done.Load() != 6 {
			t.Errorf("%d flushes have begun, %d are done", entered, done.Load())
		}
	})
}

// fault 80: a trim reaches the device as it is, and is answered when that is done.
func TestFault80TrimAndZeroReachTheDeviceUnchanged(t *testing.T) {
	const size = 5<<30 + 1
	d := &huge{bytes: size}
	p := ready(t, serveDevice(t, d))
	p.expect(request{command: cmdTrim, offset: 4097, length: 1<<32 - 1}, success)
	p.expect(request{command: cmdWriteZeroes, offset: size - 3, length: 3}, success)
	p.expect(request{command: cmdTrim, offset: 7}, success)        // of nothing
	p.expect(request{command: cmdWriteZeroes, offset: 7}, success) // of nothing
	requireAccesses(t, d.seen(), access{"discard", 4097, 1<<32 - 1}, access{"zero", size - 3, 3})
}

// huge is a device without content.
type huge struct {
	memory
	bytes int64
	err   error
}

func (h *huge) Bytes() int64               { return h.bytes }
func (h *huge) Discard(off, n int64) error { return errors.Join(h.enter("discard", off, n), h.err) }
func (h *huge) Zero(off, n int64) error    { return errors.Join(h.enter("zero", off, n), h.err) }
func (h *huge) WriteAt(p []byte, off int64) (int, error) {
	if !bytes.Equal(p, make([]byte, len(p))) {
		return 0, errors.New("not zeros")
	}
	return len(p), h.enter("write", off, int64(len(p)))
}

// fault 80: a trim that the device refuses is not acknowledged.
func TestFault80FailedTrimIsNotAcknowledged(t *testing.T) {
	d := &huge{bytes: mib, err: unix.EIO}
	p := ready(t, serveDevice(t, d))
	p.expect(request{command: cmdTrim, length: 512}, errIO)
	p.expect(request{command: cmdWriteZeroes, length: 512}, errIO)
}

// fault 81: the server neither rounds writes nor joins them: what a small write means
// for a region is for the device to know.
func TestFault81SmallWritesReachTheDeviceAsTheyAre(t *testing.T) {
	d := newMemory(mib)
	p := ready(t, serveDevice(t, d))
	want := []access{{"write", 1, 1}, {"write", 4095, 2}, {"write", 4097, 4096}, {"write", mib - 1, 1}}
	for _, a := range want {
		p.expect(request{command: cmdWrite, offset: uint64(a.off), length: uint32(a.n)}, success, pattern(int(a.n), 3)...)
		if got := d.content(a.off, a.n); !bytes.Equal(got, pattern(int(a.n), 3)) {
			t.Errorf("at %d there is %x", a.off, got)
		}
	}
	requireAccesses(t, d.seen(), want...)
}

// fault 82: as long as a read is in the device, the server has not ended: who waits
// for that before he discards waits for all readers.
func TestFault82ServeEndsAfterTheLastReadHasLeftTheDevice(t *testing.T) {
	d := randomMemory(mib)
	entered, release := make(chan access), make(chan struct{})
	d.before = func(a access) error {
		entered <- a
		<-release
		return nil
	}
	s := serveDevice(t, d)
	p := ready(t, s)
	p.request(request{command: cmdRead, offset: 4096, length: 512, cookie: 9})
	<-entered
	s.stop()
	p.silent()
	select {
	case err := <-s.ended:
		t.Fatalf("Serve has ended with %v while a read is in the device", err)
	default:
	}
	close(release)
	// The request that was in work is answered before the end.
	if cookie, e := p.simple(); cookie != 9 || e != success {
		t.Errorf("cookie %d, error %d", cookie, e)
	}
	if !bytes.Equal(p.take(512), d.content(4096, 512)) {
		t.Error("the answer is wrong")
	}
	p.gone()
	s.wait(t)
}

// fault 83: half a write is none.
func TestFault83WriteWithoutItsWholePayloadIsNone(t *testing.T) {
	for _, n := range []int{0, 1, 511, 4096, 3*mib - 1} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			d := newMemory(4 * mib)
			s := serveDevice(t, d)
			p := ready(t, s)
			p.request(request{command: cmdWrite, length: 3 * mib}, pattern(n, 1)...)
			p.Close()
			for s.Clients() > 0 {
				time.Sleep(time.Millisecond)
			}
			requireAccesses(t, d.seen())
		})
	}
}

// fault 84: what was acknowledged to a client that then dies is there for the next.
func TestFault84AcknowledgedWritesOutliveTheirClient(t *testing.T) {
	d := newMemory(mib)
	s := serveDevice(t, d)
	p := ready(t, s)
	for i := range 16 {
		p.expect(request{command: cmdWrite, flags: cmdFlagFUA, offset: uint64(i) * 4096, length: 4096}, success, pattern(4096, byte(i))...)
	}
	// It dies with more under way, without a word.
	for i := range 8 {
		p.request(request{command: cmdRead, length: 64 * kib, cookie: uint64(i)})
	}
	p.request(request{command: cmdWrite, offset: 0, length: 4096}, 1, 2, 3)
	p.Close()
	again := ready(t, s)
	for i := range 16 {
		again.expect(request{command: cmdRead, offset: uint64(i) * 4096, length: 4096}, success)
		if !bytes.Equal(again.take(4096), pattern(4096, byte(i))) {
			t.Errorf("write %d is lost", i)
		}
	}
}
