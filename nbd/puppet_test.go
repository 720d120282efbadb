package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// puppet is a server that does what a test wants. Its fields are set before start.
type puppet struct {
	t        *testing.T
	socket   string
	bytes    uint64
	flags    uint16
	greeting uint16
	minBlock uint32

	// knows says which options it answers to; all others are UNSUP.
	knows func(option) bool
	// grows is how many bytes each connection is told more than the one before.
	grows uint64
	// answer writes the reply to a request; false closes the connection.
	answer func(w io.Writer, q request, payload []byte) bool

	mu          sync.Mutex
	connections int
	requests    []request
	open        map[net.Conn]bool
	ln          net.Listener
	all         sync.WaitGroup
}

const puppetBytes = mib

func newPuppet(t *testing.T) *puppet {
	t.Helper()
	p := &puppet{
		t: t, socket: filepath.Join(t.TempDir(), "s"), bytes: puppetBytes, minBlock: 1,
		flags:    flagHasFlags | flagFlush | flagTrim | flagWriteZeroes,
		greeting: flagFixedNewstyle | flagNoZeroes,
		knows:    func(o option) bool { return true },
		open:     map[net.Conn]bool{},
	}
	p.answer = func(w io.Writer, q request, _ []byte) bool { return p.succeed(w, q) }
	t.Cleanup(p.close)
	return p
}

func (p *puppet) listen() {
	ln, err := net.Listen("unix", p.socket)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	p.ln = ln
	p.mu.Unlock()
	p.all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			size := p.bytes + p.grows*uint64(p.connections)
			p.connections++
			p.open[c] = true
			p.mu.Unlock()
			p.all.Go(func() {
				p.serve(c, size)
				c.Close()
				p.mu.Lock()
				delete(p.open, c)
				p.mu.Unlock()
			})
		}
	})
}

// hangUp closes every connection.
func (p *puppet) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
}

func (p *puppet) close() {
	p.ln.Close()
	p.hangUp()
	p.all.Wait()
}

// log is every request that has come.
func (p *puppet) log() []request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// count is how many requests of a kind have come.
func (p *puppet) count(c command) (n int) {
	for _, q := range p.log() {
		if q.command == c {
			n++
		}
	}
	return n
}

// start listens, and tells where.
func (p *puppet) start() string {
	p.listen()
	return URI{Network: "unix", Address: p.socket}.String()
}

func (p *puppet) serve(c net.Conn, size uint64) {
	in := bufio.NewReader(c)
	b := binary.BigEndian.AppendUint64(nil, magicGreeting)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	put(c, binary.BigEndian.AppendUint16(b, p.greeting))
	if _, err := io.ReadFull(in, make([]byte, 4)); err != nil {
		return
	}
	for done := false; !done; {
		var head [optionHeaderBytes]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		data := make([]byte, binary.BigEndian.Uint32(head[12:]))
		if _, err := io.ReadFull(in, data); err != nil {
			return
		}
		done = p.option(c, option(binary.BigEndian.Uint32(head[8:])), size)
	}
	for {
		var head [requestBytes]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		q, _ := parseRequest(head[:])
		payload := make([]byte, q.payloadBytes())
		if _, err := io.ReadFull(in, payload); err != nil {
			return
		}
		p.mu.Lock()
		p.requests = append(p.requests, q)
		answer := p.answer
		p.mu.Unlock()
		if q.command == cmdDisconnect || !answer(c, q, payload) {
			return
		}
	}
}

func (p *puppet) option(w io.Writer, o option, size uint64) (done bool) {
	export := binary.BigEndian.AppendUint64(nil, size)
	export = binary.BigEndian.AppendUint16(export, p.flags)
	if o == optExportName {
		if p.greeting&flagNoZeroes == 0 {
			export = append(export, make([]byte, 124)...)
		}
		put(w, export)
		return true
	}
	if !p.knows(o) {
		put(w, appendOptionReply(nil, o, repErrUnsup))
		return false
	}
	var b []byte
	switch o { //nolint:exhaustive // all others are answered with nothing but success
	case optGo:
		b = appendOptionReply(b, o, repInfo, []byte{0, byte(infoExport)}, export)
		sizes := binary.BigEndian.AppendUint32([]byte{0, byte(infoBlockSize)}, p.minBlock)
		sizes = binary.BigEndian.AppendUint32(sizes, 4096)
		b = appendOptionReply(b, o, repInfo, binary.BigEndian.AppendUint32(sizes, 65536))
		b = appendOptionReply(b, o, repInfo, []byte{0, 99}, []byte("unknown"))
	case optSetMetaContext:
		b = appendOptionReply(b, o, repMetaContext, []byte{0, 0, 0, 42}, []byte(contextAllocation))
	}
	put(w, appendOptionReply(b, o, repAck))
	return o == optGo
}

// succeed answers with zeros, all data, or nothing but success.
func (p *puppet) succeed(w io.Writer, q request) bool {
	structured := p.knows(optStructuredReply) && p.greeting&flagFixedNewstyle != 0
	switch {
	case q.command == cmdRead && structured:
		p.chunk(w, q, chunkFlagDone, chunkOffsetData, q.offset, make([]byte, q.length))
	case q.command == cmdRead:
		put(w, append(appendSimpleReply(nil, q.cookie, success), make([]byte, q.length)...))
	case q.command == cmdBlockStatus:
		p.chunk(w, q, chunkFlagDone, chunkBlockStatus, uint32(42), q.length, uint32(0))
	default:
		put(w, appendSimpleReply(nil, q.cookie, success))
	}
	return true
}

// chunk writes a chunk with the given content.
func (p *puppet) chunk(w io.Writer, q request, flags, kind uint16, content ...any) {
	var data []byte
	for _, c := range content {
		var err error
		if data, err = binary.Append(data, binary.BigEndian, c); err != nil {
			p.t.Error(err)
		}
	}
	put(w, append(chunkHeader{flags, kind, q.cookie, uint32(len(data))}.appendTo(nil), data...))
}

// once answers with f the first time that a request of the kind comes.
func (p *puppet) once(c command, f func(w io.Writer, q request) bool) {
	var used bool
	p.react(func(w io.Writer, q request, _ []byte) bool {
		p.mu.Lock()
		first := q.command == c && !used
		used = used || first
		p.mu.Unlock()
		if first {
			return f(w, q)
		}
		return p.succeed(w, q)
	})
}

// react sets answer while there are connections.
func (p *puppet) react(answer func(w io.Writer, q request, payload []byte) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = answer
}

// seen is how many connections there have been.
func (p *puppet) seen() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connections
}

// put writes to a client, which may have left.
func put(w io.Writer, b []byte) { _, _ = w.Write(b) }

func requireError(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}
