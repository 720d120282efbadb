package nbd

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority makes certificates for tests, and the directory that clients are given.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = a.sign(template, template, key)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func (a *authority) issue(name string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	cert := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// directory is what tls-certificates names.
func (a *authority) directory(client *tls.Certificate) string {
	a.t.Helper()
	dir := a.t.TempDir()
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	write("ca-cert.pem", "CERTIFICATE", a.cert.Raw)
	if client != nil {
		key, err := x509.MarshalPKCS8PrivateKey(client.PrivateKey)
		if err != nil {
			a.t.Fatal(err)
		}
		write("client-cert.pem", "CERTIFICATE", client.Certificate[0])
		write("client-key.pem", "PRIVATE KEY", key)
	}
	return dir
}

func (a *authority) server(clients tls.ClientAuthType) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.issue("server")}, ClientAuth: clients, ClientCAs: a.pool}
}

func (s *served) tlsURI(dir, host string) string {
	q := url.Values{"socket": {s.socket}, "tls-certificates": {dir}, "tls-hostname": {host}}
	return "nbds+unix:///?" + q.Encode()
}

// begin makes the rest go through TLS.
func (p *peer) begin(a *authority) {
	p.t.Helper()
	p.accept(optStartTLS, nil)
	c := tls.Client(p.Conn, &tls.Config{RootCAs: a.pool, ServerName: "server"})
	p.must(c.Handshake())
	p.Conn, p.in = c, bufio.NewReader(c)
}

// fault 75: what came before TLS counts for nothing.
func TestFault75NothingOutlivesSTARTTLS(t *testing.T) {
	a := newAuthority(t)
	d := &mapped{memory: randomMemory(mib), unit: mib, units: []Extent{{}}}
	s := serve(t, Config{Exports: []Export{{Device: d}}, TLS: a.server(tls.NoClientCert)})
	p := greeted(t, s)
	p.accept(optStructuredReply, nil)
	p.accept(optSetMetaContext, contextQuery("", contextAllocation))
	p.begin(a)
	p.refused(optSetMetaContext, contextQuery("", contextAllocation), repErrInvalid) // no structured replies
	p.refused(optStartTLS, nil, repErrInvalid)
	if flags := p.enter(""); flags&flagDF != 0 {
		t.Errorf("structured replies are there, flags %#x", flags)
	}
	p.expect(request{command: cmdBlockStatus, length: 512}, errInval)
	p.expect(request{command: cmdRead, length: 512}, success)
	p.take(512)
	p.request(request{command: cmdDisconnect})
	p.gone()
}

// fault 75: plain text that somebody put behind STARTTLS is never taken for the words of
// the client that is authenticated later.
func TestFault75PlainTextBehindSTARTTLSEndsTheConnection(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, Config{Exports: []Export{{Device: newMemory(mib)}}, TLS: a.server(tls.NoClientCert)})
	p := greeted(t, s)
	p.say(optionMessage(optStartTLS, nil), optionMessage(optAbort, nil))
	p.gone()
}

// fault 75: where TLS is required nothing is told without it.
func TestFault75RequiredTLSIsRequiredForEverything(t *testing.T) {
	a := newAuthority(t)
	s := serve(t, Config{Exports: []Export{{Device: newMemory(mib)}}, TLS: a.server(tls.NoClientCert), RequireTLS: true})
	p := greeted(t, s)
	for _, o := range []option{optList, optInfo, optGo, optStructuredReply, optListMetaContext, optSetMetaContext, 99} {
		p.refused(o, nil, repErrTLSReqd)
	}
	p.refused(optGo, make([]byte, maxOptionBytes+1), repErrTLSReqd)
	p.begin(a)
	p.enter("")
	p.alive()
	q := greeted(t, s)
	q.say(optionMessage(optExportName, nil))
	q.gone()
	q = greeted(t, s)
	q.accept(optAbort, nil)
}

func TestClientUsesTLS(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	ours, theirs := a.issue("client"), stranger.issue("client")
	d := randomMemory(4 * mib)
	s := serve(t, Config{
		Exports: []Export{{Device: d}}, TLS: a.server(tls.RequireAndVerifyClientCert), RequireTLS: true,
	})
	for name, c := range map[string]struct {
		uri string
		ok  bool
	}{
		"with a certificate":       {s.tlsURI(a.directory(&ours), "server"), true},
		"without a certificate":    {s.tlsURI(a.directory(nil), "server"), false},
		"a stranger's certificate": {s.tlsURI(a.directory(&theirs), "server"), false},
		"a stranger's authority":   {s.tlsURI(stranger.directory(&ours), "server"), false},
		"another name":             {s.tlsURI(a.directory(&ours), "other"), false},
		"without TLS":              {s.uri(""), false},
	} {
		t.Run(name, func(t *testing.T) {
			c1, err := Dial(context.Background(), c.uri, Options{})
			if !c.ok {
				if err == nil {
					// With TLS 1.3 the server's refusal comes after the client is done.
					_, err = c1.ReadAt(make([]byte, 1), 0)
					c1.Close()
				}
				if err == nil {
					t.Error("got in")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c1.Close()
			whole := make([]byte, 4*mib)
			if _, err := c1.ReadAt(whole, 0); err != nil || string(whole) != string(d.content(0, 4*mib)) {
				t.Errorf("read: %v", err)
			}
			if _, err := c1.WriteAt(whole[:100*kib], mib+1); err != nil {
				t.Error(err)
			}
			if err := c1.Flush(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestClientInsistsOnTLS(t *testing.T) {
	a := newAuthority(t)
	s := serveDevice(t, newMemory(mib))
	if _, err := Dial(context.Background(), s.tlsURI(a.directory(nil), "server"), Options{}); err == nil {
		t.Error("the client goes on without TLS")
	}
}

// fault 75: the same on the side of the client.
func TestFault75PlainTextOfTheServerBeforeTLSIsNotBelieved(t *testing.T) {
	ours, its := net.Pipe()
	defer its.Close()
	w := &wire{stream: ours, in: bufio.NewReader(ours)}
	go func() {
		greeting := binary.BigEndian.AppendUint64(nil, magicGreeting)
		greeting = binary.BigEndian.AppendUint64(greeting, magicOption)
		put(its, append(greeting, 0, flagFixedNewstyle))
		_, _ = io.CopyN(io.Discard, its, 4+optionHeaderBytes) // flags and STARTTLS
		put(its, append(optionReplies(optStartTLS), optionReplies(optStructuredReply)...))
		its.Close()
	}()
	_, err := w.negotiate(context.Background(), URI{TLS: true}, &tls.Config{ServerName: "server"})
	requireError(t, "negotiate", err, ErrProtocol)
	ours.Close()
}

func optionReplies(o option) []byte { return appendOptionReply(nil, o, repAck) }
