package faultfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/integration/faultfs"
)

// TestMain carries out a script of file operations when a test starts this binary
// again: a process should not work on its own mount.
func TestMain(m *testing.M) {
	if script := os.Getenv("FAULTFS_SCRIPT"); script != "" {
		if err := runScript(os.Getenv("FAULTFS_DIR"), script); err != nil {
			fmt.Fprint(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runScript runs lines such as "write a 0 hello". An operation followed by ! and an
// error must fail so.
func runScript(dir, script string) error {
	s := &scripted{dir: dir, open: map[string]*os.File{}}
	for line := range strings.SplitSeq(script, ";") {
		line, want, _ := strings.Cut(line, "!")
		words := strings.Fields(line)
		err := s.run(words)
		switch want = strings.TrimSpace(want); {
		case want == "" && err != nil:
			return errors.New(line + ": " + err.Error())
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			return errors.New(line + ": want " + want + ", got " + errorText(err))
		}
	}
	return nil
}

func errorText(err error) string {
	if err == nil {
		return "success"
	}
	return err.Error()
}

type scripted struct {
	dir  string
	open map[string]*os.File
}

func (s *scripted) file(name string) (*os.File, error) {
	if f := s.open[name]; f != nil {
		return f, nil
	}
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	s.open[name] = f
	return f, err
}

func (s *scripted) run(words []string) error {
	f, err := s.file(words[1])
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, words[1])
	switch words[0] {
	case "open":
		return nil
	case "write":
		_, err = f.WriteAt([]byte(words[3]), number(words[2]))
	case "fill":
		_, err = f.WriteAt(bytes.Repeat([]byte(words[3]), 4096), number(words[2]))
	case "read":
		b := make([]byte, len(words[3]))
		if _, err = f.ReadAt(b, number(words[2])); err == nil && string(b) != words[3] {
			err = errors.New("read " + string(b))
		}
	case "sync":
		err = f.Sync()
	case "syncdir":
		var d *os.File
		if d, err = os.Open(s.dir); err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
	case "truncate":
		err = f.Truncate(number(words[2]))
	case "punch":
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, number(words[2]), 4096)
	case "data":
		_, err = unix.Seek(int(f.Fd()), number(words[2]), unix.SEEK_DATA)
	case "rename":
		delete(s.open, words[1])
		err = os.Rename(path, filepath.Join(s.dir, words[2]))
	case "remove":
		delete(s.open, words[1])
		err = os.Remove(path)
	case "nameless": // what can be done with a file that was removed and is open
		if err = os.Remove(path); err == nil {
			_, err = f.WriteAt([]byte("x"), 5)
		}
		if err == nil {
			err = errors.Join(f.Sync(), f.Truncate(3))
		}
		if info, statErr := f.Stat(); err == nil && (statErr != nil || info.Size() != 3) {
			err = fmt.Errorf("%w: %v", errors.Join(statErr, errors.New("wrong size")), info)
		}
	case "attribute":
		err = unix.Setxattr(path, "user.test", []byte(words[2]), 0)
	default:
		err = errors.New("unknown")
	}
	return err
}

func number(word string) int64 {
	var n int64
	for _, digit := range word {
		n = n*10 + int64(digit-'0')
	}
	return n
}

// mount mounts over a new directory until the test ends.
func mount(t *testing.T, record bool) (f *faultfs.FS, dir, backing string) {
	t.Helper()
	dir, backing = t.TempDir(), t.TempDir()
	f, err := faultfs.Mount(faultfs.Options{Backing: backing, MountPoint: dir, Record: record})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return f, dir, backing
}

// script runs operations in another process.
func script(t *testing.T, dir, text string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FAULTFS_SCRIPT="+text, "FAULTFS_DIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestPassesThrough(t *testing.T) {
	_, dir, backing := mount(t, false)
	script(t, dir, "write a 0 hello;read a 0 hello;sync a;fill a 4096 x;punch a 4096;data a 0;data a 4096 ! no such device;syncdir a;attribute a v;rename a b;write c 3 end;remove c;nameless d")
	data, err := os.ReadFile(filepath.Join(backing, "b"))
	if err != nil || len(data) != 8192 || string(data[:5]) != "hello" || strings.Trim(string(data[5:]), "\x00") != "" {
		t.Errorf("%d bytes %.10q, %v", len(data), data, err)
	}
	value := make([]byte, 10)
	if n, err := unix.Getxattr(filepath.Join(backing, "b"), "user.test", value); err != nil || string(value[:n]) != "v" {
		t.Errorf("attribute %q, %v", value, err)
	}
	if entries, err := os.ReadDir(backing); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestFaults(t *testing.T) {
	for _, test := range []struct {
		name   string
		fault  faultfs.Fault
		script string
	}{
		{"read", faultfs.Fault{Op: faultfs.Read, Errno: unix.EIO}, "write a 0 x;sync a;read a 0 x ! input/output"},
		{"bad sector", faultfs.Fault{Op: faultfs.Write, FromByte: 8192, ToByte: 8193, Errno: unix.EIO}, "fill a 4096 x;fill a 8192 x ! input/output;fill a 12288 x"},
		{"second write", faultfs.Fault{Op: faultfs.Write, Skip: 1, Times: 1, Errno: unix.ENOSPC}, "write a 0 x;write a 0 x ! no space;write a 0 x"},
		{"other file", faultfs.Fault{Op: faultfs.Write, Name: "b*", Errno: unix.EIO}, "write a 0 x;write bb 0 x ! input/output"},
		{"sync", faultfs.Fault{Op: faultfs.Sync, Times: 1, Errno: unix.EIO}, "write a 0 x;sync a ! input/output;sync a"},
		{"directory", faultfs.Fault{Op: faultfs.SyncDir, Errno: unix.EIO}, "write a 0 x;sync a;syncdir a ! input/output"},
		{"punch", faultfs.Fault{Op: faultfs.Allocate, Errno: unix.EOPNOTSUPP}, "fill a 0 x;punch a 0 ! not supported"},
		{"seek", faultfs.Fault{Op: faultfs.Seek, Errno: unix.EIO}, "fill a 0 x;data a 0 ! input/output"},
		{"truncate", faultfs.Fault{Op: faultfs.Truncate, Errno: unix.EFBIG}, "fill a 0 x;truncate a 9 ! too large"},
		{"attribute", faultfs.Fault{Op: faultfs.SetAttribute, Errno: unix.ENOSPC}, "fill a 0 x;attribute a v ! no space"},
		{"rename", faultfs.Fault{Op: faultfs.Rename, Errno: unix.EIO}, "fill a 0 x;rename a b ! input/output"},
		{"unlink", faultfs.Fault{Op: faultfs.Unlink, Errno: unix.EIO}, "fill a 0 x;remove a ! input/output"},
		{"create", faultfs.Fault{Op: faultfs.Create, Errno: unix.ENOSPC}, "open a ! no space"},
		{"open", faultfs.Fault{Op: faultfs.Open, Errno: unix.EIO}, "write a 0 x;rename a b;open b ! input/output"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, dir, _ := mount(t, false)
			injection := f.Inject(test.fault)
			script(t, dir, test.script)
			if injection.Hits() == 0 {
				t.Error("no hits")
			}
		})
	}
}

func TestShortWritesAreWrittenInPart(t *testing.T) {
	f, dir, backing := mount(t, false)
	f.Inject(faultfs.Fault{Op: faultfs.Write, ShortBytes: 3, Times: 1})
	script(t, dir, "write a 0 abcdef") // package os goes on after a short write
	if data, err := os.ReadFile(filepath.Join(backing, "a")); err != nil || string(data) != "abcdef" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestLostWrites(t *testing.T) {
	f, dir, backing := mount(t, false)
	f.Inject(faultfs.Fault{Op: faultfs.Write, LoseWrites: true, Skip: 1, Times: 1})
	script(t, dir, "write a 0 x;write a 1 y;write a 2 z;sync a")
	if data, err := os.ReadFile(filepath.Join(backing, "a")); err != nil || string(data) != "x\x00z" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestDelayEndsWithHeal(t *testing.T) {
	f, dir, _ := mount(t, false)
	injection := f.Inject(faultfs.Fault{Op: faultfs.Write, Delay: time.Hour})
	time.AfterFunc(200*time.Millisecond, injection.Heal)
	begun := time.Now()
	script(t, dir, "write a 0 x")
	if took := time.Since(begun); took < 200*time.Millisecond || took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// after is what a power cut at the end of the log leaves.
func after(t *testing.T, log *faultfs.Log, cut faultfs.Cut) map[string]string {
	t.Helper()
	dir := t.TempDir()
	cut.After = log.Len()
	if err := log.Restore(dir, cut); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(data)
	}
	return files
}

func TestPowerCuts(t *testing.T) {
	for _, test := range []struct {
		name, script string
		lost, kept   map[string]string // with nothing and with all of what was not synced
	}{
		{"nothing synced", "write a 0 x", map[string]string{}, map[string]string{"a": "x"}},
		{"file without a name", "write a 0 x;sync a", map[string]string{}, map[string]string{"a": "x"}},
		{"name without content", "write a 0 x;syncdir a", map[string]string{"a": ""}, map[string]string{"a": "x"}},
		{"both", "write a 0 x;sync a;syncdir a;write a 1 y", map[string]string{"a": "x"}, map[string]string{"a": "xy"}},
		{"written over", "write a 0 x;sync a;syncdir a;write a 0 y", map[string]string{"a": "x"}, map[string]string{"a": "y"}},
		{"renamed", "write a 0 x;sync a;syncdir a;rename a b", map[string]string{"a": "x"}, map[string]string{"b": "x"}},
		{"renamed over another", "write b 0 old;sync b;write a 0 new;sync a;syncdir a;rename a b", map[string]string{"a": "new", "b": "old"}, map[string]string{"b": "new"}},
		{"removed", "write a 0 x;sync a;syncdir a;remove a", map[string]string{"a": "x"}, map[string]string{}},
		{"truncated", "write a 0 xyz;sync a;syncdir a;truncate a 1", map[string]string{"a": "xyz"}, map[string]string{"a": "x"}},
		{"made again", "write a 0 x;sync a;syncdir a;remove a;write a 0 y;sync a", map[string]string{"a": "x"}, map[string]string{"a": "y"}},
		{"name used again", "write a 0 x;remove a;write a 1 y;sync a;syncdir a", map[string]string{"a": "\x00y"}, map[string]string{"a": "\x00y"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, dir, _ := mount(t, true)
			script(t, dir, test.script)
			for _, form := range []struct {
				keep float64
				want map[string]string
			}{{0, test.lost}, {1, test.kept}} {
				got := after(t, f.Log(), faultfs.Cut{Keep: form.keep})
				if !equal(got, form.want) {
					t.Errorf("keep %v: %q, want %q", form.keep, got, form.want)
				}
			}
		})
	}
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for name, text := range a {
		if other, found := b[name]; !found || other != text {
			return false
		}
	}
	return true
}

// Of two writes that were not synced, each may survive without the other.
func TestPowerCutsInAnyCombination(t *testing.T) {
	f, dir, _ := mount(t, true)
	script(t, dir, "write a 0 ..;sync a;syncdir a;write a 0 x;write a 1 y")
	seen := map[string]bool{}
	for seed := range uint64(64) {
		seen[after(t, f.Log(), faultfs.Cut{Keep: 0.5, Seed: seed})["a"]] = true
	}
	for _, want := range []string{"..", "x.", ".y", "xy"} {
		if !seen[want] {
			t.Errorf("%q has not come up, only %v", want, seen)
		}
	}
}

func TestPowerCutsTearWritesAtSectors(t *testing.T) {
	f, dir, _ := mount(t, true)
	script(t, dir, "fill a 0 .;sync a;syncdir a;fill a 0 x")
	seen := map[string]bool{}
	for seed := range uint64(32) {
		data := after(t, f.Log(), faultfs.Cut{Keep: 0.99, Torn: true, Seed: seed})["a"]
		for off := 0; off < len(data); off += 512 {
			if sector := data[off : off+512]; strings.Trim(sector, sector[:1]) != "" {
				t.Fatalf("a sector is neither old nor new: %q", sector)
			}
		}
		seen[data] = true
	}
	if len(seen) < 16 {
		t.Errorf("%d different results", len(seen))
	}
}

func TestADiskThatLies(t *testing.T) {
	f, dir, _ := mount(t, true)
	script(t, dir, "write a 0 x;sync a;write b 0 y;sync b;syncdir a")
	if got := after(t, f.Log(), faultfs.Cut{Lies: "a*"}); !equal(got, map[string]string{"a": "", "b": "y"}) {
		t.Errorf("%q", got)
	}
}

func TestMarksAndBoundaries(t *testing.T) {
	f, dir, _ := mount(t, true)
	script(t, dir, "write a 0 x;sync a")
	f.Log().Mark("told")
	script(t, dir, "write b 0 y;sync b")
	log := f.Log()
	moments := log.Boundaries()
	if len(moments) < 5 || moments[len(moments)-1] != log.Len() {
		t.Fatalf("boundaries %v of %d records", moments, log.Len())
	}
	before, after := 0, 0
	for _, moment := range moments {
		if len(log.Marks(moment)) == 0 {
			before++
		} else {
			after++
		}
	}
	if before == 0 || after == 0 {
		t.Errorf("%d boundaries before the mark, %d after it", before, after)
	}
}
