package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificates fills a directory with an authority, and what it has signed for a server
// and for a client, under the names that libnbd and nbdkit look for.
func (s *site) certificates(dir string) {
	s.Helper()
	must := func(err error) {
		s.Helper()
		if err != nil {
			s.Fatal(err)
		}
	}
	must(os.Mkdir(dir, 0o700))
	write := func(name, kind string, der []byte) {
		must(os.WriteFile(filepath.Join(dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
			KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}
	}
	authority := template("authority", 1)
	authority.IsCA = true
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, &authorityKey.PublicKey, authorityKey)
	must(err)
	write("ca-cert", "CERTIFICATE", der)
	for i, who := range []string{"server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		der, err := x509.CreateCertificate(rand.Reader, template(who, int64(i+2)), authority, &key.PublicKey, authorityKey)
		must(err)
		write(who+"-cert", "CERTIFICATE", der)
		der, err = x509.MarshalPKCS8PrivateKey(key)
		must(err)
		write(who+"-key", "PRIVATE KEY", der)
	}
}

func TestNBDSourceOverTLS(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 24*mib, 91, mixed)
	dir, others := s.path("pki"), s.path("others")
	s.certificates(dir)
	s.certificates(others)
	s.nbdkit("--tls=require", "--tls-verify-peer", "--tls-certificates="+dir, "file", s.path("image"))
	uri := func(dir, host string) string {
		return "nbds+unix:///?socket=" + s.socket() + "&tls-hostname=" + host + "&tls-certificates=" + dir
	}
	s.wantMessage(s.wantMoveRefused(s.uri(), s.path("moved")), "TLS")
	s.wantMessage(s.wantMoveRefused(uri(others, "server"), s.path("moved")), "certificate")
	s.wantMessage(s.wantMoveRefused(uri(dir, "another"), s.path("moved")), "certificate")
	r := s.startMove(uri(dir, "server"), s.path("moved"), slowly...)
	r.awaitDiscarded()
	r.kill()
	id := r.result.events[0].ID
	s.want(0, s.run("resume", id))
	wantWhole(t, s.path("moved"), made)
	wantEmptied(t, s.path("image"), made)
}
