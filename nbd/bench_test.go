package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
)

// driver sends requests as fast as their answers come, with as little work of its own
// as there can be.
type driver struct {
	net.Conn
	in   *bufio.Reader
	out  *bufio.Writer
	head []byte
	body []byte
}

func newDriver(tb testing.TB, socket string) *driver {
	tb.Helper()
	stream, err := net.Dial("unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { stream.Close() })
	w := &wire{stream: stream, in: bufio.NewReaderSize(stream, 1<<20)}
	if _, err := w.greet(); err != nil {
		tb.Fatal(err)
	}
	if err := w.askGo("", &exportInfo{}); err != nil {
		tb.Fatal(err)
	}
	return &driver{stream, w.in, bufio.NewWriterSize(stream, 1<<20), nil, make([]byte, MaxPayloadBytes)}
}

func (d *driver) send(c command, off uint64, n uint32) error {
	d.head = request{command: c, offset: off, length: n}.appendTo(d.head[:0])
	if _, err := d.out.Write(d.head); err != nil {
		return err
	}
	if c != cmdWrite {
		return nil
	}
	_, err := d.out.Write(d.body[:n])
	return err
}

func (d *driver) receive(c command, n uint32) error {
	head, err := d.in.Peek(simpleReplyBytes)
	if err != nil {
		return err
	}
	if e := binary.BigEndian.Uint32(head[4:]); e != 0 {
		return fmt.Errorf("error %d", e)
	}
	if _, err := d.in.Discard(simpleReplyBytes); err != nil || c != cmdRead {
		return err
	}
	_, err = io.ReadFull(d.in, d.body[:n])
	return err
}

// drive carries count requests out, of which depth are under way at a time.
func (d *driver) drive(c command, n uint32, depth, count int, bytes int64) error {
	rng := rand.New(rand.NewPCG(1, 2))
	next := func() error { return d.send(c, uint64(rng.Int64N(bytes/int64(n)))*uint64(n), n) }
	sent := 0
	for ; sent < min(depth, count); sent++ {
		if err := next(); err != nil {
			return err
		}
	}
	for range count {
		// What has come is taken before anything more is sent.
		if d.in.Buffered() < simpleReplyBytes {
			if err := d.out.Flush(); err != nil {
				return err
			}
		}
		if err := d.receive(c, n); err != nil {
			return err
		}
		if sent < count {
			sent++
			if err := next(); err != nil {
				return err
			}
		}
	}
	return nil
}

func serveBench(tb testing.TB, d Device) string {
	tb.Helper()
	server, err := NewServer(Config{Exports: []Export{{Device: d}}})
	if err != nil {
		tb.Fatal(err)
	}
	socket := filepath.Join(tb.TempDir(), "s")
	ln, err := ListenUnix(socket)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, ln) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			tb.Error(err)
		}
	})
	return socket
}

// BenchmarkServers compares this server with qemu-nbd, both with the same file behind
// them and the same client in front.
func BenchmarkServers(b *testing.B) {
	const bytes = 64 * mib
	file := newFile(b, pattern(bytes, 1))
	theirs := filepath.Join(b.TempDir(), "s")
	foreign(b, theirs, "qemu-nbd", "-t", "-f", "raw", "-e", "8", "--cache=writeback", "--aio=threads", "-k", theirs, file.Name())
	for _, server := range []struct{ name, socket string }{{"decant", serveBench(b, file)}, {"qemu-nbd", theirs}} {
		for _, c := range []command{cmdRead, cmdWrite} {
			for _, n := range []uint32{4 * kib, mib} {
				for _, depth := range []int{1, 16} {
					b.Run(fmt.Sprintf("%s/%s-%dk/depth-%d", server.name, c, n/kib, depth), func(b *testing.B) {
						d := newDriver(b, server.socket)
						b.SetBytes(int64(n))
						b.ReportAllocs()
						b.ResetTimer()
						if err := d.drive(c, n, depth, b.N, bytes); err != nil {
							b.Fatal(err)
						}
					})
				}
			}
		}
	}
}

// BenchmarkClient is what the client costs, with several callers at once.
func BenchmarkClient(b *testing.B) {
	socket := serveBench(b, newFile(b, pattern(64*mib, 1)))
	c, err := Dial(context.Background(), socketURI(socket), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for _, n := range []int64{4 * kib, mib} {
		b.Run(fmt.Sprintf("read-%dk", n/kib), func(b *testing.B) {
			b.SetBytes(n)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, n)
				for pb.Next() {
					if _, err := c.ReadAt(p, rand.Int64N(64*mib/n)*n); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// still is a device that does nothing, and costs nothing.
type still struct{}

func (still) ReadAt(p []byte, _ int64) (int, error)  { return len(p), nil }
func (still) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (still) Bytes() int64                           { return 1 << 40 }
func (still) Discard(_, _ int64) error               { return nil }
func (still) Zero(_, _ int64) error                  { return nil }
func (still) Flush() error                           { return nil }

// A request costs no memory, whoever carries it out.
func TestRequestsAllocateNothing(t *testing.T) {
	d := newDriver(t, serveBench(t, still{}))
	for _, n := range []uint32{4 * kib, 128 * kib} {
		for _, c := range []command{cmdRead, cmdWrite} {
			for _, depth := range []int{1, 16} {
				const count = 200
				drive := func() {
					if err := d.drive(c, n, depth, count, 1<<30); err != nil {
						t.Fatal(err)
					}
				}
				drive()
				// The pools lose what is in them to the garbage collection, and some of it
				// on purpose under the race detector.
				if each := testing.AllocsPerRun(3, drive) / count; each > 0.8 {
					t.Errorf("%s of %d bytes, %d at a time: %.2f allocations for each", c, n, depth, each)
				}
			}
		}
	}
}
