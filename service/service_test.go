package service

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestResolveID(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if ids, err := s.ids(); len(ids) != 0 || err != nil {
		t.Errorf("before there is a state directory: %v, %v", ids, err)
	}
	s.must(s.makeStateDir())
	for _, name := range []string{"aabb.db", "aacc.db", "aa.db", "ddee.db", "ff.lock", "ddee.db-wal", "dd"} {
		s.must(os.WriteFile(filepath.Join(s.stateDir, name), nil, 0o600))
	}
	s.must(os.Mkdir(filepath.Join(s.stateDir, "dir.db"), 0o700))
	for given, want := range map[string]string{
		"aabb": "aabb", "aab": "aabb", "aa": "aa", "d": "ddee", "ddee": "ddee",
		"a": "", "": "", "x": "", "aabbc": "", "ff": "", "dir": "", "../ddee": "",
	} {
		got, err := s.resolveID(given)
		if got != want || want == "" && OutcomeOf(err) != Refused {
			t.Errorf("%q means %q (%v), want %q", given, got, err, want)
		}
	}
	if _, err := s.resolveID("a"); !strings.Contains(err.Error(), "aabb") || !strings.Contains(err.Error(), "aacc") {
		t.Errorf("the choice is not told: %v", err)
	}
}

func TestReplaceDurably(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.must(os.Mkdir(s.path("marks"), 0o700))
	for _, text := range []string{"first", "second, and longer", ""} {
		s.must(replaceDurably(s.path("marks/one"), []byte(text)))
		s.wantContent("marks/one", []byte(text))
	}
	entries, err := os.ReadDir(s.path("marks"))
	if len(entries) != 1 || err != nil {
		t.Errorf("%v, %v: something is left behind", entries, err)
	}
	if st, err := os.Stat(s.path("marks/one")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := replaceDurably(s.path("nowhere/one"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	s.must(os.Mkdir(s.path("marks/two"), 0o700))
	if err := replaceDurably(s.path("marks/two"), []byte("x")); err == nil {
		t.Error("a directory was replaced")
	}
	if entries, err := os.ReadDir(s.path("marks")); len(entries) != 2 || err != nil {
		t.Errorf("%v, %v: a failure left something behind", entries, err)
	}
}

func TestStateDirectory(t *testing.T) {
	s := newSite(t)
	s.image("image", mib)
	s.must(os.Mkdir(s.path("memory"), 0o700))
	s.command("mount", "-t", "tmpfs", "tmpfs", s.path("memory"))
	t.Cleanup(func() { s.command("umount", s.path("memory")) })
	for name, dir := range map[string]string{
		"fault 59: in memory":                  s.path("memory"),
		"fault 59: below memory":               s.path("memory/a/b"),
		"below something that is no directory": s.path("image/state"),
	} {
		other, err := New(dir)
		s.must(err)
		s.wantRefused("journals cannot be kept there", func() error {
			return other.Migrate(context.Background(), s.request("image", "moved", moving()), nil)
		})
		if _, err := os.Lstat(s.path("memory/a")); err == nil {
			t.Errorf("%s: it was made", name)
		}
	}
	list, err := s.List()
	if len(list) != 0 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
}

func TestDefaultStateDirectory(t *testing.T) {
	s, err := New("")
	if err != nil || s.stateDir != "/var/lib/decant" {
		t.Errorf("%q, %v", s.stateDir, err)
	}
	t.Chdir("/usr")
	s, err = New("share")
	if err != nil || s.stateDir != "/usr/share" {
		t.Errorf("%q, %v", s.stateDir, err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	cause := unix.EIO
	err := error(&Error{Outcome: Stopped, Object: "o", Problem: "p", State: "s", Hint: "h", Err: cause})
	if err.Error() != "o: p: input/output error; s" || !errors.Is(err, unix.EIO) || HintOf(err) != "h" {
		t.Errorf("%v", err)
	}
	for want, err := range map[Outcome]error{Success: nil, Failed: cause, Stopped: errors.Join(err, cause), Refused: refuse("o", "p", "", nil)} {
		if got := OutcomeOf(err); got != want {
			t.Errorf("%v is %d, want %d", err, got, want)
		}
	}
	if HintOf(cause) != "" {
		t.Error("a hint out of nothing")
	}
}

// fault 90: names that lead nowhere, or look like something else.
func TestFault90Names(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", mib)
	s.pool("tank", 8*mib)
	for name, c := range map[string]struct {
		from, to string
		want     Outcome
	}{
		"empty source":            {"", s.path("moved"), Usage},
		"empty destination":       {s.path("image"), "", Usage},
		"NUL":                     {s.path("image"), s.path("mov\x00ed"), Usage},
		"too long":                {s.path("image"), "/" + strings.Repeat("a", 4096), Usage},
		"neither path nor volume": {s.path("image"), "moved", Usage},
		"no such pool":            {s.path("image"), "lake/moved", Refused},
		"volume name":             {s.path("image"), "tank/../moved", Usage},
		"no such source":          {s.path("nothing"), s.path("moved"), Refused},
		"no such volume":          {"tank/nothing", s.path("moved"), Refused},
		"a directory":             {s.dir, s.path("moved"), Refused},
		"a character device":      {"/dev/null", s.path("moved"), Refused},
		"no such directory":       {s.path("image"), s.path("nowhere/moved"), Refused},
		"below a file":            {s.path("image"), s.path("image/moved"), Refused},
		"destination directory":   {s.path("image"), s.dir, Refused},
	} {
		before := s.snapshot()
		err := s.Migrate(context.Background(), Request{Source: c.from, Destination: c.to, Options: moving()}, nil)
		if OutcomeOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if s.snapshot() != before {
			t.Errorf("%s: something has changed", name)
		}
	}
}

func TestNameOfBothAFileAndAVolume(t *testing.T) {
	s := newSite(t)
	s.pool("tank", 8*mib)
	t.Chdir(s.dir)
	s.must(os.Mkdir("tank", 0o755))
	content := s.image("tank/disk", mib)
	err := s.Migrate(context.Background(), Request{Source: "tank/disk", Destination: "./moved", Options: moving()}, nil)
	if OutcomeOf(err) != Usage || !strings.Contains(err.Error(), "both a file and a volume") {
		t.Errorf("%v", err)
	}
	s.must(s.Migrate(context.Background(), Request{Source: "./tank/disk", Destination: "./moved", Options: moving()}, nil))
	s.wantContent("moved", content)
}
