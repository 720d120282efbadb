package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// Config is what a Server is made of.
type Config struct {
	// Exports are what is there from the start; more can be added.
	Exports []Export
	Limits  Limits
	// TLS, if set, is offered to clients. Set its ClientAuth to ask for certificates.
	TLS *tls.Config
	// RequireTLS refuses everything to clients that do not use it.
	RequireTLS bool
	// Admit decides about everybody who connects, before a byte is read; an error is
	// the reason for the log. nil means AdmitOwner.
	Admit func(Peer) error
	// Log is told of refused clients (Debug) and errors of devices (Warn, at most one
	// a second for each export). nil means nobody is told.
	Log *slog.Logger
}

// Server offers exports to clients. Its methods may be called concurrently.
type Server struct {
	config Config
	gate   *gate
	memory *budget

	mu      sync.RWMutex
	exports map[string]*export
}

// export is an Export in use.
type export struct {
	Export
	flusher flusher
	quiet   quiet
}

// NewServer makes a server; it listens nowhere yet. Errors are ErrExport, ErrLimits,
// or that TLS is required and not configured.
func NewServer(config Config) (*Server, error) {
	var err error
	if config.Limits, err = config.Limits.withDefaults(); err != nil {
		return nil, err
	}
	if config.RequireTLS && config.TLS == nil {
		return nil, errors.New("TLS is required of clients, but there is no configuration for it")
	}
	if config.TLS != nil {
		config.TLS = config.TLS.Clone()
		config.TLS.MinVersion = max(config.TLS.MinVersion, tls.VersionTLS12)
	}
	if config.Admit == nil {
		config.Admit = AdmitOwner
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		config:  config,
		gate:    newGate(),
		memory:  newBudget(config.Limits.ServerBytes),
		exports: map[string]*export{},
	}
	for _, e := range config.Exports {
		if err := s.AddExport(e); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// AddExport offers one more device. An error is ErrExport: the name is taken, or a
// field makes no sense.
func (s *Server) AddExport(e Export) error {
	e, err := e.withDefaults()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[e.Name] != nil {
		return fmt.Errorf("%w: export %q: the name is taken", ErrExport, e.Name)
	}
	s.exports[e.Name] = &export{Export: e, flusher: flusher{device: e.Device}}
	return nil
}

// RemoveExport takes a name off the list. Clients that use the device go on with it.
func (s *Server) RemoveExport(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.exports, name)
}

func (s *Server) lookup(name string) (*export, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.exports[name]
	return e, ok
}

// list is every export, by name.
func (s *Server) list() []*export {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*export, 0, len(s.exports))
	for _, name := range slices.Sorted(maps.Keys(s.exports)) {
		list = append(list, s.exports[name])
	}
	return list
}

// Clients is how many connections have come through the handshake and are still there.
func (s *Server) Clients() int { return s.gate.count() }

// WaitIdle returns nil as soon as there is no client, at once if there is none now, or
// the context's error. The next client may be there by the time it returns.
func (s *Server) WaitIdle(ctx context.Context) error {
	select {
	case <-s.gate.whenIdle():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// StopWhenIdle makes every Serve end with nil at the first moment without a client,
// which may be now. From that moment on no client is let in: none is cut off.
func (s *Server) StopWhenIdle() { s.gate.stopWhenIdle() }

// Serve lets clients in until ctx ends, StopWhenIdle takes effect, or the listener
// fails; only the last is an error. It closes ln. It may be called for several
// listeners.
//
// It returns when every request that was in work has been carried out, and answered if
// its client still takes answers. A call of a device that does not return keeps it
// waiting: no device is in use any more when Serve has returned. Nothing else does,
// because every wait for a client has a limit.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		select {
		case <-ctx.Done():
		case <-s.gate.closed:
			cancel()
		}
		ln.Close() //nolint:errcheck // Accept tells
	}()

	var connections sync.WaitGroup
	err := s.accept(ctx, ln, &connections)
	cancel()
	<-closed
	connections.Wait()
	return err
}

// accept starts one goroutine for each connection, until ctx ends.
func (s *Server) accept(ctx context.Context, ln net.Listener, connections *sync.WaitGroup) error {
	const firstPause, longestPause = 5 * time.Millisecond, time.Second
	pause := firstPause
	for {
		stream, err := ln.Accept()
		if err == nil {
			pause = firstPause
			connections.Go(func() { s.serveConnection(ctx, stream) })
			continue
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the listener was closed because this is the end
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept clients on %v: %w", ln.Addr(), err)
		}
		// Out of descriptors or memory, or the client has gone already: the
		// listener itself is whole.
		s.config.Log.Warn("accept a client", "listener", ln.Addr().String(), "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
}

// serveConnection is the whole life of one connection.
func (s *Server) serveConnection(ctx context.Context, stream net.Conn) {
	defer stream.Close() //nolint:errcheck // all that was to be said has been said
	peer, err := peerOf(stream)
	if err == nil {
		err = s.config.Admit(peer)
	}
	if err == nil {
		err = s.gate.enter(peer.key(), s.config.Limits)
	}
	if err != nil {
		s.config.Log.Debug("refuse a connection", "peer", peer.String(), "reason", err)
		return
	}
	defer s.gate.leave(peer.key())

	if t, ok := stream.(*net.TCPConn); ok {
		// A client that has vanished is to be noticed also when it is idle.
		t.SetKeepAlive(true) //nolint:errcheck // without it its place is lost, no more
	}
	c, err := s.handshake(ctx, stream)
	if err != nil || c == nil {
		s.config.Log.Debug("end of a handshake", "peer", peer.String(), "reason", err)
		return
	}
	defer s.gate.end()
	c.serve(ctx)
}

// quiet lets one message a second pass.
type quiet struct {
	mu   sync.Mutex
	last time.Time
}

func (q *quiet) pass() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.last.IsZero() && time.Since(q.last) < time.Second {
		return false
	}
	q.last = time.Now()
	return true
}
