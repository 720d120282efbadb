package thin

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestValidateName(t *testing.T) {
	for _, name := range []string{"a", "A-b_c.9", "_", "0", "a.", "a-", strings.Repeat("x", 100)} {
		if err := ValidateName(name); err != nil {
			t.Errorf("ValidateName(%q) = %v", name, err)
		}
	}
	// fault 52, fault 85, fault 89 and fault 90: names that would lead elsewhere.
	for _, name := range []string{
		"", ".", "..", ".a", "-a", "a/b", "/", "../a", "a\x00b", "a\nb", "a b", "\x1b[31m", "ä", "a\xff", "%00", strings.Repeat("x", 101),
	} {
		if err := ValidateName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("ValidateName(%q) = %v, want ErrInvalid", name, err)
		}
	}
}

func TestSplitVolume(t *testing.T) {
	if pool, volume, err := SplitVolume("p/v"); pool != "p" || volume != "v" || err != nil {
		t.Errorf("got %q, %q, %v", pool, volume, err)
	}
	for _, s := range []string{"", "p", "p/", "/v", "p/v/w", "p/../v", "./p", "p/.v"} {
		if pool, volume, err := SplitVolume(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("SplitVolume(%q) = %q, %q, %v, want ErrInvalid", s, pool, volume, err)
		}
	}
}

// fault 90: whatever passes is one element of a path, and printable.
func FuzzValidateName(f *testing.F) {
	for _, seed := range []string{"a", "..", "a/b", "-x", "a\x00", "ä", "catalog.db"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		err := ValidateName(name)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("ValidateName(%q) = %v, want ErrInvalid", name, err)
			}
			if strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Fatalf("the message for %q has control characters", name)
			}
			return
		}
		path := filepath.Join("/pool", name+volumeSuffix)
		if filepath.Dir(path) != "/pool" || filepath.Base(path) != name+volumeSuffix || len(name) > MaxNameBytes {
			t.Fatalf("ValidateName(%q) accepted what leads to %q", name, path)
		}
	})
}
