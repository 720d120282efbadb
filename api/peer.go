package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"decant/service"
)

// background is the context of what cannot be called off.
var background = context.Background()

// peer is the process at the other end of a Unix socket, as it was when it connected.
type peer struct {
	pid    int32
	uid    uint32
	groups []uint32 // its own, and the supplementary ones
}

// peerOf asks the kernel who made a connection. Both answers are those of the time
// of connect(2), so that nobody can change them afterwards.
func peerOf(conn *net.UnixConn) (peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var p peer
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			failed = err
			return
		}
		p = peer{pid: cred.Pid, uid: cred.Uid, groups: []uint32{cred.Gid}}
		more, err := peerGroups(int(fd))
		p.groups, failed = append(p.groups, more...), err
	})
	return p, errors.Join(err, failed)
}

// peerGroups are the supplementary groups of the peer. x/sys has no function for
// SO_PEERGROUPS, which answers with as many 32-bit numbers as there are groups.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		bytes := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&bytes)), 0)
		switch {
		case errno == 0:
			return groups[:bytes/4], nil
		case errno == unix.ERANGE && int(bytes/4) > len(groups):
			groups = make([]uint32, bytes/4)
		default:
			return nil, errno
		}
	}
}

// guarded is a listener on a Unix socket that lets nobody in but root, the user of
// this process, and the members of one group.
type guarded struct {
	net.Listener
	gid int // below 0: no group
	log *slog.Logger
	say *rate.Limiter // so that a stranger cannot fill the log
}

// GuardUnix makes listener, which has to be one on a Unix socket, close every
// connection that does not come from root, from the user of this process, or from a
// member of the group, before a byte of it is read. The empty group has no members.
func GuardUnix(listener net.Listener, group string, log *slog.Logger) (net.Listener, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, err
	}
	if !isUnix(listener) {
		return nil, &service.Error{Outcome: service.Refused, Object: listener.Addr().String(), Problem: "it is no Unix socket"}
	}
	return guard(listener, gid, log), nil
}

func guard(listener net.Listener, gid int, log *slog.Logger) *guarded {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &guarded{Listener: listener, gid: gid, log: log, say: rate.NewLimiter(1, 10)}
}

// Accept implements net.Listener.
func (g *guarded) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		unixConn, ok := conn.(*net.UnixConn)
		if !ok {
			return nil, errors.Join(fmt.Errorf("a connection of %T on a Unix socket", conn), conn.Close())
		}
		p, err := peerOf(unixConn)
		if err == nil && g.allows(p) {
			return &peerConn{UnixConn: unixConn, peer: p}, nil
		}
		if g.say.Allow() {
			g.log.Warn("connection refused", "uid", p.uid, "pid", p.pid, "error", err)
		}
		_ = conn.Close() // nothing was said on it
	}
}

func (g *guarded) allows(p peer) bool {
	return p.uid == 0 || int64(p.uid) == int64(os.Geteuid()) ||
		g.gid >= 0 && slices.Contains(p.groups, uint32(g.gid))
}

// peerConn is a connection whose peer may use the service.
type peerConn struct {
	*net.UnixConn
	peer   peer
	closed func() // if any
}

// Close implements net.Conn.
func (c *peerConn) Close() error {
	if c.closed != nil {
		defer c.closed()
	}
	return c.UnixConn.Close()
}

// HasGroup says whether the system has a group of that name or number.
func HasGroup(name string) bool {
	gid, err := groupID(name)
	return err == nil && gid >= 0
}

// groupID finds a group by name or number; -1 for the empty string.
func groupID(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	if gid, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(gid), nil
	}
	group, err := user.LookupGroup(name)
	if err != nil {
		return 0, &service.Error{Outcome: service.Refused, Object: name, Problem: "no such group", Hint: "make it with: groupadd --system " + name, Err: err}
	}
	return strconv.Atoi(group.Gid)
}
