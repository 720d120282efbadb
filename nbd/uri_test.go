package nbd

import (
	"errors"
	"strings"
	"testing"
)

func TestURIs(t *testing.T) {
	for s, want := range map[string]URI{
		"nbd://example.com":                       {Network: "tcp", Address: "example.com:10809"},
		"nbd://example.com/":                      {Network: "tcp", Address: "example.com:10809"},
		"nbd://example.com:10810/disk":            {Network: "tcp", Address: "example.com:10810", Export: "disk"},
		"nbd://example.com//disk":                 {Network: "tcp", Address: "example.com:10809", Export: "/disk"},
		"nbd://example.com/hello%20world":         {Network: "tcp", Address: "example.com:10809", Export: "hello world"},
		"nbd://[::1]:77/a/b":                      {Network: "tcp", Address: "[::1]:77", Export: "a/b"},
		"nbds://h/x":                              {Network: "tcp", Address: "h:10809", Export: "x", TLS: true},
		"nbds://h/x?tls-hostname=other":           {Network: "tcp", Address: "h:10809", Export: "x", TLS: true, TLSHostname: "other"},
		"nbd+unix:///?socket=/run/s":              {Network: "unix", Address: "/run/s"},
		"nbd+unix:///disk?socket=nbd.sock":        {Network: "unix", Address: "nbd.sock", Export: "disk"},
		"nbd+unix:///%E2%82%AC?socket=/a%20b":     {Network: "unix", Address: "/a b", Export: "€"},
		"nbds+unix:///?socket=s&tls-hostname=h":   {Network: "unix", Address: "s", TLS: true, TLSHostname: "h"},
		"nbds://h?tls-certificates=/etc/pki/x":    {Network: "tcp", Address: "h:10809", TLS: true, TLSCertificates: "/etc/pki/x"},
		"nbd+unix:///../../etc/passwd?socket=/s/": {Network: "unix", Address: "/s/", Export: "../../etc/passwd"},
	} {
		got, err := ParseURI(s)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", "/dev/sda", "http://h/x", "nbd:h:10809", "nbd://", "nbd:///x", "nbd://:10809/x", "nbd://h:0/x", "nbd://h:65536/x",
		"nbd://h:x/x", "nbd://user@h/x", "nbd://h/x#y", "nbd://h/x#", "nbd://h/x?unknown=1", "nbd://h/x?socket=/s",
		"nbd://h/x?tls-hostname=y", "nbds://h/x?tls-hostname=a&tls-hostname=b", "nbds://h/x?tls-verify-peer=0",
		"nbd+unix:///x", "nbd+unix:///x?socket=", "nbd+unix://h/x?socket=/s", "nbd+unix:///?socket=%00abstract",
		"nbd+unix:///%00?socket=/s", "nbd+unix:///a%0ab?socket=/s", "nbd+unix:///%ff?socket=/s", "nbd://h/%zz",
		"nbd+unix:///?socket=/s;x", "nbd+unix:///?socket=" + strings.Repeat("x", 108), "nbd://h/" + strings.Repeat("x", 4097),
		"nbd+unix+unix:///?socket=/s",
	} {
		if got, err := ParseURI(s); !errors.Is(err, ErrURI) {
			t.Errorf("%q is %+v, %v", s, got, err)
		}
	}
}

func FuzzURI(f *testing.F) {
	for _, s := range []string{
		"nbd://h:1/x", "nbds://[::1]/", "nbd+unix:///a%2fb?socket=/s", "nbds+unix:///x?socket=/s&tls-hostname=h", "nbd://h//a?",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s)
		if err != nil {
			return
		}
		again, err := ParseURI(u.String())
		if err != nil || again != u {
			t.Fatalf("%q is %+v, and as %q %+v, %v", s, u, u.String(), again, err)
		}
		if !validName(u.Export) || u.Address == "" || strings.Contains(u.Address, "\x00") {
			t.Fatalf("%q is %+v", s, u)
		}
	})
}
