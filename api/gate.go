package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"decant/service"
)

// caller is who made a request.
type caller struct {
	peer  *peer // of a Unix socket, already allowed; nil on the network
	stamp string
}

type callerKey struct{}

// withCaller is the ConnContext of the server.
func withCaller(ctx context.Context, conn net.Conn) context.Context {
	c := caller{stamp: conn.RemoteAddr().String()}
	if p, ok := conn.(*peerConn); ok {
		c = caller{peer: &p.peer, stamp: fmt.Sprintf("uid %d, pid %d", p.peer.uid, p.peer.pid)}
	}
	return context.WithValue(ctx, callerKey{}, c)
}

func callerOf(r *http.Request) caller {
	c, _ := r.Context().Value(callerKey{}).(caller) // the zero value is a stranger on the network
	return c
}

// isAPI says whether a path belongs to the API: everything but the page, which is
// the same for everybody and holds no data.
func isAPI(path string) bool {
	switch path {
	case "/v1", "/healthz", "/metrics", "/openapi.yaml":
		return true
	}
	return strings.HasPrefix(path, "/v1/")
}

// admit lets through what this client may ask for. What it refuses has reached no
// handler and changed nothing.
func (s *Server) admit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setSecurityHeaders(w.Header(), isAPI(r.URL.Path))
		refused := s.checkHost(r)
		if refused == nil && isAPI(r.URL.Path) {
			refused = s.checkAPI(r)
		}
		if refused != nil {
			if refused.Status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="decant"`)
			}
			w.Header().Set("Connection", "close") // so that the body is not waited for
			refused.write(w)
			return
		}
		limitBody(w, r)
		next.ServeHTTP(w, r)
	})
}

// setSecurityHeaders keeps a browser from doing with an answer what it is not for.
func setSecurityHeaders(h http.Header, isAPI bool) {
	h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	if isAPI {
		h.Set("Cache-Control", "no-store")
	}
}

// checkHost wants, on the network, a name that belongs to this service: a page of
// somebody else, whose name was made to resolve to this machine, sends its own.
func (s *Server) checkHost(r *http.Request) *problem {
	if callerOf(r).peer != nil {
		return nil // no browser can open a Unix socket for a page
	}
	name := strings.ToLower(strings.TrimSuffix(hostName(r.Host), "."))
	if slices.Contains(s.hosts, name) || isAddressOf(r, name) {
		return nil
	}
	return newProblem(http.StatusForbidden, service.Refused, fmt.Sprintf("the service is not called %q", clip(name)),
		"address it by the name of this machine, and give that name to hydrated in its list of hosts")
}

// isAddressOf says whether name is the address that the client has connected to: no
// resolving of names has led there.
func isAddressOf(r *http.Request, name string) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return false
	}
	named := net.ParseIP(name)
	return named != nil && named.Equal(local.IP)
}

// hostName is a Host header without its port.
func hostName(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}

func (s *Server) checkAPI(r *http.Request) *problem {
	if refused := checkOrigin(r); refused != nil {
		return refused
	}
	if callerOf(r).peer == nil && !s.token.matches(bearer(r)) {
		return newProblem(http.StatusUnauthorized, service.Refused, "the token is missing or wrong",
			"send the token of the service's token file as: Authorization: Bearer TOKEN")
	}
	if r.Method == http.MethodPost || r.Method == http.MethodPatch {
		return checkContentType(r)
	}
	return nil
}

// bearer is the token that a request shows, if any.
func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// checkOrigin refuses what a page of another site makes a browser send.
func checkOrigin(r *http.Request) *problem {
	foreign := newProblem(http.StatusForbidden, service.Refused, "the request comes from a page of another site", "")
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
	default:
		return foreign
	}
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return nil
	}
	origin, err := url.Parse(origins[0])
	if len(origins) > 1 || err != nil || origin.Host == "" || !strings.EqualFold(origin.Host, r.Host) {
		return foreign
	}
	return nil
}

// checkContentType wants the type that no form of a page can send without the
// browser asking first, with or without a body.
func checkContentType(r *http.Request) *problem {
	kind, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset, given := parameters["charset"]
	if err != nil || kind != "application/json" || given && !strings.EqualFold(charset, "utf-8") {
		return newProblem(http.StatusUnsupportedMediaType, service.Usage, "a request that changes something has the type application/json, also without a body",
			"send the header: Content-Type: application/json")
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return newProblem(http.StatusUnsupportedMediaType, service.Usage, "a body cannot be compressed", "")
	}
	return nil
}

// allowedHosts are the names of the service: those that mean this machine to itself,
// and those that the configuration adds.
func allowedHosts(configured []string) []string {
	hosts := make([]string, 0, 3+len(configured))
	hosts = append(hosts, "localhost", "127.0.0.1", "::1")
	for _, host := range configured {
		hosts = append(hosts, strings.ToLower(strings.TrimSuffix(hostName(host), ".")))
	}
	return hosts
}

// limitBody bounds the bytes of a body and the time in which they have to come. Once
// it is there, or if there is none, the client may wait for the answer as long as it
// likes: a read deadline that stayed would end the request.
func limitBody(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	deadline := time.Time{}
	if r.ContentLength != 0 {
		deadline = time.Now().Add(bodyTimeout)
		limited := http.MaxBytesReader(w, r.Body, mostBodyBytes+1) // huma counts to mostBodyBytes
		r.Body = &timedBody{ReadCloser: limited, arrived: func() { _ = control.SetReadDeadline(time.Time{}) }}
	}
	// Both fail only for a connection that has no deadlines, as in a test.
	_ = control.SetReadDeadline(deadline)
}

// timedBody tells when a body has come.
type timedBody struct {
	io.ReadCloser
	arrived func()
}

// Read implements io.Reader.
func (b *timedBody) Read(data []byte) (int, error) {
	n, err := b.ReadCloser.Read(data)
	if errors.Is(err, io.EOF) {
		b.arrived()
	}
	return n, err
}
