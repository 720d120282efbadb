package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/service"
)

func clientOf(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
}

func listen(path string) (net.Listener, error) { return ListenUnix(SocketConfig{Path: path}) }

// refusedSocket wants a refusal that leaves what is at the path as it is.
func refusedSocket(t *testing.T, path, want string) {
	t.Helper()
	before, beforeErr := os.Lstat(path)
	l, err := listen(path)
	if err == nil {
		_ = l.Close()
		t.Fatalf("%s was taken", path)
	}
	if service.OutcomeOf(err) != service.Refused || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	after, afterErr := os.Lstat(path)
	if (beforeErr == nil) != (afterErr == nil) || beforeErr == nil && !os.SameFile(before, after) {
		t.Errorf("%s is not what it was", path)
	}
}

// fault 87: a stale socket is replaced; it is removed in the end, and only if it is ours.
func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(privateDir(t), "s")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil { // as a killed process leaves it
		t.Fatal(err)
	}
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// fault 87: what is not a stale socket of ours stays.
func TestForeignThingsAtTheSocketsPathStay(t *testing.T) {
	dir := privateDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	refusedSocket(t, file, "something else than a socket")

	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	refusedSocket(t, link, "something else than a socket")
	if _, err := os.Lstat(filepath.Join(dir, "elsewhere")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the symbolic link was followed")
	}

	live := filepath.Join(dir, "live")
	other, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	refusedSocket(t, live, "another program listens there")

	if os.Geteuid() == 0 {
		foreign := filepath.Join(dir, "foreign")
		l, err := net.Listen("unix", foreign)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		if err := errors.Join(l.Close(), os.Chown(foreign, 65534, -1)); err != nil {
			t.Fatal(err)
		}
		refusedSocket(t, foreign, "it belongs to user 65534")
	}
	refusedSocket(t, filepath.Join(dir, strings.Repeat("x", 120)), "at most 107 bytes")
	refusedSocket(t, "relative", "absolute path")
}

// fault 87: a second service on the path is refused, and the first keeps its socket.
func TestTwoServicesCannotHaveOneSocket(t *testing.T) {
	path := filepath.Join(privateDir(t), "s")
	first, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	refusedSocket(t, path, "another service has it")
	// Even if somebody took the socket away under it, the lock holds.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	refusedSocket(t, path, "another service has it")
	// A socket that is another one by now is not removed.
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of another was removed: %v", err)
	}
}

// fault 87: a directory in which others can put files is no place for the socket.
func TestSocketWantsAPrivateDirectory(t *testing.T) {
	dir := privateDir(t)
	for mode, isGood := range map[os.FileMode]bool{0o777: false, 0o775: false, 0o757: false, 0o755: true, 0o750: true, 0o700: true} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		l, err := listen(filepath.Join(dir, "s"))
		if (err == nil) != isGood {
			t.Errorf("mode %o: %v", mode, err)
		}
		if err == nil {
			_ = l.Close()
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(privateDir(t), link); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(filepath.Join(link, "s")); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("a symbolic link as its directory: %v", err)
	}
	made := filepath.Join(dir, "made")
	l, err := listen(filepath.Join(made, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if stat, err := os.Stat(made); err != nil || stat.Mode().Perm() != 0o700 {
		t.Errorf("the directory it made: %v, %v", stat, err)
	}
}

// fault 87: the umask decides nothing about who may connect.
func TestUmaskDoesNotMatter(t *testing.T) {
	for _, mask := range []int{0, 0o077} {
		old := unix.Umask(mask)
		path := filepath.Join(privateDir(t), "made", "s")
		l, err := ListenUnix(SocketConfig{Path: path, Group: "0"})
		unix.Umask(old)
		if os.Geteuid() != 0 && err != nil {
			t.Skip("needs root, to give the socket to a group")
		}
		if err != nil {
			t.Fatal(err)
		}
		if stat, err := os.Stat(path); err != nil || stat.Mode().Perm() != 0o660 {
			t.Errorf("umask %o: %v, %v", mask, stat, err)
		}
		if stat, err := os.Stat(filepath.Dir(path)); err != nil || stat.Mode().Perm() != 0o750 {
			t.Errorf("umask %o: its directory: %v, %v", mask, stat, err)
		}
		_ = l.Close()
	}
}

func TestUnixSocketsAreServedWithTheirGuardOnly(t *testing.T) {
	s, _ := newServer(t, fakeConfig(newFake()))
	l, err := net.Listen("unix", filepath.Join(privateDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := s.Serve(l); err == nil {
		t.Error("a socket without a guard was served")
	}
	if _, err := GuardUnix(l, "", nil); err != nil {
		t.Errorf("a socket of systemd would be refused: %v", err)
	}
	if _, err := ListenUnix(SocketConfig{Path: "/nowhere/s", Group: "no-such-group-here"}); err == nil || service.HintOf(err) == "" {
		t.Errorf("an unknown group: %v", err)
	}
}

// certificate makes a certificate for the loopback and its key.
func certificate(t *testing.T) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "decant"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	err = errors.Join(os.WriteFile(certFile, certPEM, 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, pool
}

func TestTLS(t *testing.T) {
	certFile, keyFile, pool := certificate(t)
	v := serveTCP(t, newFake(), TCPConfig{Address: "127.0.0.1:0", CertFile: certFile, KeyFile: keyFile})
	v.base = strings.Replace(v.base, "http:", "https:", 1)
	v.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	if r := v.do("GET", "/v1/info", ""); r.status != 200 {
		t.Errorf("status %d: %s", r.status, r.body)
	}
	for _, c := range []TCPConfig{
		{Address: "127.0.0.1:0", CertFile: certFile},
		{Address: "127.0.0.1:0", CertFile: keyFile, KeyFile: keyFile},
		{Address: "127.0.0.1"},
	} {
		if l, err := ListenTCP(c); err == nil {
			_ = l.Close()
			t.Errorf("%+v was taken", c)
		}
	}
}
