package loopdev

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fault 15: what is no image is refused, and a fifo without a reader does not hang.
func TestFault15OpenRefusesWhatHoldsNoImage(t *testing.T) {
	dir := t.TempDir()
	fifo, socket := filepath.Join(dir, "fifo"), filepath.Join(dir, "socket")
	must(t, unix.Mkfifo(fifo, 0o600))
	listener, err := net.Listen("unix", socket)
	must(t, err)
	defer listener.Close()
	for _, path := range []string{dir, fifo, socket, "/dev/null", "/dev/mem", "/proc/self/status", "/sys/kernel/uevent_seqnum"} {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) && path == "/dev/mem" {
			continue
		}
		for _, o := range []Options{{}, readWrite} {
			d, err := Open(path, o)
			if !errors.Is(err, ErrWrongType) {
				t.Errorf("Open(%s, %+v) = %v, %v", path, o, d, err)
			}
		}
	}
}

// fault 4
func TestFault4OpenRefusesLinksOfProc(t *testing.T) {
	path, _ := image(t, t.TempDir(), 8192)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for _, link := range []string{fmt.Sprintf("/proc/self/fd/%d", f.Fd()), fmt.Sprintf("/dev/fd/%d", f.Fd())} {
		if _, err := Open(link, Options{}); !errors.Is(err, unix.ELOOP) {
			t.Errorf("Open(%s): %v", link, err)
		}
	}
}

// faults 3 and 4
func TestFault4SymlinkIsFollowedOnce(t *testing.T) {
	dir := t.TempDir()
	path, content := image(t, dir, 8192)
	link := filepath.Join(dir, "link")
	must(t, os.Symlink("image", link))
	d := openDevice(t, link, readWrite)
	if d.Info().Path != path {
		t.Errorf("Path %s, want %s", d.Info().Path, path)
	}
	must(t, os.Remove(link))
	must(t, os.Rename(path, path+".old"))
	must(t, os.WriteFile(path, make([]byte, 8192), 0o600))
	must(t, os.Symlink("image", link))
	sameBytes(t, "after the path leads elsewhere", readAll(t, d), content)
	if _, err := d.WriteAt([]byte("unaligned"), 5); err != nil { // opens a second descriptor
		t.Fatal(err)
	}
	other, err := os.ReadFile(path)
	must(t, err)
	sameBytes(t, "the file in its place", other, make([]byte, 8192))
}

func TestCreateMakesASparseFileOnce(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs", "tmpfs"} {
		path := filepath.Join(dirOn(t, fsType), "new")
		o := Options{Write: true, Exclusive: true, CreateBytes: 10<<20 + 7}
		d := openDevice(t, path, o)
		st, err := os.Lstat(path)
		must(t, err)
		if d.Bytes() != o.CreateBytes || st.Size() != o.CreateBytes || st.Mode() != 0o600 || blocksOf(t, path) != 0 {
			t.Errorf("%s: %d bytes, %d on disk, mode %v, %d blocks", fsType, d.Bytes(), st.Size(), st.Mode(), blocksOf(t, path))
		}
		if _, err := Open(path, o); !errors.Is(err, unix.EEXIST) {
			t.Errorf("%s: second: %v", fsType, err)
		}
		if n, err := os.Stat(path); err != nil || n.Size() != o.CreateBytes {
			t.Errorf("%s: the refused second one touched the file: %v", fsType, err)
		}
	}
}

func TestCreateDoesNotFollowASymlink(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	must(t, os.Symlink(filepath.Join(dir, "elsewhere"), link))
	if _, err := Open(link, Options{Write: true, CreateBytes: 4096}); !errors.Is(err, unix.EEXIST) {
		t.Error(err)
	}
}

func TestCreateLeavesNothingWhenItFails(t *testing.T) {
	path := filepath.Join(dirOn(t, "ext4"), "new")
	if _, err := Open(path, Options{Write: true, CreateBytes: 1 << 62}); !errors.Is(err, unix.EFBIG) {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the file is still there:", err)
	}
}

// fault 6
func TestFault6ExclusiveKeepsOthersOut(t *testing.T) {
	path, _ := image(t, t.TempDir(), 1<<20)
	other := filepath.Join(filepath.Dir(path), "other-name")
	must(t, os.Link(path, other))
	loops := []string{attach(t, path), attach(t, path)}
	for _, first := range []string{path, loops[0]} {
		d := openDevice(t, first, readWrite)
		for _, second := range []string{path, other, loops[0], loops[1]} {
			if _, err := Open(second, Options{Exclusive: true}); !errors.Is(err, ErrInUse) {
				t.Errorf("%s while %s is open: %v", second, first, err)
			}
		}
		must(t, d.Close())
		openDevice(t, first, readWrite).Close()
	}
}

// fault 7
func TestFault7LinksAreCounted(t *testing.T) {
	path, _ := image(t, t.TempDir(), 4096)
	must(t, os.Link(path, path+"2"))
	if n := openDevice(t, path, Options{}).Info().Links; n != 2 {
		t.Errorf("%d links", n)
	}
}

// fault 12
func TestFault12ImmutableFile(t *testing.T) {
	path, content := image(t, dirOn(t, "ext4"), 1<<20)
	d := openDevice(t, path, readWrite)
	run(t, "chattr", "+i", path)
	t.Cleanup(func() { run(t, "chattr", "-i", path) })
	if _, err := Open(path, Options{Write: true}); !errors.Is(err, unix.EPERM) {
		t.Error("open:", err)
	}
	must(t, openDevice(t, path, Options{}).Close())
	if err := d.Discard(0, 1<<20); !errors.Is(err, unix.EPERM) || errors.Is(err, ErrCannotPunch) {
		t.Error("discard:", err)
	}
	sameBytes(t, "the file", readAll(t, d), content)
}

// fault 17
func TestFault17PartitionIsMapped(t *testing.T) {
	path, content := image(t, dirOn(t, "ext4"), 4<<20)
	loop := attach(t, path, "-P", "-o", "1536")
	partition := addPartition(t, loop, 1, 100, 2000)
	d := openDevice(t, partition, readWrite)
	first := 1536 + 100*512
	info := d.Info()
	if info.Kind != Loop || info.Offset != int64(first) || info.Bytes != 2000*512 || info.BackingPath != path {
		t.Errorf("%+v", info)
	}
	sameBytes(t, "the partition", readAll(t, d), content[first:first+2000*512])
}

// fault 17
func TestFault17WritingAPartitionNeedsTheWholeDisk(t *testing.T) {
	path, _ := image(t, dirOn(t, "ext4"), 64<<20)
	disk := attach(t, path, "-P")
	first, second := addPartition(t, disk, 1, 2048, 2048), addPartition(t, disk, 2, 8192, 65536)
	run(t, "mkfs.ext2", "-q", second)
	mountOn(t, second)
	if _, err := Open(first, readWrite); !errors.Is(err, ErrInUse) || !errors.Is(err, unix.EBUSY) {
		t.Error("a partition beside a mounted one, for writing:", err)
	}
	must(t, openDevice(t, first, Options{Exclusive: true}).Close())
	for _, path := range []string{second, disk} {
		if _, err := Open(path, Options{Exclusive: true}); !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// fault 20
func TestFault20ReadOnlyLoopDevice(t *testing.T) {
	path, content := image(t, t.TempDir(), 1<<20)
	loop := attach(t, path, "-r")
	if _, err := Open(loop, readWrite); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
	d := openDevice(t, loop, Options{})
	sameBytes(t, "the device", readAll(t, d), content)
	_, writeErr := d.WriteAt(make([]byte, 512), 0)
	for op, err := range map[string]error{
		"write": writeErr, "discard": d.Discard(0, 4096), "zero": d.Zero(0, 4096),
		"mark": d.WriteMark(Mark{ID: "x"}), "remove mark": d.RemoveMark(),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// fault 21
func TestFault21DeletedBackingFile(t *testing.T) {
	path, _ := image(t, t.TempDir(), 1<<20)
	loop := attach(t, path)
	must(t, os.Remove(path))
	_, err := Open(loop, Options{})
	if !errors.Is(err, ErrBackingFile) || !strings.Contains(err.Error(), "deleted") {
		t.Error(err)
	}
	must(t, os.WriteFile(path+" (deleted)", make([]byte, 1<<20), 0o600))
	if _, err := Open(loop, Options{}); !errors.Is(err, ErrBackingFile) {
		t.Error("with another file by the name that the kernel shows:", err)
	}
}

func TestBackingFileMayBeCalledDeleted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "my image (deleted)")
	must(t, os.WriteFile(path, random(1<<20, 1), 0o600))
	d := openDevice(t, attach(t, path), readWrite)
	if d.Info().BackingPath != path {
		t.Error(d.Info().BackingPath)
	}
}

func TestDetachedLoopDevice(t *testing.T) {
	path, _ := image(t, t.TempDir(), 1<<20)
	loop := run(t, "losetup", "-f", "--show", path)
	run(t, "losetup", "-d", loop)
	if _, err := Open(loop, Options{}); !errors.Is(err, unix.ENXIO) && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// fault 30
func TestFault30MountedDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	makeFileSystem(t, "ext2", path)
	loop := attach(t, path)
	mountOn(t, loop)
	if _, err := Open(loop, Options{Exclusive: true}); !errors.Is(err, ErrInUse) || !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
	must(t, openDevice(t, loop, Options{}).Close())
}

// What lies in the page cache of the loop device belongs to the source.
func TestCacheOfTheLoopDeviceIsWrittenBack(t *testing.T) {
	path, content := image(t, t.TempDir(), 1<<20)
	loop := attach(t, path)
	f, err := os.OpenFile(loop, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("dirty"), 4096)
	must(t, err)
	copy(content[4096:], "dirty")
	d := openDevice(t, loop, readWrite)
	sameBytes(t, "the device", readAll(t, d), content)
	_, err = d.WriteAt([]byte("below"), 8192)
	must(t, err)
	must(t, d.Close())
	got := make([]byte, 5)
	_, err = f.ReadAt(got, 8192)
	must(t, err)
	sameBytes(t, "what the loop device shows", got, []byte("below"))
}

func TestKeyStaysWithTheObject(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs", "ext2"} {
		path, content := image(t, dirOn(t, fsType), 1<<20)
		key := func(path string) string {
			d := openDevice(t, path, Options{})
			defer d.Close()
			return d.Info().Key
		}
		file, whole, part := key(path), key(attach(t, path)), key(attach(t, path, "-o", "4096"))
		if file == whole || whole == part {
			t.Errorf("%s: keys %q %q %q are not all different", fsType, file, whole, part)
		}
		must(t, os.Rename(path, path+"2"))
		if again := key(path + "2"); again != file {
			t.Errorf("%s: key %q became %q by a rename", fsType, file, again)
		}
		if again := key(attach(t, path+"2", "-o", "4096")); again != part {
			t.Errorf("%s: key %q became %q on another loop device", fsType, part, again)
		}
		must(t, os.WriteFile(path, content, 0o600))
		if other := key(path); other == file {
			t.Errorf("%s: a copy has the key %q as well", fsType, file)
		}
		must(t, os.Remove(path+"2"))
		must(t, os.WriteFile(path+"2", content, 0o600))
		if other := key(path + "2"); other == file {
			t.Errorf("%s: a new file by the old name has the key %q as well", fsType, file)
		}
	}
}

func TestKeyOfABlockDeviceHasNoLoopNumber(t *testing.T) {
	_, block := blockDevice(t, t.TempDir(), 4<<20)
	d := openDevice(t, block, Options{})
	if d.Info().Kind != Block || !strings.HasPrefix(d.Info().Key, "block:") && !strings.HasPrefix(d.Info().Key, "file:") {
		t.Fatalf("%+v", d.Info())
	}
	if name := filepath.Base(block); strings.Contains(d.Info().Key, name) {
		t.Errorf("key %q names %s", d.Info().Key, name)
	}
}

// blockDevice is a real block device that is no loop device over a file: one over
// another block device.
func blockDevice(t testing.TB, dir string, n int, args ...string) (file, device string) {
	t.Helper()
	file, _ = image(t, dir, n)
	return file, attach(t, attach(t, file, args...), args...)
}

func TestInfoOfAFile(t *testing.T) {
	path, _ := image(t, dirOn(t, "xfs"), 12345)
	st, err := os.Stat(path)
	must(t, err)
	info := openDevice(t, path, Options{}).Info()
	if info.Kind != File || info.Bytes != 12345 || info.FSType != "xfs" || !info.Modified.Equal(st.ModTime()) ||
		info.BackingPath != path || info.UID != 0 || info.Links != 1 || !info.DirectIO {
		t.Errorf("%+v", info)
	}
}

func TestClosedDeviceFails(t *testing.T) {
	path, _ := image(t, t.TempDir(), 8192)
	d := openDevice(t, path, readWrite)
	must(t, d.Close())
	_, readErr := d.ReadAt(make([]byte, 10), 1)
	_, writeErr := d.WriteAt(make([]byte, 10), 1)
	_, _, dataErr := d.NextData(0)
	for op, err := range map[string]error{
		"read": readErr, "write": writeErr, "next data": dataErr, "flush": d.Flush(),
		"discard": d.Discard(0, 4096), "zero": d.Zero(0, 4096), "close": d.Close(),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", op, err)
		}
	}
}
