package nbd

import (
	"errors"
	"fmt"
	"time"
)

// Limits bounds what clients can make a server spend. A zero field means its default.
type Limits struct {
	// Connections is how many there may be at a time, handshakes included; more are
	// closed at once. Default 64.
	Connections int
	// PeerConnections is how many of them one user (on a Unix socket) or one address
	// may have, so that nobody locks the others out. Default 32.
	PeerConnections int
	// Depth is how many requests of one connection the device sees at a time.
	// Default 16.
	Depth int
	// ConnectionBytes is the most memory that payloads of one connection take.
	// Default 64 MiB, at least MaxPayloadBytes.
	ConnectionBytes int64
	// ServerBytes is the same for all connections together. Default 256 MiB, at least
	// MaxPayloadBytes.
	ServerBytes int64
	// HandshakeTime is how long a client may take from connecting to the first
	// request, TLS included. Default 10 s.
	HandshakeTime time.Duration
	// StallTime is how long a client may take to send or to accept the next MiB of a
	// payload; it is disconnected after that time at the latest, and not before half
	// of it. A client without a request may be silent for ever. Default 30 s.
	StallTime time.Duration
}

// ErrLimits says that Limits contradict themselves.
var ErrLimits = errors.New("the limits make no sense")

func orDefault[T int | int64 | time.Duration](value, instead T) T {
	if value == 0 {
		return instead
	}
	return value
}

func (l Limits) withDefaults() (Limits, error) {
	l.Connections = orDefault(l.Connections, 64)
	l.PeerConnections = orDefault(l.PeerConnections, 32)
	l.Depth = orDefault(l.Depth, 16)
	l.ConnectionBytes = orDefault(l.ConnectionBytes, 64<<20)
	l.ServerBytes = orDefault(l.ServerBytes, 256<<20)
	l.HandshakeTime = orDefault(l.HandshakeTime, 10*time.Second)
	l.StallTime = orDefault(l.StallTime, 30*time.Second)
	if min(l.Connections, l.PeerConnections, l.Depth) < 1 || min(l.HandshakeTime, l.StallTime) < 0 {
		return l, fmt.Errorf("%w: a number in %+v is negative", ErrLimits, l)
	}
	if min(l.ConnectionBytes, l.ServerBytes) < MaxPayloadBytes {
		return l, fmt.Errorf("%w: %d bytes for a connection and %d for all hold no payload of %d",
			ErrLimits, l.ConnectionBytes, l.ServerBytes, MaxPayloadBytes)
	}
	return l, nil
}
