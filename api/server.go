package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"decant/api/client"
	"decant/service"
)

// Limits of the server. None of them depends on the size of a migration.
const (
	headerTimeout   = 10 * time.Second
	bodyTimeout     = 10 * time.Second
	answerTimeout   = 5 * time.Minute // a preflight may take a while to count extents
	idleTimeout     = 2 * time.Minute
	mostHeaderBytes = 64 << 10

	defaultSubscribers = 256
	defaultConnections = 1024
	eventWriteTimeout  = 10 * time.Second
)

// Config is what the API stands on.
type Config struct {
	Manager  Manager
	StateDir string // that of the journals; clients compare it with theirs
	Version  string
	Log      *slog.Logger // nil: none

	// Token has to be shown by clients on the network. Without one the server serves
	// Unix sockets only.
	Token Token
	// Hosts are the names and addresses, beside those of the loopback, under which
	// clients on the network may address the service.
	Hosts []string
	// Page is served where the API is not; nil: nothing is.
	Page http.Handler

	MostSubscribers int           // to event streams, at a time; 0: 256
	MostConnections int           // at a time; more wait to be accepted; 0: 1024
	Heartbeat       time.Duration // of event streams; 0: 15 s
}

// Server serves the API, on any number of listeners.
type Server struct {
	Config
	hosts   []string
	token   Token
	log     *slog.Logger
	http    *http.Server
	metrics *metrics
	openapi []byte // the document, in YAML

	patience    time.Duration // for a reader of events to take one
	slots       chan struct{} // one for each connection
	subscribers chan struct{} // one for each event stream
	stopping    chan struct{} // closed when event streams have to end
	stop        func()
}

// New makes a server; it serves nothing yet.
func New(c Config) (*Server, error) {
	if c.Manager == nil {
		return nil, errors.New("the API needs a manager")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{Config: c, hosts: allowedHosts(c.Hosts), token: c.Token, log: c.Log, stopping: make(chan struct{}), patience: eventWriteTimeout}
	s.MostSubscribers = orDefault(s.MostSubscribers, defaultSubscribers)
	s.slots = make(chan struct{}, orDefault(s.MostConnections, defaultConnections))
	s.subscribers = make(chan struct{}, s.MostSubscribers)
	s.Heartbeat = orDefault(s.Heartbeat, client.Heartbeat)
	s.stop = sync.OnceFunc(func() { close(s.stopping) })
	s.metrics = newMetrics(s)
	handler, err := s.routes()
	if err != nil {
		return nil, err
	}
	s.http = &http.Server{
		Handler:           s.observe(s.admit(handler)),
		ConnContext:       withCaller,
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    mostHeaderBytes,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn),
	}
	return s, nil
}

func orDefault[T int | time.Duration](value, fallback T) T {
	if value <= 0 {
		return fallback
	}
	return value
}

// Handler is the whole server as a handler, with all its checks. A request that did
// not come through Serve counts as one from the network.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// OpenAPI is the description of the API, in YAML.
func (s *Server) OpenAPI() []byte { return s.openapi }

// Serve serves a listener until Shutdown, and returns nil then. A listener on a Unix
// socket has to come from ListenUnix or GuardUnix; any other needs a token.
func (s *Server) Serve(listener net.Listener) error {
	_, isGuarded := listener.(*guarded)
	switch {
	case isUnix(listener) && !isGuarded:
		return errors.New("a Unix socket is served only with its guard")
	case !isUnix(listener) && !s.token.IsSet():
		return &service.Error{
			Outcome: service.Refused, Object: listener.Addr().String(), Problem: "the network is served only with a token",
			Hint: "name a file that holds one with --token-file",
		}
	}
	tlsListener, isSecured := listener.(*secured)
	if !isUnix(listener) && !isLoopback(listener.Addr()) && !isSecured {
		s.log.Warn("the token crosses the network in the clear: give a certificate", "address", listener.Addr().String())
	}
	var bounded net.Listener = &slotted{Listener: listener, slots: s.slots, stopping: s.stopping}
	if isSecured {
		bounded = tls.NewListener(bounded, tlsListener.config)
	}
	err := s.http.Serve(bounded)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown ends event streams, waits for the other requests, and closes everything;
// when ctx ends, it cuts off what is left.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	err := s.http.Shutdown(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("requests were cut off: %w", err), s.http.Close())
	}
	return nil
}

// slotted is a listener that has no more than a number of connections open.
type slotted struct {
	net.Listener
	slots    chan struct{}
	stopping <-chan struct{}
}

// Accept implements net.Listener.
func (l *slotted) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.stopping:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	free := sync.OnceFunc(func() { <-l.slots })
	if p, ok := conn.(*peerConn); ok {
		return &peerConn{UnixConn: p.UnixConn, peer: p.peer, closed: free}, nil
	}
	return &slottedConn{Conn: conn, closed: free}, nil
}

type slottedConn struct {
	net.Conn
	closed func()
}

// Close implements net.Conn.
func (c *slottedConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}
