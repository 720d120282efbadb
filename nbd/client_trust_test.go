package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRepliesInPiecesAreJoined(t *testing.T) {
	p := newPuppet(t)
	p.answer = func(w io.Writer, q request, _ []byte) bool {
		// In no order, with a hole, and another answer in between.
		p.chunk(w, q, 0, chunkOffsetData, q.offset+300, bytes.Repeat([]byte{3}, 212))
		p.chunk(w, q, 0, chunkOffsetHole, q.offset+100, uint32(200))
		p.chunk(w, q, 0, chunkOffsetData, q.offset, bytes.Repeat([]byte{1}, 100))
		p.chunk(w, q, chunkFlagDone, chunkNone)
		return true
	}
	c := dial(t, p.start(), Options{})
	b := bytes.Repeat([]byte{0xff}, 512)
	if _, err := c.ReadAt(b, 1000); err != nil {
		t.Fatal(err)
	}
	want := append(append(bytes.Repeat([]byte{1}, 100), make([]byte, 200)...), bytes.Repeat([]byte{3}, 212)...)
	if !bytes.Equal(b, want) {
		t.Errorf("read %x", b)
	}
}

// A server that does not keep to the protocol is never believed, and not asked again
// and again.
func TestClientRefusesWhatMakesNoSense(t *testing.T) {
	const n = 512
	data := make([]byte, n)
	for name, answer := range map[string]func(p *puppet, w io.Writer, q request){
		"nothing known": func(p *puppet, w io.Writer, q request) { put(w, make([]byte, 100)) },
		"a simple reply": func(p *puppet, w io.Writer, q request) {
			put(w, append(appendSimpleReply(nil, q.cookie, success), data...))
		},
		"another cookie": func(p *puppet, w io.Writer, q request) {
			q.cookie++
			p.succeed(w, q)
		},
		"a cookie that was": func(p *puppet, w io.Writer, q request) {
			q.cookie += linkDepth
			p.succeed(w, q)
		},
		"nothing": func(p *puppet, w io.Writer, q request) { p.chunk(w, q, chunkFlagDone, chunkNone) },
		"too little": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, chunkFlagDone, chunkOffsetData, q.offset, data[1:])
		},
		"too much": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, chunkFlagDone, chunkOffsetData, q.offset, make([]byte, n+1))
		},
		"before it": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, chunkFlagDone, chunkOffsetData, q.offset-1, data)
		},
		"far away": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, chunkFlagDone, chunkOffsetData, uint64(1<<64-1), data)
		},
		"twice": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, 0, chunkOffsetData, q.offset, data[:300])
			p.chunk(w, q, chunkFlagDone, chunkOffsetHole, q.offset+299, uint32(213))
		},
		"a hole of nothing": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, 0, chunkOffsetHole, q.offset, uint32(0))
		},
		"a huge hole": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, 0, chunkOffsetHole, q.offset, uint32(1<<32-1))
		},
		"an unknown chunk": func(p *puppet, w io.Writer, q request) { p.chunk(w, q, chunkFlagDone, 77) },
		"block status": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, chunkFlagDone, chunkBlockStatus, uint32(42), uint64(1))
		},
		"none that is not the last": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, 0, chunkNone)
		},
		"an error without a number": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, chunkFlagDone, chunkError, uint32(0), uint16(0))
		},
		"an error with half a message": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, chunkFlagDone, chunkError, uint32(5), uint16(5), []byte("full"))
		},
		"an endless error": func(p *puppet, w io.Writer, q request) {
			put(w, chunkHeader{chunkFlagDone, chunkError, q.cookie, 1<<32 - 1}.appendTo(nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPuppet(t)
			p.answer = func(w io.Writer, q request, _ []byte) bool { answer(p, w, q); return true }
			c := dial(t, p.start(), Options{})
			_, err := c.ReadAt(make([]byte, n), 4096)
			requireError(t, "read", err, ErrProtocol)
			if n := p.count(cmdRead); n != 1 {
				t.Errorf("it was asked %d times", n)
			}
		})
	}
}

func TestErrorsInAnyFormAreErrors(t *testing.T) {
	for name, answer := range map[string]func(p *puppet, w io.Writer, q request){
		"plain": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, chunkFlagDone, chunkError, uint32(28), uint16(4), []byte("full"))
		},
		"with an offset": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, chunkFlagDone, chunkErrorOffset, uint32(28), uint16(0), q.offset)
		},
		"of a kind to come": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, chunkFlagDone, 1<<15+99, uint32(28), uint16(0), uint64(1))
		},
		"after data": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, 0, chunkOffsetData, q.offset, make([]byte, q.length))
			p.chunk(w, q, 0, chunkError, uint32(28), uint16(0))
			p.chunk(w, q, chunkFlagDone, chunkNone)
		},
		"and another": func(p *puppet, w io.Writer, q request) {
			p.chunk(w, q, 0, chunkErrorOffset, uint32(28), uint16(0), q.offset)
			p.chunk(w, q, chunkFlagDone, chunkErrorOffset, uint32(5), uint16(0), q.offset)
		},
	} {
		p := newPuppet(t)
		p.answer = func(w io.Writer, q request, _ []byte) bool { answer(p, w, q); return true }
		c := dial(t, p.start(), Options{})
		_, err := c.ReadAt(make([]byte, 512), 0)
		if !errors.Is(err, unix.ENOSPC) || p.count(cmdRead) != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDialRefusesWhatMakesNoSense(t *testing.T) {
	greeting := binary.BigEndian.AppendUint64(nil, magicGreeting)
	fixed := binary.BigEndian.AppendUint64(greeting, magicOption)
	fixed = append(fixed, 0, flagFixedNewstyle|flagNoZeroes)
	structured := appendOptionReply(nil, optStructuredReply, repErrUnsup)
	for name, said := range map[string][]byte{
		"HTTP":                  []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"nothing":               nil,
		"the old style":         append(binary.BigEndian.AppendUint64(greeting, 0x00420281861253), make([]byte, 136)...),
		"another option":        append(bytes.Clone(fixed), appendOptionReply(nil, optList, repAck)...),
		"an endless answer":     append(bytes.Clone(fixed), append(appendOptionReply(nil, optStructuredReply, repAck)[:16], 0xff, 0xff, 0xff, 0xff)...),
		"no end":                append(bytes.Clone(fixed), bytes.Repeat(appendOptionReply(nil, optStructuredReply, repServer), 100)...),
		"no size":               append(append(bytes.Clone(fixed), structured...), appendOptionReply(nil, optGo, repAck)...),
		"a negative size":       append(append(bytes.Clone(fixed), structured...), appendOptionReply(nil, optGo, repInfo, []byte{0, 0, 0xff}, make([]byte, 9))...),
		"a short size":          append(append(bytes.Clone(fixed), structured...), appendOptionReply(nil, optGo, repInfo, []byte{0, 0, 0})...),
		"blocks of three bytes": append(append(bytes.Clone(fixed), structured...), appendOptionReply(nil, optGo, repInfo, []byte{0, 3, 0, 0, 0, 3, 0, 0, 16, 0, 0, 16, 0, 0})...),
		"no such export":        append(append(bytes.Clone(fixed), structured...), appendOptionReply(nil, optGo, repErrUnknown, []byte("what?"))...),
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			ln, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				if c, err := ln.Accept(); err == nil {
					put(c, said)
					_ = c.(*net.UnixConn).CloseWrite() // the client may have left
					_, _ = io.Copy(io.Discard, c)
					c.Close()
				}
			}()
			if c, err := Dial(context.Background(), "nbd+unix:///?socket="+socket, Options{}); err == nil {
				t.Errorf("connected to an export of %d bytes", c.Bytes())
				c.Close()
			}
		})
	}
}
