package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTokenFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	for _, test := range []struct {
		text string
		mode os.FileMode
		want string
	}{
		{secret + "\n", 0o600, ""},
		{secret, 0o400, ""},
		{secret + "\r\n", 0o640, ""},
		{secret, 0o644, "others may use it"},
		{secret, 0o602, "others may use it"},
		{secret, 0o620, "others may use it"},
		{"short", 0o600, "from 16 to 4096 characters"},
		{strings.Repeat("x", 5000), 0o600, "from 16 to 4096 characters"},
		{"two words that are long", 0o600, "without spaces"},
		{secret + "\n" + secret, 0o600, "without spaces"},
	} {
		_ = os.Remove(path)
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, test.mode); err != nil {
			t.Fatal(err)
		}
		text, err := ReadTokenFile(path)
		switch {
		case test.want == "" && (err != nil || text != secret):
			t.Errorf("%q with mode %o: %v", test.text, test.mode, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%.30q with mode %o: %v, want %q", test.text, test.mode, err, test.want)
		}
	}
	if _, err := ReadTokenFile(t.TempDir()); err == nil {
		t.Error("a directory was a token")
	}
}
