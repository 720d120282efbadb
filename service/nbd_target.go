package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strings"

	"decant/loopdev"
	"decant/nbd"
)

// exportName is what is meant as a URI of NBD, and not as a path. A file whose name
// begins so is reached by ./ in front of it.
var exportName = regexp.MustCompile(`^nbds?(\+[a-z]+)?:`)

// exportTarget reads the URI of an export.
func exportTarget(name string) (target, error) {
	u, err := nbd.ParseURI(name)
	if err == nil {
		u, err = wholeURI(u)
	}
	if err != nil {
		return target{}, &Error{
			Outcome: Usage, Object: name, Problem: "is no URI of an NBD export", Err: err,
			Hint: "write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH; or ./" + name + " for a file",
		}
	}
	return target{name: name, path: u.String(), export: u}, nil
}

func (t target) isExport() bool { return t.export.Network != "" }

// wholeURI gives a URI the one form that leads to the same export from any directory,
// and by which it is known again.
func wholeURI(u nbd.URI) (_ nbd.URI, err error) {
	if u.Network == "tcp" {
		u.Address = strings.ToLower(u.Address)
	} else if u.Address, err = filepath.Abs(u.Address); err != nil {
		return u, err
	}
	if at, err := filepath.EvalSymlinks(u.Address); err == nil && u.Network == "unix" {
		u.Address = at // else connecting says what is wrong with it
	}
	if u.TLSCertificates != "" {
		if u.TLSCertificates, err = filepath.Abs(u.TLSCertificates); err != nil {
			return u, err
		}
	}
	return u, nil
}

// confineExport keeps the URI of a request to what requests may use, and says how to
// connect to it: to what lies at the socket's path itself, whatever links there may be.
func (s *Service) confineExport(u nbd.URI) (func(context.Context) (net.Conn, error), error) {
	switch {
	case s.confined == nil:
		return nil, nil //nolint:nilnil // as the URI says
	case u.TLSCertificates != "":
		return nil, &Error{Outcome: Refused, Problem: "requests cannot name certificates", Hint: "migrate without the service"}
	case u.Network != "unix":
		return nil, nil //nolint:nilnil // as the URI says
	case !s.confined.Allows(u.Address):
		return nil, &Error{
			Outcome: Refused, Problem: "its socket lies outside of the directories that requests may use: " + strings.Join(s.confined.Roots, ", "),
			Hint: "add its directory to roots in the configuration of the service", Err: loopdev.ErrOutside,
		}
	}
	return func(ctx context.Context) (net.Conn, error) {
		socket, err := s.confined.Locate(u.Address)
		if err != nil {
			return nil, err
		}
		defer func() { _ = socket.Close() }() // nothing can be written through it
		return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", socket.Fd()))
	}, nil
}

// openExport connects to an export for this process alone.
func (s *Service) openExport(t target, write bool) (_ *end, err error) {
	options := s.nbdOptions
	if options.Dial, err = s.confineExport(t.export); err != nil {
		return nil, err
	}
	lock, err := lockExport(t.export)
	if err != nil {
		return nil, err
	}
	n := &nbdEnd{lock: lock}
	options.ReadOnly = !write
	options.Recognize = func(export io.ReaderAt) error { return n.recognize(export) }
	if n.Client, err = nbd.Dial(context.Background(), t.path, options); err != nil {
		return nil, errors.Join(&Error{
			Outcome: Refused, Problem: "no connection", Err: err,
			Hint: "start the server, or check the URI, for example with: nbdinfo '" + t.path + "'",
		}, lock.release())
	}
	if err := n.findImage(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	n.info = loopdev.Info{
		Kind: nbdKind, Path: t.path, Bytes: n.Bytes(), Key: fmt.Sprintf("%s:%d", exportKey(t.export), n.Bytes()),
		LogicalBlockBytes: n.MinBlockBytes(),
	}
	return &end{device: n, base: n, name: t.name, kind: nbdKind, target: t}, nil
}
