package loopdev

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func usesOf(t *testing.T, d *Device) []Use {
	t.Helper()
	uses, err := d.UsedBy()
	must(t, err)
	return uses
}

func wantUse(t testing.TB, uses []Use, kind UseKind, words ...string) {
	t.Helper()
	if !slices.ContainsFunc(uses, func(u Use) bool {
		return u.Kind == kind && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(u.String(), w) })
	}) {
		t.Errorf("no %s with %q among %v", kind, words, uses)
	}
}

func TestNobodyUsesIt(t *testing.T) {
	for _, o := range []Options{{}, {Write: true}, readWrite} {
		for _, fsType := range []string{"ext4", "xfs", "btrfs", "tmpfs"} {
			path, _ := image(t, dirOn(t, fsType), 1<<20)
			d := openDevice(t, path, o)
			if o.Write { // brings up the second descriptor
				_, err := d.WriteAt([]byte{1}, 1)
				must(t, err)
			}
			if uses := usesOf(t, d); len(uses) > 0 {
				t.Errorf("%+v on %s: %v", o, fsType, uses)
			}
			if o.Write { // and again
				_, err := d.WriteAt([]byte{1}, 1)
				must(t, err)
			}
			must(t, d.Close())
			loop := openDevice(t, attach(t, path), o)
			if uses := usesOf(t, loop); len(uses) > 0 {
				t.Errorf("%+v on a loop device: %v", o, uses)
			}
		}
	}
}

func TestFault5ProcessesThatHaveItOpen(t *testing.T) {
	path, _ := image(t, t.TempDir(), 1<<20)
	loop := attach(t, path)
	for _, c := range []struct {
		open string
		flag int
		kind UseKind
	}{{path, os.O_RDWR, Writer}, {path, os.O_RDONLY, Reader}, {path, os.O_WRONLY | os.O_APPEND, Writer}, {loop, os.O_RDWR, Writer}} {
		f, err := os.OpenFile(c.open, c.flag, 0)
		must(t, err)
		sleeper := exec.Command("sleep", "60")
		sleeper.Stdin = f
		must(t, sleeper.Start())
		must(t, f.Close())
		for _, path := range []string{path, loop} {
			uses := usesOf(t, openDevice(t, path, Options{Write: true}))
			wantUse(t, uses, c.kind, "sleep")
			other := map[UseKind]UseKind{Writer: Reader, Reader: Writer}[c.kind]
			if slices.ContainsFunc(uses, func(u Use) bool { return u.PID == sleeper.Process.Pid && u.Kind == other }) {
				t.Errorf("a %s is called a %s: %v", c.kind, other, uses)
			}
			if !slices.ContainsFunc(uses, func(u Use) bool { return u.PID == sleeper.Process.Pid }) {
				t.Errorf("process %d is not among %v", sleeper.Process.Pid, uses)
			}
		}
		must(t, sleeper.Process.Kill())
		sleeper.Wait() //nolint:errcheck // it was killed
	}
}

// A mapping stays when its file is closed; only the kernel's lease knows of it.
func TestMappingIsFound(t *testing.T) {
	for kind, prot := range map[UseKind]int{Writer: unix.PROT_READ | unix.PROT_WRITE, Reader: unix.PROT_READ} {
		path, _ := image(t, dirOn(t, "ext4"), 1<<20)
		flag := os.O_RDONLY
		if kind == Writer {
			flag = os.O_RDWR
		}
		f, err := os.OpenFile(path, flag, 0)
		must(t, err)
		m, err := unix.Mmap(int(f.Fd()), 0, 4096, prot, unix.MAP_SHARED)
		must(t, err)
		t.Cleanup(func() { unix.Munmap(m) }) // again, if the test ends early
		must(t, f.Close())
		d := openDevice(t, path, readWrite)
		wantUse(t, usesOf(t, d), kind, "mapped")
		must(t, unix.Munmap(m))
		if uses := usesOf(t, d); len(uses) > 0 {
			t.Errorf("unmapped: %v", uses)
		}
	}
}

func TestLoopDevicesAndMountsAreFound(t *testing.T) {
	for _, fsType := range []string{"ext2", "btrfs"} { // btrfs mounts under a device number of its own
		path := filepath.Join(t.TempDir(), "image")
		makeFileSystem(t, fsType, path)
		loop := attach(t, path)
		wantUse(t, usesOf(t, openDevice(t, path, Options{})), LoopAttached, loop)
		second := attach(t, path, "-o", "4096")
		wantUse(t, usesOf(t, openDevice(t, loop, Options{})), LoopAttached, second)
		point := mountOn(t, loop)
		for _, path := range []string{path, loop, second} {
			d := openDevice(t, path, Options{})
			wantUse(t, usesOf(t, d), Mounted, loop, point)
			must(t, d.Close())
		}
	}
}

func TestUsesOfABlockDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	makeFileSystem(t, "ext2", path)
	below := attach(t, path)
	block := attach(t, below)
	if uses := usesOf(t, openDevice(t, block, Options{})); len(uses) > 0 {
		t.Errorf("nobody uses it: %v", uses)
	}
	mountOn(t, block)
	wantUse(t, usesOf(t, openDevice(t, block, Options{})), Mounted, block)
	wantUse(t, usesOf(t, openDevice(t, below, Options{})), Mounted, block)
	wantUse(t, usesOf(t, openDevice(t, path, Options{})), Mounted, block)
}

// fault 17
func TestFault17PartitionsInUseAreFound(t *testing.T) {
	path, _ := image(t, dirOn(t, "ext4"), 64<<20)
	disk, partition := attachPartition(t, path, 2048, 65536)
	run(t, "mkfs.ext2", "-q", partition)
	point := mountOn(t, partition)
	for _, path := range []string{path, disk, partition} {
		wantUse(t, usesOf(t, openDevice(t, path, Options{})), Mounted, partition, point)
	}
}

func TestHolderThatNothingNames(t *testing.T) {
	_, block := blockDevice(t, t.TempDir(), 4<<20)
	d := openDevice(t, block, Options{})
	h, err := resolve(block)
	must(t, err)
	defer h.close()
	f, err := h.reopen(unix.O_RDONLY | unix.O_EXCL)
	must(t, err)
	defer f.Close()
	free, err := claimable(mustNode(t, block))
	if free || err != nil {
		t.Errorf("%v, %v", free, err)
	}
	wantUse(t, usesOf(t, d), Reader, "open")
}

func mustNode(t *testing.T, path string) node {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	n, err := nodeOf(st.Rdev)
	must(t, err)
	return n
}

func TestOverlap(t *testing.T) {
	dir := t.TempDir()
	host := filepath.Join(dir, "host")
	makeFileSystem(t, "ext2", host)
	mounted := attach(t, host)
	point := mountOn(t, mounted)
	inner, _ := image(t, point, 1<<20)
	btrfsHost := filepath.Join(dir, "btrfs")
	makeFileSystem(t, "btrfs", btrfsHost)
	btrfsLoop := attach(t, btrfsHost)
	btrfsInner, _ := image(t, mountOn(t, btrfsLoop), 1<<20)
	path, _ := image(t, dir, 16<<20)
	link, other := filepath.Join(dir, "link"), filepath.Join(dir, "other")
	must(t, os.Link(path, link))
	must(t, os.WriteFile(other, make([]byte, 1<<20), 0o600))
	low, high := attach(t, path, "--sizelimit", "1048576"), attach(t, path, "-o", "1048576")
	middle := attach(t, path, "-o", "1048064", "--sizelimit", "1024")
	block := attach(t, low)
	must(t, os.WriteFile(host+"2", make([]byte, 16<<20), 0o600))
	disk := attach(t, host+"2", "-P")
	first, second := addPartition(t, disk, 1, 2048, 2048), addPartition(t, disk, 2, 8192, 2048)
	for _, c := range []struct {
		name, a, b string
		want       bool
	}{
		{"the same file", path, path, true},
		{"two names of a file", path, link, true},
		{"two files", path, other, false},
		{"a loop device and its file", path, low, true},
		{"a loop device and another file", other, low, false},
		{"parts side by side", low, high, false},
		{"parts that share a sector", low, middle, true},
		{"parts that share the other sector", high, middle, true},
		{"a block device over a loop device", block, low, true},
		{"a block device over a part of a file", block, path, true},
		{"a block device beside a part", block, high, false},
		{"a file and the disk below its file system", inner, mounted, true},
		{"a file and the image below its file system", inner, host, true},
		{"a loop device over such a file", attach(t, inner), host, true},
		{"a file and another disk", inner, high, false},
		{"a file on btrfs and its disk", btrfsInner, btrfsLoop, true},
		{"files on two file systems", btrfsInner, inner, false},
		{"a partition and its disk", first, disk, true},
		{"a partition and its image", first, host + "2", true},
		{"two partitions", first, second, false},
	} {
		a, b := openDevice(t, c.a, Options{}), openDevice(t, c.b, Options{})
		there, err := Overlap(a, b)
		must(t, err)
		back, err := Overlap(b, a)
		must(t, err)
		if (there != "") != c.want || (back != "") != c.want {
			t.Errorf("%s: %q and %q", c.name, there, back)
		}
		must(t, a.Close())
		must(t, b.Close())
	}
}

func TestParseMountinfo(t *testing.T) {
	got, err := parseMountinfo(`36 35 98:0 /mnt1 /mnt\0402\134 rw,noatime master:1 propagate_from:2 - ext3 /dev/root\011x rw,errors=continue
37 35 0:30 / /a rw - btrfs /dev/loop0 rw
`)
	must(t, err)
	want := []mount{
		{36, unix.Mkdev(98, 0), `/mnt 2\`, "ext3", "/dev/root\tx", []string{"rw", "errors=continue"}},
		{37, unix.Mkdev(0, 30), "/a", "btrfs", "/dev/loop0", []string{"rw"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, bad := range []string{"x", "36 35 98 / /a rw - ext4 /dev/a rw", "36 35 98:0 / /a rw ext4 /dev/a rw", "y 35 98:0 / /a rw - ext4 /dev/a rw"} {
		if _, err := parseMountinfo(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestParseSwaps(t *testing.T) {
	got := parseSwaps("Filename\t\t\t\tType\t\tSize\n/swap\\040file                           file\t\t1024\n/dev/sda2\tpartition\t5\n")
	if !slices.Equal(got, []string{"/swap file", "/dev/sda2"}) {
		t.Errorf("%q", got)
	}
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add(`36 35 98:0 /mnt1 /mnt\0402 rw master:1 - ext3 /dev/root rw`)
	f.Add(`1 1 1:1 \ \9 a - b \1`)
	f.Fuzz(func(t *testing.T, text string) {
		parseSwaps(text)
		all, err := parseMountinfo(text)
		for _, m := range all {
			if err == nil && len(m.point) > len(text) {
				t.Errorf("%q became longer: %q", text, m.point)
			}
		}
	})
}
