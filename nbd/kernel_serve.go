package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotTaken says that the kernel did not take a connection, because the one that it
// has is not dead.
var ErrNotTaken = errors.New("the device has a connection that is not dead")

// ServeStream serves an export to a client at the other end of stream that is past the
// handshake and asks for simple replies: the kernel. It closes stream, and returns when
// the client has left or ctx has ended, and everything that was in work has been
// carried out, and answered if the client still takes answers. Limits of connections
// and of idle clients do not hold for it, and nobody asks Config.Admit.
func (s *Server) ServeStream(ctx context.Context, stream net.Conn, export string) error {
	defer stream.Close() //nolint:errcheck // all that was to be said has been said
	e, ok := s.lookup(export)
	if !ok {
		return fmt.Errorf("%w: there is no export %.100q", errRefused, export)
	}
	if !s.gate.begin() {
		return fmt.Errorf("%w: the server stops", errRefused)
	}
	defer s.gate.end()
	n := &negotiation{server: s, stream: stream, in: bufio.NewReaderSize(stream, readBufferBytes)}
	n.connection(e).serve(ctx)
	return nil
}

// KernelLink is a connection of this process with a block device of the kernel.
type KernelLink struct {
	// Index is of the block device, KernelDevicePath(Index).
	Index  int
	stream *net.UnixConn
	ended  chan struct{}
}

// Ended is closed when nobody serves any more: the device was disconnected, the context
// of Serve has ended, or the link was closed before Serve.
func (l *KernelLink) Ended() <-chan struct{} { return l.ended }

// Serve lets s answer the requests that come by the link, until ctx ends or the device
// is disconnected. It returns at once, and is called once.
func (l *KernelLink) Serve(ctx context.Context, s *Server, export string) {
	go func() {
		defer close(l.ended)
		if err := s.ServeStream(ctx, l.stream, export); err != nil {
			s.config.Log.Warn("serve the kernel", "export", export, "error", err)
		}
	}()
}

// Close gives up a link that nobody serves. The device stays, as when Serve ends.
func (l *KernelLink) Close() {
	l.stream.Close() //nolint:errcheck // nothing was sent
	close(l.ended)
}

// AttachKernel makes an export of s a block device of the kernel: a free one, or
// d.Index. It serves until ctx ends or the device is disconnected. Then the device
// stays, and its I/O waits for somebody to come back with HoldKernel (DeadTime).
func (s *Server) AttachKernel(ctx context.Context, d KernelDevice, export string) (*KernelLink, error) {
	ours, kernels, err := streamPair()
	if err != nil {
		return nil, err
	}
	defer kernels.Close() //nolint:errcheck // the kernel has its own hold of it
	l := &KernelLink{stream: ours, ended: make(chan struct{})}
	// The kernel reads the device while it connects it, in search of partitions.
	l.Serve(ctx, s, export)
	if l.Index, err = ConnectKernel(d, kernels); err != nil {
		ours.Close() //nolint:errcheck // ends Serve
		<-l.ended
		return nil, err
	}
	return l, nil
}

// HoldKernel takes on the block device d.Index whose server is gone: from then on its
// I/O waits for Serve, for as long as that takes. A server that was killed a moment ago
// may seem to be there for a while; that is waited for until ctx ends, and the error is
// ErrNotTaken then.
func HoldKernel(ctx context.Context, d KernelDevice) (*KernelLink, error) {
	const pause = 20 * time.Millisecond
	for {
		l, err := tryHold(d)
		if !errors.Is(err, ErrNotTaken) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

func tryHold(d KernelDevice) (*KernelLink, error) {
	ours, kernels, err := streamPair()
	if err != nil {
		return nil, err
	}
	err = ReconfigureKernel(d, kernels)
	kernels.Close() //nolint:errcheck // if the kernel did not take it, nobody has it now
	if err == nil {
		err = kernelFailure("reconfigure", d.Index, stillOpen(ours))
	}
	if err != nil {
		ours.Close() //nolint:errcheck // nothing was sent
		return nil, err
	}
	return &KernelLink{Index: d.Index, stream: ours, ended: make(chan struct{})}, nil
}

// stillOpen asks whether anybody holds the other end, without reading what it may have
// sent.
func stillOpen(stream *net.UnixConn) error {
	raw, err := stream.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var peekErr error
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, peekErr = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	switch {
	case err != nil:
		return err
	case errors.Is(peekErr, unix.EAGAIN):
		return nil // it is there, and has nothing to say
	case peekErr != nil:
		return peekErr
	case n == 0:
		return ErrNotTaken
	}
	return nil
}

// streamPair is two connected sockets: one for this process and one for the kernel.
func streamPair() (ours *net.UnixConn, kernels *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	mine := os.NewFile(uintptr(fds[0]), "nbd server")
	kernels = os.NewFile(uintptr(fds[1]), "nbd client")
	stream, err := net.FileConn(mine)
	mine.Close() //nolint:errcheck // FileConn has made a copy
	if err != nil {
		kernels.Close() //nolint:errcheck // the first error counts
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	return stream.(*net.UnixConn), kernels, nil
}
