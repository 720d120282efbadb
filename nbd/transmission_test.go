package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)*31 + seed
	}
	return b
}

// fault 76: lengths and offsets that do not fit.
func TestFault76RangesAreChecked(t *testing.T) {
	const size = 64*mib + 1000
	d := newMemory(size)
	s := serveDevice(t, d)
	p, q := ready(t, s), structured(t, s)
	for _, c := range []struct {
		command command
		off     uint64
		length  uint32
		want    errno // with simple replies
		chunk   errno // with structured ones
	}{
		{cmdRead, 0, 1<<32 - 1, errInval, errOver},
		{cmdRead, 0, MaxPayloadBytes + 1, errInval, errOver},
		{cmdRead, size, 1, errInval, errInval},
		{cmdRead, size - 511, 512, errInval, errInval},
		{cmdRead, 1<<64 - 1, 2, errInval, errInval},
		{cmdRead, 1<<63 - 1, 1, errInval, errInval},
		{cmdRead, 1 << 63, 512, errInval, errInval},
		{cmdTrim, 1<<64 - 512, 1024, errInval, errInval},
		{cmdTrim, 0, 1<<32 - 1, errInval, errInval},
		{cmdWriteZeroes, size - 1, 2, errNoSpc, errNoSpc},
		{cmdWriteZeroes, 1<<64 - 1, 1<<32 - 1, errNoSpc, errNoSpc},
		{cmdCache, size + 1, 0, errInval, errInval},
		{cmdFlush, 0, 1, errInval, errInval},
		{cmdFlush, 1, 0, errInval, errInval},
		{cmdBlockStatus, 0, 512, errInval, errInval},
	} {
		r := request{command: c.command, offset: c.off, length: c.length, cookie: 5}
		p.expect(r, c.want)
		q.request(r)
		if e := q.errorChunk(5); e != c.chunk {
			t.Errorf("%s of %d at %d: error %d, want %d", c.command, c.length, c.off, e, c.chunk)
		}
	}
	requireAccesses(t, d.seen())
	p.alive()
}

// fault 76: the payload of a write that is refused is not taken for requests.
func TestFault76PayloadOfRefusedWriteIsSkipped(t *testing.T) {
	d := newMemory(mib)
	s := serve(t, Config{Exports: []Export{{Device: d, MinBlockBytes: 512}, {Name: "ro", Device: d, ReadOnly: true}}})
	p := ready(t, s)
	payload := bytes.Repeat(request{command: cmdWriteZeroes, length: mib}.appendTo(nil), 100)
	n := uint32(len(payload))
	p.expect(request{command: cmdWrite, offset: mib - 512, length: n}, errNoSpc, payload...)
	p.expect(request{command: cmdWrite, offset: 1<<64 - 1, length: n}, errNoSpc, payload...)
	p.expect(request{command: cmdWrite, offset: 512, length: n}, errInval, payload...) // not aligned
	p.expect(request{command: cmdWrite, flags: 1 << 9, length: n}, errInval, payload...)
	p.expect(request{command: cmdWrite, length: MaxPayloadBytes + 512}, errInval, make([]byte, MaxPayloadBytes+512)...)
	p.alive()
	ro := greeted(t, s)
	if flags := ro.enter("ro"); flags&flagReadOnly == 0 || flags&(flagTrim|flagWriteZeroes) != 0 {
		t.Errorf("the flags of a read-only export are %#x", flags)
	}
	ro.expect(request{command: cmdWrite, length: n}, errPerm, payload...)
	ro.expect(request{command: cmdTrim, length: 512}, errPerm)
	ro.expect(request{command: cmdWriteZeroes, length: 512}, errPerm)
	ro.alive()
	requireAccesses(t, d.seen(), access{"flush", 0, 0}, access{"flush", 0, 0})
}

// fault 76: what nobody could want to write is not even skipped.
func TestFault76AbsurdWriteEndsTheConnection(t *testing.T) {
	p := ready(t, serveDevice(t, newMemory(mib)))
	p.request(request{command: cmdWrite, length: 1 << 30})
	p.gone()
}

// fault 76: the memory for payloads has an end, for each connection.
func TestFault76MemoryOfAConnectionIsBounded(t *testing.T) {
	var under, most atomic.Int64
	d := newMemory(64 * mib)
	release := make(chan struct{})
	d.before = func(a access) error {
		if n := under.Add(a.n); n > most.Load() {
			most.Store(n)
		}
		<-release
		under.Add(-a.n)
		return nil
	}
	s := serve(t, Config{Exports: []Export{{Device: d}}, Limits: Limits{ConnectionBytes: MaxPayloadBytes}})
	p := ready(t, s)
	const reads, bytes = 40, 4 * mib
	for i := range reads {
		p.request(request{command: cmdRead, length: bytes, cookie: uint64(i)})
	}
	for under.Load() < MaxPayloadBytes {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // for more to go in, if more can
	close(release)
	for range reads {
		if _, e := p.simple(); e != success {
			t.Fatalf("error %d", e)
		}
		p.take(bytes)
	}
	if most.Load() > MaxPayloadBytes {
		t.Errorf("%d bytes were in use at a time", most.Load())
	}
}

// fault 77: a client that never takes its replies is disconnected, and takes no memory
// with it.
func TestFault77ClientThatNeverReadsIsDisconnected(t *testing.T) {
	s := serve(t, Config{
		Exports: []Export{{Device: newMemory(64 * mib)}},
		Limits:  Limits{StallTime: 50 * time.Millisecond},
	})
	p := ready(t, s)
	for i := 0; ; i++ {
		if _, err := p.Write(request{command: cmdRead, length: mib, cookie: uint64(i)}.appendTo(nil)); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the server has not closed the connection")
			}
			break
		}
	}
	for s.Clients() > 0 {
		time.Sleep(time.Millisecond)
	}
	ready(t, s).alive()
}

// fault 77: a client that does not send what it announced is disconnected, and what it
// has sent does not reach the device.
func TestFault77ClientThatStallsIsDisconnected(t *testing.T) {
	d := newMemory(mib)
	s := serve(t, Config{Exports: []Export{{Device: d}}, Limits: Limits{StallTime: 50 * time.Millisecond}})
	p := ready(t, s)
	p.request(request{command: cmdWrite, length: 4096}, pattern(4095, 1)...)
	p.gone()
	requireAccesses(t, d.seen())
}

// fault 78: cookies are the client's business.
func TestFault78CookiesAreEchoed(t *testing.T) {
	p := ready(t, serveDevice(t, newMemory(mib)))
	for _, cookie := range []uint64{0, 1, 1<<64 - 1, 0x0102030405060708} {
		for range 2 { // two under way with the same one
			p.request(request{command: cmdCache, length: 512, cookie: cookie})
		}
		for range 2 {
			if got, e := p.simple(); got != cookie || e != success {
				t.Fatalf("cookie %#x, error %d", got, e)
			}
		}
	}
}

// fault 78: unknown commands and flags are answered, and nothing happens.
func TestFault78UnknownIsRefused(t *testing.T) {
	d := newMemory(mib)
	p := ready(t, serveDevice(t, d))
	for _, command := range []command{8, 9, 255, 1<<16 - 1} {
		p.expect(request{command: command, length: 512, cookie: 1}, errInval)
	}
	for _, c := range []struct {
		command command
		flags   uint16
	}{
		{cmdRead, 1 << 15},
		{cmdRead, cmdFlagNoHole},
		{cmdTrim, cmdFlagNoHole},
		{cmdTrim, cmdFlagFastZero},
		{cmdWriteZeroes, cmdFlagDF},
		{cmdWriteZeroes, cmdFlagReqOne},
		{cmdCache, cmdFlagReqOne},
	} {
		p.expect(request{command: c.command, flags: c.flags, length: 512}, errInval)
	}
	requireAccesses(t, d.seen())
	p.alive()
}

func TestStructuredReadIsOnePiece(t *testing.T) {
	d := randomMemory(2 * mib)
	p := structured(t, serveDevice(t, d))
	for _, flags := range []uint16{0, cmdFlagDF, cmdFlagFUA} {
		p.request(request{command: cmdRead, flags: flags, offset: 100, length: mib, cookie: 3})
		h, b := p.chunk()
		if h.kind != chunkOffsetData || h.flags != chunkFlagDone || h.cookie != 3 || binary.BigEndian.Uint64(b) != 100 {
			t.Fatalf("the chunk is %+v", h)
		}
		if !bytes.Equal(b[8:], d.content(100, mib)) {
			t.Error("the content is wrong")
		}
	}
	p.request(request{command: cmdRead, offset: 100, cookie: 4})
	if h, _ := p.chunk(); h.kind != chunkNone || h.cookie != 4 {
		t.Errorf("a read of nothing is answered with %+v", h)
	}
	p.alive()
}

func TestShortReadOfTheDeviceIsAnError(t *testing.T) {
	p := ready(t, serveDevice(t, &huge{memory: memory{data: make([]byte, 100)}, bytes: mib}))
	p.expect(request{command: cmdRead, length: 512}, errIO)
}

func TestZeroingThatIsNotSupportedIsDoneByWriting(t *testing.T) {
	for name, c := range map[string]struct {
		flags uint16
		err   error
		fast  bool
		want  errno
		seen  []access
	}{
		"supported":         {0, nil, false, success, []access{{"zero", 512, 3 * mib}}},
		"not supported":     {0, unix.EOPNOTSUPP, false, success, []access{{"zero", 512, 3 * mib}, {"write", 512, mib}, {"write", 512 + mib, mib}, {"write", 512 + 2*mib, mib}}},
		"without holes":     {cmdFlagNoHole, nil, true, success, []access{{"write", 512, mib}, {"write", 512 + mib, mib}, {"write", 512 + 2*mib, mib}}},
		"fast":              {cmdFlagFastZero, nil, true, success, []access{{"zero", 512, 3 * mib}}},
		"not fast":          {cmdFlagFastZero, nil, false, errNotSup, nil},
		"fast without hole": {cmdFlagFastZero | cmdFlagNoHole, nil, true, errNotSup, nil},
		"fast and failing":  {cmdFlagFastZero, unix.EOPNOTSUPP, true, errNotSup, []access{{"zero", 512, 3 * mib}}},
	} {
		t.Run(name, func(t *testing.T) {
			d := &huge{bytes: 4 * mib, err: c.err}
			s := serve(t, Config{Exports: []Export{{Device: d, FastZero: c.fast}}})
			ready(t, s).expect(request{command: cmdWriteZeroes, flags: c.flags, offset: 512, length: 3 * mib}, c.want)
			requireAccesses(t, d.seen(), c.seen...)
		})
	}
}

func TestTrimThatIsNotSupportedIsAHint(t *testing.T) {
	ready(t, serveDevice(t, &huge{bytes: mib, err: unix.EOPNOTSUPP})).expect(request{command: cmdTrim, length: 512}, success)
}

func TestErrorsOfTheDeviceHaveNumbers(t *testing.T) {
	for err, want := range map[error]errno{
		unix.EIO: errIO, unix.ENOSPC: errNoSpc, unix.EDQUOT: errNoSpc, unix.EFBIG: errNoSpc, unix.EPERM: errPerm,
		unix.EROFS: errPerm, unix.EACCES: errPerm, os.ErrPermission: errPerm, unix.EINVAL: errInval,
		unix.EOVERFLOW: errOver, unix.ESHUTDOWN: errShut, unix.ENOMEM: errNoMem, unix.ENODEV: errIO,
		io.EOF: errIO, errors.New("something else"): errIO,
		unix.EOPNOTSUPP: errInval, // ENOTSUP has a meaning of its own
	} {
		d := newMemory(mib)
		d.before = func(access) error { return fmt.Errorf("wrapped: %w", err) }
		p := structured(t, serveDevice(t, d))
		p.request(request{command: cmdRead, length: 512, cookie: 1})
		if e := p.errorChunk(1); e != want {
			t.Errorf("%v: error %d, want %d", err, e, want)
		}
	}
}

// A request that hangs keeps nobody else waiting, whoever has the turn meanwhile.
func TestSlowRequestsDoNotHoldUpOthers(t *testing.T) {
	for name, n := range map[string]uint32{"small": 4096, "large": inlineBytes + 1} {
		t.Run(name, func(t *testing.T) {
			d := newMemory(mib)
			release := make(chan struct{})
			var hanging sync.WaitGroup
			d.before = func(a access) error {
				if a.off > 0 {
					hanging.Done()
					<-release
				}
				return nil
			}
			const depth = 4
			p := ready(t, serve(t, Config{Exports: []Export{{Device: d}}, Limits: Limits{Depth: depth}}))
			for i := range depth - 1 {
				hanging.Add(1)
				p.request(request{command: cmdRead, offset: 512, length: n, cookie: uint64(i)})
				for range 50 {
					p.expect(request{command: cmdCache, length: 1, cookie: 99}, success)
					p.expect(request{command: cmdRead, length: 1, cookie: 98}, success)
					p.take(1)
				}
			}
			hanging.Wait()
			close(release)
			var cookies []uint64
			for range depth - 1 {
				cookie, _ := p.simple()
				p.take(int(n))
				cookies = append(cookies, cookie)
			}
			slices.Sort(cookies)
			if !slices.Equal(cookies, []uint64{0, 1, 2}) {
				t.Errorf("cookies are %v", cookies)
			}
		})
	}
}

// Replies that wait to be sent together do not wait for a request that hangs.
func TestRepliesDoNotWaitForASlowRequest(t *testing.T) {
	for _, c := range []struct {
		depth int
		bytes uint32 // of the slow one
	}{{1, 1}, {2, 1}, {16, 1}, {1, inlineBytes + 1}, {2, inlineBytes + 1}} {
		d := newMemory(mib)
		release := make(chan struct{})
		d.before = func(a access) error {
			if a.off > 0 {
				<-release
			}
			return nil
		}
		p := ready(t, serve(t, Config{Exports: []Export{{Device: d}}, Limits: Limits{Depth: c.depth}}))
		quick := request{command: cmdRead, length: 1, cookie: 1}.appendTo(nil)
		slow := request{command: cmdRead, offset: 1, length: c.bytes, cookie: 2}.appendTo(nil)
		p.say(quick, quick, slow, quick) // in one piece
		for range 2 {
			if cookie, _ := p.simple(); cookie != 1 {
				t.Fatalf("cookie %d", cookie)
			}
			p.take(1)
		}
		close(release)
		for range 2 {
			if cookie, _ := p.simple(); cookie == 1 {
				p.take(1)
			} else {
				p.take(int(c.bytes))
			}
		}
	}
}

// unanswering is a device that leaves writes to the next server.
type unanswering struct{ *memory }

func (d unanswering) WriteAt([]byte, int64) (int, error) {
	return 0, fmt.Errorf("stopped: %w", ErrNoAnswer)
}

func TestNoAnswerIsNoReply(t *testing.T) {
	s := serveDevice(t, unanswering{newMemory(mib)})
	p := ready(t, s)
	p.request(request{command: cmdWrite, length: 512, cookie: 1}, make([]byte, 512)...)
	p.gone()
}
