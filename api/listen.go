package api

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"decant/service"
)

// SocketConfig says where the socket of the service is and who may use it.
type SocketConfig struct {
	Path  string
	Group string // of those who may use it beside root and this user; none if empty
	Log   *slog.Logger
}

// longestSocketPath is what fits into a sockaddr_un, with its final NUL.
const longestSocketPath = 107

// ListenUnix makes the socket of the service. Its directory is made if it is
// missing, and has to be one in which nobody else can put files, so that what is
// checked about the socket stays true. A socket that an earlier run left behind is
// replaced; anything else at the path is refused and left alone. Two services
// cannot have the same path: a lock beside it says so. Closing the listener removes
// the socket, if it is still this one.
//
// Every connection is checked for who made it, as GuardUnix says.
func ListenUnix(c SocketConfig) (net.Listener, error) {
	gid, err := groupID(c.Group)
	if err != nil {
		return nil, err
	}
	if len(c.Path) > longestSocketPath || !filepath.IsAbs(c.Path) {
		return nil, refuseSocket(c.Path, fmt.Sprintf("it is not an absolute path of at most %d bytes", longestSocketPath), "name another with --socket", nil)
	}
	if err := prepareSocketDir(filepath.Dir(c.Path), gid); err != nil {
		return nil, err
	}
	lock, err := lockSocket(c.Path)
	if err != nil {
		return nil, err
	}
	own, err := bindSocket(c.Path, gid)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	own.lock = lock
	return guard(own, gid, c.Log), nil
}

func refuseSocket(path, problem, hint string, cause error) error {
	return &service.Error{Outcome: service.Refused, Object: path, Problem: "the socket cannot be used: " + problem, Hint: hint, Err: cause}
}

// prepareSocketDir makes the directory, readable by the group, or checks that the
// one that is there belongs to root or this user and lets nobody else write.
func prepareSocketDir(dir string, gid int) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil && gid >= 0 {
		// Whatever the umask of this process is, the group has to get in.
		err = errors.Join(os.Chown(dir, -1, gid), os.Chmod(dir, 0o750))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return refuseSocket(dir, "its directory cannot be made", "make the directory, or let systemd make it (RuntimeDirectory=)", err)
	}
	var stat unix.Stat_t
	if err := unix.Lstat(dir, &stat); err != nil {
		return refuseSocket(dir, "its directory cannot be looked at", "", err)
	}
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFDIR:
		return refuseSocket(dir, "its directory is none, or a symbolic link", "name another with --socket", nil)
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return refuseSocket(dir, fmt.Sprintf("its directory belongs to user %d", stat.Uid), "name one of your own with --socket", nil)
	case stat.Mode&0o022 != 0:
		return refuseSocket(dir, "others may write to its directory", "chmod go-w "+dir+", or name another with --socket", nil)
	}
	return nil
}

// lockSocket takes the lock beside the socket. It is never removed: who removes a
// lock file lets two hold it.
func lockSocket(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, refuseSocket(path, "the lock beside it cannot be opened", "remove what stands at "+path+".lock", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close() // nothing was written
		return nil, refuseSocket(path, "another service has it", "stop that one, or name another socket with --socket", err)
	}
	return lock, nil
}

// bindSocket binds path, in place of a socket that nobody listens on any more.
func bindSocket(path string, gid int) (*ownSocket, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// What bind makes takes its mode from the descriptor: nobody else can connect
	// before group and mode are set, whatever the umask is.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	listener, err := config.Listen(background, "unix", path)
	if err != nil {
		return nil, refuseSocket(path, "it cannot be bound", "", err)
	}
	bound, ok := listener.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(refuseSocket(path, "it is no Unix socket", "", nil), listener.Close())
	}
	bound.SetUnlinkOnClose(false)
	own := &ownSocket{UnixListener: bound, path: path}
	if err := own.open(gid); err != nil {
		return nil, errors.Join(refuseSocket(path, "its group and mode cannot be set", "", err), own.Close())
	}
	return own, nil
}

// removeStale removes the socket of a service that is gone. It may be called only
// with the lock held.
func removeStale(path string) error {
	var stat unix.Stat_t
	err := unix.Lstat(path, &stat)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return refuseSocket(path, "it cannot be looked at", "", err)
	case stat.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return refuseSocket(path, "something else than a socket stands there", "look at it, and remove it if it is yours", nil)
	case int(stat.Uid) != os.Geteuid():
		return refuseSocket(path, fmt.Sprintf("it belongs to user %d", stat.Uid), "look at it, and remove it if nobody needs it", nil)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close() // it was only to see that somebody answers
		return refuseSocket(path, "another program listens there", "stop that one, or name another socket with --socket", nil)
	} else if !errors.Is(err, unix.ECONNREFUSED) {
		return refuseSocket(path, "it cannot be seen whether somebody listens there", "", err)
	}
	if err := unix.Unlink(path); err != nil {
		return refuseSocket(path, "what an earlier run left there cannot be removed", "", err)
	}
	return nil
}

// ownSocket is a socket that this process has bound.
type ownSocket struct {
	*net.UnixListener
	path     string
	dev, ino uint64
	lock     *os.File
}

// open lets the group connect, and notes which socket this is.
func (s *ownSocket) open(gid int) error {
	var stat unix.Stat_t
	if err := unix.Lstat(s.path, &stat); err != nil {
		return err
	}
	s.dev, s.ino = stat.Dev, stat.Ino
	if gid < 0 {
		return nil
	}
	if err := os.Lchown(s.path, -1, gid); err != nil {
		return err
	}
	return os.Chmod(s.path, 0o660)
}

// Close implements net.Listener. The second call only says that it is closed.
func (s *ownSocket) Close() error {
	err := s.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	var stat unix.Stat_t
	if lerr := unix.Lstat(s.path, &stat); lerr == nil && stat.Dev == s.dev && stat.Ino == s.ino {
		err = errors.Join(err, os.Remove(s.path))
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// TCPConfig says where the service listens for the network.
type TCPConfig struct {
	Address           string // host:port
	CertFile, KeyFile string // PEM; neither means no TLS
}

// ListenTCP listens on the network, with TLS if there is a certificate. Whoever
// connects has to show the token; New refuses to serve TCP without one.
func ListenTCP(c TCPConfig) (net.Listener, error) {
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, &service.Error{Outcome: service.Usage, Problem: "TLS needs a certificate and its key, both or neither"}
	}
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return nil, &service.Error{Outcome: service.Usage, Object: c.Address, Problem: "not an address to listen on", Hint: "for example 127.0.0.1:9640", Err: err}
	}
	var secure *tls.Config
	if c.CertFile != "" {
		certificate, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, &service.Error{Outcome: service.Refused, Object: c.CertFile, Problem: "the certificate cannot be used", Err: err}
		}
		secure = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	listener, err := net.Listen("tcp", c.Address)
	if err != nil {
		return nil, &service.Error{Outcome: service.Refused, Object: c.Address, Problem: "cannot listen there", Err: err}
	}
	if secure != nil {
		return &secured{Listener: listener, config: secure}, nil
	}
	return listener, nil
}

// secured is a listener that is to be served with TLS. The server puts TLS on the
// outside of what it wraps connections in, since net/http looks for it there.
type secured struct {
	net.Listener
	config *tls.Config
}

// isLoopback says whether only this machine can connect to a listener on addr.
func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// isUnix says whether a listener is a Unix socket.
func isUnix(listener net.Listener) bool {
	return strings.HasPrefix(listener.Addr().Network(), "unix")
}
