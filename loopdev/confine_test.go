package loopdev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// confinedTree makes a directory with what may and may not be reached from in, a loop
// device on a file there, and links in /dev to that and to a file outside.
func confinedTree(t *testing.T) (dir, in, loop, devLink, evilLink string) {
	t.Helper()
	dir = dirOn(t, "ext4")
	in = filepath.Join(dir, "in")
	must(t, os.MkdirAll(filepath.Join(in, "sub"), 0o755))
	for _, name := range []string{"out", "in/file", "in/sub/file", "inside"} {
		must(t, os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<16), 0o600))
	}
	loop = attach(t, filepath.Join(in, "file"))
	devLink, evilLink = "/dev/decant-test-link", "/dev/decant-test-evil"
	for link, to := range map[string]string{
		filepath.Join(in, "link"): filepath.Join(dir, "out"), filepath.Join(in, "near"): "file", filepath.Join(in, "up"): dir,
		devLink: loop, evilLink: filepath.Join(dir, "out"),
	} {
		must(t, os.Symlink(to, link))
		t.Cleanup(func() { must(t, os.Remove(link)) })
	}
	must(t, os.Link(filepath.Join(in, "file"), filepath.Join(in, "hard")))
	return dir, in, loop, devLink, evilLink
}

// faults 4 and 90: nothing outside the roots, and no link on the way.
func TestFault4And90ConfinedPaths(t *testing.T) {
	dir, in, loop, devLink, evilLink := confinedTree(t)
	confined := &Confine{Roots: []string{in, "/dev"}}
	anywhere := &Confine{}
	for _, test := range []struct {
		path             string
		within, anywhere error // nil: it opens
	}{
		{in + "/file", nil, nil},
		{in + "/sub/file", nil, nil},
		{in + "/hard", nil, nil},
		{dir + "/out", ErrOutside, nil},
		{dir + "/inside", ErrOutside, nil}, // begins like the root
		{in + "/../out", ErrOutside, ErrOutside},
		{in + "//file", ErrOutside, ErrOutside},
		{"file", ErrOutside, ErrOutside},
		{in + "/link", unix.ELOOP, unix.ELOOP},
		{in + "/near", unix.ELOOP, unix.ELOOP},
		{in + "/up/out", unix.ELOOP, unix.ELOOP},
		{"/proc/self/root" + in + "/file", ErrOutside, unix.ELOOP},
		{in + "/missing", fs.ErrNotExist, fs.ErrNotExist},
		{in + "/" + strings.Repeat("x", 300), unix.ENAMETOOLONG, unix.ENAMETOOLONG},
		{loop, nil, nil},
		{devLink, nil, nil},
		{evilLink, ErrOutside, ErrOutside},
		{"/dev/fd/0", unix.ELOOP, unix.ELOOP},
		{"/dev/null", ErrOutside, ErrOutside},
	} {
		for c, want := range map[*Confine]error{confined: test.within, anywhere: test.anywhere} {
			d, err := Open(test.path, Options{Confine: c})
			if (err == nil) != (want == nil) || want != nil && !errors.Is(err, want) {
				t.Errorf("%.100s below %v: %v, want %v", test.path, c.Roots, err, want)
			}
			if err == nil {
				must(t, d.Close())
			}
		}
	}
	// What is made is made below a directory that is no link.
	if _, err := Open(in+"/up/made", Options{Write: true, CreateBytes: 4096, Confine: confined}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("made through a link: %v", err)
	}
	if _, err := Open(dir+"/made", Options{Write: true, CreateBytes: 4096, Confine: confined}); !errors.Is(err, ErrOutside) {
		t.Errorf("made outside: %v", err)
	}
	d, err := Open(in+"/made", Options{Write: true, CreateBytes: 4096, Confine: confined})
	must(t, err)
	must(t, d.Close())
	if _, err := os.Stat(filepath.Join(dir, "made")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if !(*Confine)(nil).Allows("anything") || confined.Allows(dir) || !confined.Allows(in) || !confined.Allows(in+"/x") {
		t.Error("what is allowed by its name alone is wrong")
	}
}

func TestUnlinkRemovesOnlyWhatIsOpen(t *testing.T) {
	dir := dirOn(t, "ext4")
	path := filepath.Join(dir, "sub", "file")
	elsewhere := filepath.Join(dir, "elsewhere")
	must(t, os.Mkdir(filepath.Dir(path), 0o755))
	must(t, os.Mkdir(elsewhere, 0o755))
	must(t, os.WriteFile(path, make([]byte, 4096), 0o600))
	d := openDevice(t, path, readWrite)
	// Another file under the name.
	must(t, os.Rename(path, path+".kept"))
	must(t, os.WriteFile(path, []byte("another"), 0o600))
	if err := d.Unlink(); !errors.Is(err, ErrReplaced) {
		t.Errorf("another file: %v", err)
	}
	must(t, os.Rename(path+".kept", path))
	// Its directory is exchanged for a link to another one with a file of that name.
	must(t, os.WriteFile(filepath.Join(elsewhere, "file"), []byte("a victim"), 0o600))
	must(t, os.Rename(filepath.Dir(path), filepath.Join(dir, "moved")))
	must(t, os.Symlink(elsewhere, filepath.Dir(path)))
	if err := d.Unlink(); !errors.Is(err, unix.ELOOP) {
		t.Errorf("through a link: %v", err)
	}
	if _, err := os.Stat(filepath.Join(elsewhere, "file")); err != nil {
		t.Error(err)
	}
	must(t, os.Remove(filepath.Dir(path)))
	must(t, os.Rename(filepath.Join(dir, "moved"), filepath.Dir(path)))
	must(t, d.Unlink())
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := d.Unlink(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("twice: %v", err)
	}
}

func TestDisksBelow(t *testing.T) {
	dir := dirOn(t, "ext4")
	under, err := DisksBelow(dir)
	must(t, err)
	if len(under) == 0 {
		t.Fatal("a file system without a disk")
	}
	path, _ := image(t, dir, 32<<20)
	loop, partition := attachPartition(t, path, 2048, 2048)
	over := attach(t, loop)
	run(t, "mkfs.ext4", "-q", "-F", over)
	mounted := mountOn(t, over)
	inner, _ := image(t, mounted, 1<<20)
	// Files, loop devices, partitions, file systems on them: all is on one disk in the end.
	for _, p := range []string{path, loop, partition, over, mounted, inner} {
		if got, err := DisksBelow(p); err != nil || !slices.Equal(got, under) {
			t.Errorf("below %s: %v %v, want %v", p, got, err, under)
		}
	}
	if got, err := DisksBelowDevice(deviceNumber(t, over)); err != nil || !slices.Equal(got, under) {
		t.Errorf("%v %v", got, err)
	}
	// A file system in memory is a disk of its own.
	memory := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "tmpfs", memory)
	defer run(t, "umount", memory)
	if got, err := DisksBelow(memory); err != nil || len(got) != 1 || slices.Equal(got, under) {
		t.Errorf("in memory: %v %v", got, err)
	}
	if _, err := DisksBelow(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
}
