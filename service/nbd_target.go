package service

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// openExport connects to an export for this process alone.
func (s *Service) openExport(t target, write bool) (_ *end, err error) {
	lock, err := lockExport(t.export)
	if err != nil {
		return nil, err
	}
	n := &nbdEnd{lock: lock}
	options := s.nbdOptions
	options.ReadOnly = !write
	options.Recognize = func(export io.ReaderAt) error { return n.recognize(export) }
	if n.Client, err = nbd.Dial(context.Background(), t.path, options); err != nil {
		return nil, errors.Join(&Error{
			Outcome: Refused, Problem: "no connection", Err: err,
			Hint: "start the server, or check the URI, for example with: nbdinfo '" + t.path + "'",
		}, lock.release())
	}
	n.info = loopdev.Info{
		Kind: nbdKind, Path: t.path, Bytes: n.Bytes(), Key: fmt.Sprintf("%s:%d", exportKey(t.export), n.Bytes()),
		LogicalBlockBytes: n.MinBlockBytes(),
	}
	return &end{device: n, base: n, name: t.name, kind: nbdKind, target: t}, nil
}
