package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

func FuzzOptionData(f *testing.F) {
	f.Add(infoRequest("x", infoName, infoBlockSize))
	f.Add(contextQuery("x", contextAllocation, "base:"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if name, wanted, ok := parseInfoRequest(data); ok {
			if len(name) > maxNameBytes || len(wanted) > 16 {
				t.Fatalf("a name of %d bytes, %d questions", len(name), len(wanted))
			}
		}
		if name, queries, ok := parseContextQuery(data); ok {
			if again := contextQuery(name, queries...); !slices.Equal(again, data) {
				t.Fatalf("%x is read as %x", data, again)
			}
		}
	})
}

// fuzzServer makes a server that is quick to lose patience.
func fuzzServer(t *testing.T) *Server {
	d := &mapped{memory: newMemory(mib), unit: 64 * kib, units: make([]Extent, 16)}
	s, err := NewServer(Config{
		Exports: []Export{{Device: d, Hydrates: true}, {Name: "x", Device: d, ReadOnly: true, MinBlockBytes: 512}},
		Limits:  Limits{HandshakeTime: time.Minute, StallTime: time.Minute, Depth: 3},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// FuzzServer lets a client say anything. Whatever it is, the server comes to an end
// when the client has, and has all its memory back. What it says can be read.
func FuzzServer(f *testing.F) {
	flags := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	hello := func(options ...[]byte) []byte { return slices.Concat(append([][]byte{flags}, options...)...) }
	enter := optionMessage(optGo, infoRequest(""))
	for _, seed := range [][]byte{
		nil, flags, hello(enter),
		hello(optionMessage(optList, nil), optionMessage(optAbort, nil)),
		hello(optionMessage(optExportName, []byte("x")), request{command: cmdRead, length: 512}.appendTo(nil)),
		hello(optionMessage(optStructuredReply, nil), optionMessage(optSetMetaContext, contextQuery("", contextAllocation, contextHydrated)),
			enter, request{command: cmdBlockStatus, length: mib}.appendTo(nil), request{command: cmdRead, length: mib}.appendTo(nil)),
		hello(enter, request{command: cmdWrite, length: 5, flags: cmdFlagFUA}.appendTo(nil), []byte("hello"),
			request{command: cmdWriteZeroes, length: 4096, flags: cmdFlagNoHole}.appendTo(nil), request{command: cmdTrim, length: 4096}.appendTo(nil),
			request{command: cmdFlush}.appendTo(nil), request{command: cmdCache}.appendTo(nil), request{command: cmdDisconnect}.appendTo(nil)),
		hello(enter, request{command: cmdWrite, length: MaxPayloadBytes}.appendTo(nil), []byte("half")),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		s := fuzzServer(t)
		ours, its := net.Pipe()
		var all sync.WaitGroup
		all.Go(func() { s.serveConnection(context.Background(), its) })
		all.Go(func() { io.Copy(io.Discard, ours) }) //nolint:errcheck // ends with the connection
		ours.Write(said)                             //nolint:errcheck // the server may have left
		ours.Close()
		all.Wait()
		if s.memory.free != s.config.Limits.ServerBytes || s.gate.connections != 0 || s.gate.clients != 0 {
			t.Fatalf("%d bytes are free, %d connections and %d clients left", s.memory.free, s.gate.connections, s.gate.clients)
		}
	})
}

// FuzzClient lets a server say anything once it is asked for data. The client comes
// to an end, and takes nothing that does not cover what it asked for.
func FuzzClient(f *testing.F) {
	chunk := func(flags, kind uint16, cookie uint64, data ...byte) []byte {
		return append(chunkHeader{flags, kind, cookie, uint32(len(data))}.appendTo(nil), data...)
	}
	const cookie = linkDepth // of the first request
	f.Add(true, chunk(chunkFlagDone, chunkOffsetData, cookie, append(make([]byte, 8), pattern(512, 1)...)...))
	f.Add(true, append(chunk(0, chunkOffsetHole, cookie, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0), chunk(chunkFlagDone, chunkNone, cookie)...))
	f.Add(true, chunk(chunkFlagDone, chunkError, cookie, 0, 0, 0, 5, 0, 1, 'x'))
	f.Add(true, chunk(chunkFlagDone, chunkBlockStatus, cookie, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 3))
	f.Add(false, append(appendSimpleReply(nil, cookie, success), pattern(512, 1)...))
	f.Add(false, appendSimpleReply(nil, cookie, errIO))
	f.Fuzz(func(t *testing.T, structured bool, said []byte) {
		for _, r := range []*call{
			{request: request{command: cmdRead, length: 512}, data: make([]byte, 512)},
			{request: request{command: cmdBlockStatus, length: 512}},
			{request: request{command: cmdFlush}},
		} {
			ours, its := net.Pipe()
			c := &Client{options: Options{}.withDefaults(), life: context.Background()}
			s := &session{client: c, gone: make(chan struct{}), export: exportInfo{structured: structured, allocation: true, allocationID: 1}}
			l := newLink(s, &wire{stream: ours, in: bufio.NewReader(ours)})
			s.links = []*link{l}
			var all sync.WaitGroup
			all.Go(l.read)
			all.Go(func() {
				io.CopyN(io.Discard, its, requestBytes) //nolint:errcheck // the test fails if it does not come
				its.Write(said)                         //nolint:errcheck // the client may have left
				its.Close()
			})
			_, err := s.carryOut(context.Background(), r)
			if err == nil && r.command == cmdBlockStatus && len(r.extents) == 0 {
				t.Fatal("block status of nothing")
			}
			all.Wait()
		}
	})
}
