package api

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const secret = "0123456789abcdef-secret"

func serveTCP(t *testing.T, f *fakeManager, c TCPConfig) *served {
	t.Helper()
	token, err := NewToken(secret)
	if err != nil {
		t.Fatal(err)
	}
	config := fakeConfig(f)
	config.Token, config.Hosts = token, []string{"Storage.example:9640"}
	s, log := newServer(t, config)
	listener, err := ListenTCP(c)
	if err != nil {
		t.Fatal(err)
	}
	v := &served{Server: s, t: t, log: log, client: &http.Client{Transport: &http.Transport{}}, base: "http://" + listener.Addr().String()}
	v.header = http.Header{"Authorization": {"Bearer " + secret}}
	v.run(listener)
	return v
}

func TestTheNetworkNeedsTheToken(t *testing.T) {
	f := newFake()
	v := serveTCP(t, f, TCPConfig{Address: "127.0.0.1:0"})
	for _, right := range []string{"Bearer " + secret, "bearer  " + secret} {
		v.header.Set("Authorization", right)
		if r := v.do("POST", "/v1/migrations/aa11/pause", ""); r.status != 200 {
			t.Errorf("%q: status %d %s", right, r.status, r.body)
		}
	}
	f.calls = nil
	for _, wrong := range []string{"", "Bearer", "Bearer ", "Bearer x" + secret, "Bearer " + secret[:8], "Basic " + secret, secret, "Bearer " + strings.ToUpper(secret)} {
		v.header.Set("Authorization", wrong)
		for _, path := range []string{"/v1/migrations", "/metrics", "/healthz", "/openapi.yaml", "/v1/events"} {
			if r := v.do("GET", path, ""); r.status != 401 || r.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s with %q: status %d", path, wrong, r.status)
			}
		}
		if r := v.do("POST", "/v1/migrations/aa11/pause", ""); r.problem(t).Hint == "" {
			t.Error("no hint")
		}
	}
	if calls := f.noted(); len(calls) > 0 {
		t.Errorf("without the token the service did %q", calls)
	}
	if log := v.log.String(); strings.Contains(log, secret[:8]) || !strings.Contains(log, "status=401") {
		t.Errorf("the log holds the token, or not the refusals: %s", log)
	}
}

func TestTheNetworkIsNotServedWithoutAToken(t *testing.T) {
	s, _ := newServer(t, fakeConfig(newFake()))
	l, err := ListenTCP(TCPConfig{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := s.Serve(l); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("served: %v", err)
	}
}

func TestTheServiceMayBeCalledByItsAddress(t *testing.T) {
	f := newFake()
	v := serveTCP(t, f, TCPConfig{Address: "127.0.0.9:0"})
	if r := v.do("GET", "/healthz", ""); r.status != 200 {
		t.Errorf("by its address: %d", r.status)
	}
	v.header.Set("Host", "127.0.0.8")
	if r := v.do("GET", "/healthz", ""); r.status != 403 {
		t.Errorf("by another address: %d", r.status)
	}
}

// fault 88: a page of another site makes a browser send requests (CSRF), or has its
// own name resolve to this machine (DNS rebinding).
func TestBrowsersCannotBeMadeToSteer(t *testing.T) {
	f := newFake()
	v := serveTCP(t, f, TCPConfig{Address: "127.0.0.1:0"})
	host := strings.TrimPrefix(v.base, "http://")
	json := http.Header{"Authorization": {"Bearer " + secret}, "Content-Type": {"application/json"}}
	with := func(name string, values ...string) http.Header {
		h := json.Clone()
		h[name] = values
		return h
	}
	for name, test := range map[string]struct {
		header http.Header
		status int
	}{
		"its own page":                {with("Origin", "http://"+host), 200},
		"same origin":                 {with("Sec-Fetch-Site", "same-origin"), 200},
		"a configured name":           {with("Host", "storage.EXAMPLE:99"), 200},
		"localhost":                   {with("Host", "localhost:9640"), 200},
		"a name with its final dot":   {with("Host", "localhost.:9640"), 200},
		"IPv6 loopback":               {with("Host", "[::1]:9640"), 200},
		"rebound name":                {with("Host", "evil.example"), 403},
		"rebound name, loopback-like": {with("Host", "127.0.0.1.evil.example"), 403},
		"another address":             {with("Host", "192.0.2.1"), 403},
		"another origin":              {with("Origin", "http://evil.example"), 403},
		"another port":                {with("Origin", "http://127.0.0.1:1"), 403},
		"no origin":                   {with("Origin", "null"), 403},
		"two origins":                 {with("Origin", "http://"+host, "http://evil.example"), 403},
		"cross site":                  {with("Sec-Fetch-Site", "cross-site"), 403},
		"another service here":        {with("Sec-Fetch-Site", "same-site"), 403},
		"a form":                      {with("Content-Type", "application/x-www-form-urlencoded"), 415},
		"a form with files":           {with("Content-Type", "multipart/form-data; boundary=x"), 415},
		"plain text":                  {with("Content-Type", "text/plain"), 415},
		"no type":                     {with("Content-Type"), 415},
		"another charset":             {with("Content-Type", "application/json; charset=utf-16"), 415},
		"compressed":                  {with("Content-Encoding", "gzip"), 415},
	} {
		t.Run(name, func(t *testing.T) {
			f.calls = nil
			r := v.send("POST", "/v1/migrations/aa11/pause", strings.NewReader(""), test.header)
			if r.status != test.status {
				t.Errorf("status %d %s, want %d", r.status, r.body, test.status)
			}
			if calls := f.noted(); (len(calls) > 0) != (test.status == 200) {
				t.Errorf("calls %q", calls)
			}
			if !strings.Contains(v.log.String(), fmt.Sprintf("status=%d", test.status)) {
				t.Error("it was not logged")
			}
		})
	}
	// Nothing that changes anything listens to GET.
	if r := v.do("GET", "/v1/migrations/aa11/pause", ""); r.status != 405 {
		t.Errorf("GET pause: %d", r.status)
	}
	// And nothing invites other sites: no answer carries a CORS header.
	r := v.send("OPTIONS", "/v1/migrations", strings.NewReader(""), with("Origin", "http://evil.example"))
	for name := range r.header {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("the answer has %s", name)
		}
	}
}

func TestThePageNeedsNoTokenAndTheAPIDoes(t *testing.T) {
	f := newFake()
	token, err := NewToken(secret)
	if err != nil {
		t.Fatal(err)
	}
	c := fakeConfig(f)
	c.Token = token
	c.Page = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("the page")) })
	s, log := newServer(t, c)
	l, err := ListenTCP(TCPConfig{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	v := &served{Server: s, t: t, log: log, client: &http.Client{Transport: &http.Transport{}}, base: "http://" + l.Addr().String(), header: http.Header{}}
	v.run(l)
	if r := v.do("GET", "/", ""); r.status != 200 || r.body != "the page" {
		t.Errorf("the page: %d %s", r.status, r.body)
	}
	for _, path := range []string{"/v1", "/v1/", "/v1/migrations", "/v1/x", "/metrics"} {
		if r := v.do("GET", path, ""); r.status != 401 {
			t.Errorf("%s: %d", path, r.status)
		}
	}
	v.header.Set("Host", "evil.example")
	if r := v.do("GET", "/", ""); r.status != 403 {
		t.Errorf("the page under another name: %d", r.status)
	}
}

func TestTokensShowOnlyThatTheyMatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	token, err := LoadToken(path)
	if err != nil || !token.matches(secret) || token.matches(secret+"x") {
		t.Errorf("the token of a file does not match: %v", err)
	}
	if _, err := NewToken("short"); err == nil {
		t.Error("a short text was a token")
	}
	if text := fmt.Sprintf("%v %+v %#v %s", token, token, token, token); strings.Contains(text, "0123") {
		t.Errorf("a token shows itself: %s", text)
	}
	if (Token{}).matches("") {
		t.Error("no token matches the empty one")
	}
}
