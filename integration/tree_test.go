package integration

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tree describes every file under some directories: contents, mode, owner, links,
// size, modification time and extended attributes.
type tree map[string]string

func treeOf(t testing.TB, dirs ...string) tree {
	t.Helper()
	all := tree{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			switch filepath.Ext(path) {
			case ".db-wal", ".db-shm":
				return nil // a part of the journal, and its index
			case ".db":
				all[path] = describeJournal(t, path)
				return nil
			case ".lock":
				all[path] = "a lock" // its content is the last process that had it
				return nil
			}
			all[path], err = describe(path)
			return err
		})
		if err != nil && exists(dir) {
			t.Fatal(err)
		}
	}
	return all
}

// describeJournal is what a journal says, in its file and its log; looking at it can
// move records from one to the other. What cannot be read is described byte by byte.
func describeJournal(t testing.TB, path string) string {
	t.Helper()
	dir := t.TempDir()
	var raw string
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(path + suffix)
		if len(data) > 0 {
			err = os.WriteFile(filepath.Join(dir, "copy"+suffix), data, 0o600)
			raw += fmt.Sprintf("%d bytes %x ", len(data), sha256.Sum256(data))
		}
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("sqlite3", filepath.Join(dir, "copy"), "PRAGMA user_version; PRAGMA integrity_check", ".dump").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "COMMIT;") {
		return "no journal: " + raw
	}
	return fmt.Sprintf("journal %x", sha256.Sum256(out))
}

func describe(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	text := fmt.Sprintf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return text, nil // a directory's times change with probe files that come and go
	}
	text += fmt.Sprintf(", inode %d, %d links, %d bytes, %d blocks, modified %d.%09d", st.Ino, st.Nlink, st.Size, st.Blocks, st.Mtim.Sec, st.Mtim.Nsec)
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return "", err
	}
	for name := range strings.SplitSeq(string(names[:max(0, n)]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", err
		}
		text += fmt.Sprintf(", %s=%s", name, value[:n])
	}
	data, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer data.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, data); err != nil {
		return "", err
	}
	return text + fmt.Sprintf(", SHA-256 %x", sum.Sum(nil)), nil
}

// difference lists what changed, or is empty.
func (before tree) difference(after tree) string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(before)) {
		if got, found := after[path]; !found {
			fmt.Fprintf(&b, "%s is gone\n", path)
		} else if got != before[path] {
			fmt.Fprintf(&b, "%s\n  was %s\n  is  %s\n", path, before[path], got)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(after)) {
		if _, found := before[path]; !found {
			fmt.Fprintf(&b, "%s is new: %s\n", path, after[path])
		}
	}
	return b.String()
}

// wantRefused fails the test unless the command ends with code 4, says why and
// what to do, and has changed nothing in the directories of the test.
func (s *site) wantRefused(args ...string) outcome {
	s.Helper()
	before := treeOf(s, s.dir, s.state)
	o := s.want(4, s.run(args...))
	if diff := before.difference(treeOf(s, s.dir, s.state)); diff != "" {
		s.Errorf("a refusal changed something:\n%s%v", diff, o)
	}
	if !strings.HasPrefix(o.stderr, "migrate: ") || strings.TrimSpace(o.stderr) == "migrate:" {
		s.Errorf("a refusal without a reason: %v", o)
	}
	return o
}

// wantMoveRefused is wantRefused for a migration.
func (s *site) wantMoveRefused(source, destination string, flags ...string) outcome {
	s.Helper()
	return s.wantRefused(moveArguments(source, destination, flags)...)
}

// wantMessage fails the test unless the message has all of the words.
func (s *site) wantMessage(o outcome, words ...string) {
	s.Helper()
	for _, word := range words {
		if !strings.Contains(o.stderr, word) {
			s.Errorf("the message does not say %q: %v", word, o)
		}
	}
}

func TestTreeDifferenceFindsEveryChange(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	before := treeOf(t, dir)
	if diff := before.difference(treeOf(t, dir)); diff != "" {
		t.Fatalf("nothing changed: %s", diff)
	}
	changes := map[string]func() error{
		"contents":  func() error { return os.WriteFile(path, bytes.Repeat([]byte("y"), 5000), 0o600) },
		"mode":      func() error { return os.Chmod(path, 0o644) },
		"attribute": func() error { return unix.Setxattr(path, "user.test", []byte("v"), 0) },
		"link":      func() error { return os.Link(path, path+"2") },
		"size":      func() error { return os.Truncate(path, 4999) },
		"removal":   func() error { return os.Remove(path) },
	}
	for _, name := range []string{"contents", "mode", "attribute", "link", "size", "removal"} {
		before = treeOf(t, dir)
		if err := changes[name](); err != nil {
			t.Fatal(err)
		}
		if before.difference(treeOf(t, dir)) == "" {
			t.Errorf("a change of %s was not seen", name)
		}
	}
}
