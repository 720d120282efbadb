package nbd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// defaultPort is the port of NBD.
const defaultPort = "10809"

// URI says where an export is. It is valid if ParseURI made it.
type URI struct {
	// Network is "tcp" or "unix".
	Network string
	// Address is HOST:PORT, or the path of the socket.
	Address string
	// Export is the name of the export; the empty one is the default export.
	Export string
	// TLS says that there has to be TLS (nbds, nbds+unix).
	TLS bool
	// TLSHostname is the name that the server's certificate has to have; empty for
	// the host in Address.
	TLSHostname string
	// TLSCertificates is a directory with ca-cert.pem and, for a server that asks for
	// it, client-cert.pem and client-key.pem; empty for the authorities of the system.
	TLSCertificates string
}

// ErrURI says that a string is no NBD URI that can be used.
var ErrURI = errors.New("not an NBD URI")

// ParseURI reads nbd://HOST[:PORT][/EXPORT] and nbd+unix:///[EXPORT]?socket=PATH, with
// nbds in place of nbd for TLS and the parameters tls-hostname and tls-certificates.
// What it does not understand is an error, which is ErrURI.
func ParseURI(s string) (URI, error) {
	refuse := func(format string, args ...any) (URI, error) {
		return URI{}, fmt.Errorf("%w: %q: %s", ErrURI, s, fmt.Sprintf(format, args...))
	}
	u, err := url.Parse(s)
	if err != nil {
		return refuse("%v", errors.Unwrap(err))
	}
	var out URI
	scheme, unixSocket := strings.CutSuffix(u.Scheme, "+unix")
	switch scheme {
	case "nbd":
	case "nbds":
		out.TLS = true
	default:
		return refuse("it has to begin with nbd://, nbds://, nbd+unix:// or nbds+unix://")
	}
	if u.Opaque != "" || u.User != nil || u.Fragment != "" || strings.HasSuffix(s, "#") {
		return refuse("only a host, an export and parameters can be given")
	}
	out.Export = strings.TrimPrefix(u.Path, "/")
	if !validName(out.Export) {
		return refuse("an export's name is UTF-8 of at most %d bytes without control characters", maxNameBytes)
	}
	socket, err := out.setParameters(u.RawQuery)
	if err != nil {
		return refuse("%v", err)
	}
	if unixSocket {
		if u.Host != "" {
			return refuse("a Unix socket has no host; write %s:///EXPORT?socket=PATH", u.Scheme)
		}
		if socket == "" || len(socket) > maxSocketPathBytes {
			return refuse("the parameter socket=PATH has to be there, with at most %d bytes", maxSocketPathBytes)
		}
		out.Network, out.Address = "unix", socket
		return out, nil
	}
	if socket != "" {
		return refuse("socket=PATH needs %s+unix://", u.Scheme)
	}
	if out.Address, err = hostPort(u); err != nil {
		return refuse("%v", err)
	}
	out.Network = "tcp"
	return out, nil
}

// setParameters reads the part behind the question mark.
func (u *URI) setParameters(query string) (socket string, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", err
	}
	for key, all := range values {
		value := all[0]
		if len(all) > 1 || value == "" || !validName(value) {
			return "", fmt.Errorf("parameter %q has to have one value, without control characters", key)
		}
		switch {
		case key == "socket":
			socket = value
		case key == "tls-hostname" && u.TLS:
			u.TLSHostname = value
		case key == "tls-certificates" && u.TLS:
			u.TLSCertificates = value
		case strings.HasPrefix(key, "tls-") && !u.TLS:
			return "", fmt.Errorf("parameter %q needs nbds", key)
		default:
			return "", fmt.Errorf("unknown parameter %q", key)
		}
	}
	return socket, nil
}

func hostPort(u *url.URL) (string, error) {
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = defaultPort
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("port %q is none", port)
	}
	if host == "" || !validName(host) || strings.ContainsAny(host, "[]/ ") {
		return "", errors.New("there is no host in it")
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// String is the URI in the one form that names the same export each time.
func (u URI) String() string {
	out := url.URL{Scheme: "nbd", Path: "/" + u.Export}
	if u.TLS {
		out.Scheme = "nbds"
	}
	query := url.Values{}
	add := func(key, value string) {
		if value != "" {
			query.Set(key, value)
		}
	}
	if u.Network == "unix" {
		out.Scheme += "+unix"
		add("socket", u.Address)
	} else {
		out.Host = u.Address
	}
	add("tls-hostname", u.TLSHostname)
	add("tls-certificates", u.TLSCertificates)
	// A slash may stand in a query as it is, and people read it better.
	out.RawQuery = strings.ReplaceAll(query.Encode(), "%2F", "/")
	return out.String()
}
