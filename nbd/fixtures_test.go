package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// access is one call of a device.
type access struct {
	op     string
	off, n int64
}

// memory is a device that keeps everything in memory, and tells what it was asked for.
type memory struct {
	mu       sync.RWMutex
	data     []byte
	accesses []access
	flushes  int

	// before, if set, is called before each access, and an error is the result.
	before func(access) error
}

func newMemory(bytes int64) *memory { return &memory{data: make([]byte, bytes)} }

// randomMemory has content that is the same in each run.
func randomMemory(bytes int64) *memory {
	m := newMemory(bytes)
	for i := range m.data {
		m.data[i] = byte(i*7 + i>>8*13 + i>>16)
	}
	return m
}

func (m *memory) enter(op string, off, n int64) error {
	a := access{op, off, n}
	if m.before != nil {
		if err := m.before(a); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accesses = append(m.accesses, a)
	return nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := m.enter("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return copy(p, m.data[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if err := m.enter("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.data[off:], p), nil
}

func (m *memory) Bytes() int64 { return int64(len(m.data)) }

func (m *memory) Discard(off, n int64) error {
	if err := m.enter("discard", off, n); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	return nil
}

func (m *memory) Zero(off, n int64) error {
	if err := m.enter("zero", off, n); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	return nil
}

func (m *memory) Flush() error {
	if err := m.enter("flush", 0, 0); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	return nil
}

// seen is what the device was asked for so far.
func (m *memory) seen() []access {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Clone(m.accesses)
}

func (m *memory) content(off, n int64) []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.data[off : off+n])
}

// mapped is a memory that knows its extents, of unit bytes each.
type mapped struct {
	*memory
	unit  int64
	units []Extent // their Bytes are of no meaning
}

func (m *mapped) Extents(off, n int64) ([]Extent, error) {
	if err := m.enter("extents", off, n); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []Extent
	for end := min(off+n, m.Bytes()); off < end; {
		e := m.units[off/m.unit]
		e.Bytes = m.unit - off%m.unit
		all = append(all, e)
		off += e.Bytes
	}
	return all, nil
}

// set changes the state of a unit.
func (m *mapped) set(i int, e Extent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units[i] = e
}

// served is a server that runs until the test ends.
type served struct {
	*Server
	socket string
	stop   context.CancelFunc
	ended  chan error
}

// wait ends the server and waits for it.
func (s *served) wait(t *testing.T) {
	t.Helper()
	s.stop()
	if err := <-s.ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	s.ended <- nil
}

func serve(t *testing.T, config Config) *served {
	t.Helper()
	return serveAt(t, filepath.Join(t.TempDir(), "s"), config)
}

func serveAt(t *testing.T, socket string, config Config) *served {
	t.Helper()
	server, err := NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := ListenUnix(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &served{Server: server, socket: socket, stop: cancel, ended: make(chan error, 1)}
	go func() { s.ended <- server.Serve(ctx, ln) }()
	t.Cleanup(func() {
		s.wait(t)
		if free := server.memory.free; free != server.config.Limits.ServerBytes {
			t.Errorf("%d of %d bytes of the payloads are given back", free, server.config.Limits.ServerBytes)
		}
	})
	return s
}

// serveDevice serves one device as the default export.
func serveDevice(t *testing.T, d Device) *served {
	t.Helper()
	return serve(t, Config{Exports: []Export{{Device: d}}})
}

func (s *served) uri(export string) string {
	return URI{Network: "unix", Address: s.socket, Export: export}.String()
}

// peer is a client that says exactly what a test wants.
type peer struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

// patience is how long a test waits for what has to come. No verdict depends on it.
const patience = time.Minute

// connect does not even greet.
func connect(t *testing.T, s *served) *peer {
	t.Helper()
	c, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	p := &peer{t: t, Conn: c, in: bufio.NewReader(c)}
	p.must(c.SetDeadline(time.Now().Add(patience)))
	return p
}

// greeted has exchanged flags.
func greeted(t *testing.T, s *served) *peer {
	t.Helper()
	p := connect(t, s)
	p.take(18)
	p.say(binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes))
	return p
}

// ready is in the transmission phase of the default export.
func ready(t *testing.T, s *served) *peer {
	t.Helper()
	p := greeted(t, s)
	p.enter("")
	return p
}

// structured is ready, with structured replies and the contexts.
func structured(t *testing.T, s *served, contexts ...string) *peer {
	t.Helper()
	p := greeted(t, s)
	p.accept(optStructuredReply, nil)
	if len(contexts) > 0 {
		p.accept(optSetMetaContext, contextQuery("", contexts...))
	}
	p.enter("")
	return p
}

func (p *peer) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) say(b ...[]byte) {
	p.t.Helper()
	_, err := p.Write(bytes.Join(b, nil))
	p.must(err)
}

func (p *peer) take(n int) []byte {
	p.t.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(p.in, b)
	p.must(err)
	return b
}

// gone is that the server has closed the connection, and has said nothing more.
func (p *peer) gone() {
	p.t.Helper()
	b, err := io.ReadAll(p.in)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.t.Fatal("the server has not closed the connection")
	}
	if len(b) > 0 {
		p.t.Fatalf("the server says %x before it closes the connection", b)
	}
}

type message struct {
	kind optionReply
	data []byte
}

// ask sends an option and takes all that is answered.
func (p *peer) ask(o option, data []byte) (last optionReply, before []message) {
	p.t.Helper()
	p.say(optionMessage(o, data))
	for {
		m := p.answer(o)
		if m.kind == repAck || m.kind&repError != 0 {
			return m.kind, before
		}
		before = append(before, m)
	}
}

func (p *peer) answer(o option) message {
	p.t.Helper()
	head := p.take(optionReplyHeaderBytes)
	if m, got := binary.BigEndian.Uint64(head), option(binary.BigEndian.Uint32(head[8:])); m != magicOptionReply || got != o {
		p.t.Fatalf("option %d is answered with %x", o, head)
	}
	return message{optionReply(binary.BigEndian.Uint32(head[12:])), p.take(int(binary.BigEndian.Uint32(head[16:])))}
}

func (p *peer) accept(o option, data []byte) []message {
	p.t.Helper()
	last, before := p.ask(o, data)
	if last != repAck {
		p.t.Fatalf("option %d is refused with %#x", o, uint32(last))
	}
	return before
}

func (p *peer) refused(o option, data []byte, want optionReply) {
	p.t.Helper()
	if last, _ := p.ask(o, data); last != want {
		p.t.Fatalf("option %d is answered with %#x, want %#x", o, uint32(last), uint32(want))
	}
}

func infoRequest(name string, kinds ...uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(kinds)))
	for _, k := range kinds {
		b = binary.BigEndian.AppendUint16(b, k)
	}
	return b
}

func contextQuery(name string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// enter goes into the transmission phase and tells the flags of the export.
func (p *peer) enter(name string) (flags uint16) {
	p.t.Helper()
	for _, m := range p.accept(optGo, infoRequest(name)) {
		if binary.BigEndian.Uint16(m.data) == infoExport {
			flags = binary.BigEndian.Uint16(m.data[10:])
		}
	}
	return flags
}

func (p *peer) request(q request, payload ...byte) {
	p.t.Helper()
	p.say(q.appendTo(nil), payload)
}

// simple takes a simple reply.
func (p *peer) simple() (cookie uint64, e errno) {
	p.t.Helper()
	b := p.take(simpleReplyBytes)
	if binary.BigEndian.Uint32(b) != magicSimpleReply {
		p.t.Fatalf("%x is no simple reply", b)
	}
	return binary.BigEndian.Uint64(b[8:]), errno(binary.BigEndian.Uint32(b[4:]))
}

// chunk takes a chunk of a structured reply.
func (p *peer) chunk() (chunkHeader, []byte) {
	p.t.Helper()
	b := p.take(chunkHeaderBytes)
	if binary.BigEndian.Uint32(b) != magicChunk {
		p.t.Fatalf("%x is no chunk", b)
	}
	h := parseChunkHeader(b)
	return h, p.take(int(h.length))
}

// errorChunk takes a reply that is an error.
func (p *peer) errorChunk(cookie uint64) errno {
	p.t.Helper()
	h, b := p.chunk()
	if h.kind != chunkError || h.flags != chunkFlagDone || h.cookie != cookie {
		p.t.Fatalf("the answer is %+v, want an error for %d", h, cookie)
	}
	return errno(binary.BigEndian.Uint32(b))
}

// do sends a request and takes its simple reply.
func (p *peer) do(q request, payload ...byte) errno {
	p.t.Helper()
	p.request(q, payload...)
	cookie, e := p.simple()
	if cookie != q.cookie {
		p.t.Fatalf("the cookie is %#x, want %#x", cookie, q.cookie)
	}
	return e
}

func (p *peer) expect(q request, want errno, payload ...byte) {
	p.t.Helper()
	if e := p.do(q, payload...); e != want {
		p.t.Fatalf("%s of %d bytes at %d with flags %#x: error %d, want %d", q.command, q.length, q.offset, q.flags, e, want)
	}
}

// alive is that the connection still works.
func (p *peer) alive() {
	p.t.Helper()
	p.expect(request{command: cmdFlush, cookie: 0xa11fe}, success)
}

func requireAccesses(t *testing.T, got []access, want ...access) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("the device saw %s, want %s", fmt.Sprint(got), fmt.Sprint(want))
	}
}
