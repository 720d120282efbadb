package nbd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Peer is who has connected, as the kernel tells it.
type Peer struct {
	// Local says that the peer came by a Unix socket; only then the next three mean
	// anything. They were taken when it connected.
	Local    bool
	UID, GID uint32
	PID      int32
	// Address is the address of a peer from the network, without the port.
	Address string
}

// String names the peer for logs.
func (p Peer) String() string {
	if p.Local {
		return fmt.Sprintf("process %d of user %d", p.PID, p.UID)
	}
	return p.Address
}

// key is what connections are counted by.
func (p Peer) key() string {
	if p.Local {
		return fmt.Sprintf("user %d", p.UID)
	}
	return p.Address
}

// ErrNotAdmitted says that a peer may not use the server.
var ErrNotAdmitted = errors.New("is not admitted")

// AdmitOwner lets in root and the user that the server runs as, and from the network
// everybody, because there a listener and TLS have to decide.
func AdmitOwner(p Peer) error {
	if p.Local && p.UID != 0 && int(p.UID) != os.Geteuid() {
		return fmt.Errorf("%v %w: the server runs as user %d", p, ErrNotAdmitted, os.Geteuid())
	}
	return nil
}

// peerOf asks the kernel who is at the other end.
func peerOf(stream net.Conn) (Peer, error) {
	if u, ok := stream.(*net.UnixConn); ok {
		raw, err := u.SyscallConn()
		if err != nil {
			return Peer{}, err
		}
		var cred *unix.Ucred
		var credErr error
		err = raw.Control(func(fd uintptr) {
			cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		})
		if err := errors.Join(err, credErr); err != nil {
			return Peer{}, fmt.Errorf("ask who has connected: %w", err)
		}
		return Peer{Local: true, UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, nil
	}
	address := stream.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	return Peer{Address: address}, nil
}

// gate counts connections and clients. A client is a connection that has come through
// the handshake.
type gate struct {
	mu          sync.Mutex
	connections int
	byPeer      map[string]int
	clients     int
	closeIdle   bool          // close when there is no client
	closed      chan struct{} // closed when no client is let in any more
	isClosed    bool
	idle        chan struct{} // closed when there is no client; nil if nobody waits
}

func newGate() *gate {
	return &gate{byPeer: map[string]int{}, closed: make(chan struct{})}
}

// enter counts a connection of the peer, if the limits allow it.
func (g *gate) enter(peer string, l Limits) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.isClosed:
		return errors.New("the server has stopped")
	case g.connections >= l.Connections:
		return fmt.Errorf("there are %d connections already", g.connections)
	case g.byPeer[peer] >= l.PeerConnections:
		return fmt.Errorf("%s has %d connections already", peer, g.byPeer[peer])
	}
	g.connections++
	g.byPeer[peer]++
	return nil
}

func (g *gate) leave(peer string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.connections--
	if g.byPeer[peer]--; g.byPeer[peer] == 0 {
		delete(g.byPeer, peer)
	}
}

// begin counts a client. It is false if the server takes no more.
func (g *gate) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isClosed {
		return false
	}
	g.clients++
	return true
}

func (g *gate) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clients--
	g.tell()
}

// tell lets those know who wait for the last client to leave; under mu.
func (g *gate) tell() {
	if g.clients > 0 {
		return
	}
	if g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
	if g.closeIdle && !g.isClosed {
		g.isClosed = true
		close(g.closed)
	}
}

// whenIdle is closed as soon as there is no client.
func (g *gate) whenIdle() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.tell()
	return idle
}

func (g *gate) stopWhenIdle() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closeIdle = true
	g.tell()
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.clients
}
