package main

import (
	"errors"
	"log/slog"
	"net"
	"os/user"

	"golang.org/x/sync/errgroup"

	"decant/api"
	"decant/service"
	"decant/web"
)

// server answers clients on all listeners.
type server struct {
	api       *api.Server
	listeners []net.Listener
}

// existing is the group, or none if it is only the default one and this host has no such
// group: then the socket is root's alone.
func existing(group string, log *slog.Logger) string {
	if group != defaults().group {
		return group
	}
	if _, err := user.LookupGroup(group); err != nil {
		log.Warn("there is no group for the socket, it is for this user and root only", "group", group)
		return ""
	}
	return group
}

func newServer(c config, stateDir string, m *service.Manager, log *slog.Logger) (_ *server, err error) {
	s := &server{}
	c.group = existing(c.group, log)
	a := api.Config{Manager: api.ManagerOf(m), StateDir: stateDir, Version: version(), Log: log, Hosts: c.network.hosts, Page: web.Handler()}
	if c.network.tokenFile != "" {
		if a.Token, err = api.LoadToken(c.network.tokenFile); err != nil {
			return nil, err
		}
	}
	if s.api, err = api.New(a); err != nil {
		return nil, refused("the API cannot be served", err)
	}
	if err := s.listen(c, log); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// listen takes over what systemd has opened, or else makes the socket, and listens on the
// network if that is asked for.
func (s *server) listen(c config, log *slog.Logger) error {
	handed, err := handedOver()
	if err != nil {
		return refused("the sockets of systemd cannot be used", err)
	}
	for _, l := range handed {
		if _, isUnix := l.(*net.UnixListener); isUnix {
			if l, err = api.GuardUnix(l, c.group, log); err != nil {
				return err
			}
		}
		s.listeners = append(s.listeners, l)
	}
	if len(handed) == 0 {
		l, err := api.ListenUnix(api.SocketConfig{Path: c.socket, Group: c.group, Log: log})
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, l)
	}
	if c.network.listen != "" {
		l, err := api.ListenTCP(api.TCPConfig{Address: c.network.listen, CertFile: c.network.tlsCertificate, KeyFile: c.network.tlsKey})
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, l)
	}
	return nil
}

// serve serves until shutdown, and returns nil then.
func (s *server) serve() error {
	var serving errgroup.Group
	for _, l := range s.listeners {
		serving.Go(func() error { return s.api.Serve(l) })
	}
	return serving.Wait()
}

// close is for a server that has not served.
func (s *server) close() error {
	var err error
	for _, l := range s.listeners {
		err = errors.Join(err, l.Close())
	}
	return err
}
