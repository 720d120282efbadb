package persistent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestParseIOCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stat")
	must(t, os.WriteFile(path, []byte("     100        2      300        4       50       6      700        8        0        9       10\n"), 0o600))
	if got, err := parseIOCounts(path); err != nil || got != (IOCounts{300, 50, 700}) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, stat := range []string{"", "1 2 3 4 5 6\n", "a b c d e f g"} {
		must(t, os.WriteFile(path, []byte(stat), 0o600))
		if _, err := parseIOCounts(path); !errors.Is(err, ErrNotCounted) {
			t.Errorf("%q: %v", stat, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
