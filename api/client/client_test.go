package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"decant/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "0123456789abcdef-secret"

func newClient(t *testing.T, address, token string) *Client {
	t.Helper()
	c, err := New(address, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestClientTellsThatNobodyIsThere(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	for _, path := range []string{filepath.Join(dir, "none"), stale} {
		_, err := newClient(t, path, "").Info(t.Context())
		if !errors.Is(err, ErrNoService) || service.HintOf(err) == "" || service.OutcomeOf(err) != service.Stopped {
			t.Errorf("%s: %v", path, err)
		}
	}
	// One that accepts and says nothing is there, and is not waited for without end.
	deaf, err := net.Listen("unix", filepath.Join(dir, "deaf"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = deaf.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := newClient(t, deaf.Addr().String(), "").Info(ctx); err == nil || errors.Is(err, ErrNoService) {
		t.Errorf("a deaf one: %v", err)
	}
}

func TestClientReadsOnlyWhatIsOurs(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"a page":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"an error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusBadGateway) },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://evil.example/", http.StatusFound)
		},
		"no problem": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ProblemType)
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write([]byte(`{"status": 500, "outcome": "failed", "exit_code": 1}`))
		},
	} {
		server := httptest.NewServer(answer)
		c := newClient(t, server.URL, secret)
		_, err := c.Info(t.Context())
		if service.OutcomeOf(err) != service.Failed || service.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
		server.Close()
	}
}

func TestClientAddresses(t *testing.T) {
	for _, address := range []string{"ftp://x", "http://", "http://h/path", "http://h?x=1", "http://%zz"} {
		if _, err := New(address, secret); service.OutcomeOf(err) != service.Usage {
			t.Errorf("%s: %v", address, err)
		}
	}
	if _, err := New("http://localhost:1", ""); service.OutcomeOf(err) != service.Usage {
		t.Errorf("no token: %v", err)
	}
}

func TestClientLeavesSilentStreams(t *testing.T) {
	left := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(left)
	}))
	defer server.Close()
	r, err := newClient(t, server.URL, secret).Events(t.Context(), "", service.FromNow)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.silence = 10 * time.Millisecond
	r.timer.Reset(r.silence)
	if _, _, err := r.Next(); !errors.Is(err, ErrNoService) || !strings.Contains(err.Error(), errSilent.Error()) {
		t.Errorf("%v", err)
	}
	<-left // the server has noticed
}
