package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// do runs a program that must succeed, and returns what it said.
func do(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// attaching keeps two losetup from looking at the same free device: one of them
// would have it open while the other's test already uses it. It is held for attached, too.
var attaching sync.Mutex

// attached are the loop devices of all tests, and whose each is: the same device may
// belong to another test once it was detached.
var attached = map[string]testing.TB{}

// attach makes a loop device over a file or device until the test ends, or detach.
func attach(t testing.TB, path string, flags ...string) (device string) {
	t.Helper()
	attaching.Lock()
	defer attaching.Unlock()
	device = do(t, "losetup", append(append([]string{"--find", "--show"}, flags...), path)...)
	// losetup warns of odd tails on the same stream.
	device = device[strings.LastIndex(device, "/dev/"):]
	attached[device] = t
	t.Cleanup(func() { detach(t, device) })
	return device
}

// detach takes away a loop device of this test, if it is there.
func detach(t testing.TB, device string) {
	t.Helper()
	attaching.Lock()
	defer attaching.Unlock()
	if attached[device] != t {
		return
	}
	delete(attached, device)
	if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
		t.Errorf("detach %s: %v\n%s", device, err, out)
	}
}

// sparse makes a file that is one hole.
func sparse(t testing.TB, path string, bytes int64) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// newFileSystem makes a file system in an image file and mounts it until the test
// ends.
func newFileSystem(t testing.TB, kind string, bytes int64, mkfsFlags ...string) (dir string) {
	t.Helper()
	base := t.TempDir()
	disk, dir := sparse(t, filepath.Join(base, "disk"), bytes), filepath.Join(base, "mounted")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	flags := map[string][]string{
		"ext2":  {"-q", "-F", "-m", "0"},
		"ext4":  {"-q", "-F", "-m", "0"},
		"xfs":   {"-q", "-f"},
		"btrfs": {"-q", "-f"},
	}[kind]
	do(t, "mkfs."+kind, append(append(flags, mkfsFlags...), disk)...)
	mountAt(t, dir, "-t", kind, attach(t, disk))
	return dir
}

// mountAt mounts until the test ends. arguments are those of mount(8) before the
// directory.
func mountAt(t testing.TB, dir string, arguments ...string) {
	t.Helper()
	do(t, "mount", append(arguments, dir)...)
	t.Cleanup(func() { unmount(t, dir) })
}

// unmount takes a file system away, in the end whether it is used or not.
func unmount(t testing.TB, dir string) {
	t.Helper()
	err := unix.Unmount(dir, 0)
	if errors.Is(err, unix.EBUSY) {
		t.Errorf("%s is still in use", dir)
		err = unix.Unmount(dir, unix.MNT_DETACH)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // not mounted: the test has done it
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// freeBytes is the space that a file system has left for everybody.
func freeBytes(t testing.TB, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Frsize
}

// fillUp takes the space of a file system but for some bytes, and returns what
// gives it back.
func fillUp(t testing.TB, dir string, leave int64) (release func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// A file system says no to what it has no blocks for, but also to a part of
	// what it has; so the pieces get smaller.
	size := int64(0)
	for piece := 64 * mib; piece >= 4*kib; {
		fits := freeBytes(t, dir) >= piece+leave
		if fits {
			err := unix.Fallocate(int(f.Fd()), 0, size, piece)
			if err == nil {
				size += piece
				continue
			}
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
		}
		piece /= 2
	}
	return func() {
		t.Helper()
		if err := errors.Join(os.Remove(path), syncFileSystem(dir)); err != nil {
			t.Fatal(err)
		}
	}
}

func syncFileSystem(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// partitioned is a loop device over a disk image, and a partition of it. There is
// no table on the disk, which not every kernel could read.
func partitioned(t testing.TB, path string, startBytes, bytes int64) (disk, partition string) {
	t.Helper()
	disk = attach(t, path, "--partscan") // without the flag it can have no partitions
	do(t, "addpart", disk, "1", strconv.FormatInt(startBytes/512, 10), strconv.FormatInt(bytes/512, 10))
	t.Cleanup(func() { do(t, "delpart", disk, "1") })
	partition = disk + "p1"
	if !exists(partition) {
		t.Fatalf("the kernel has not made %s", partition)
	}
	return disk, partition
}

func TestFileSystemsMountAndGoAway(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		var dir string
		t.Run(kind, func(t *testing.T) {
			dir = newFileSystem(t, kind, 320*mib)
			made := makeImage(t, filepath.Join(dir, "image"), 8*mib, 1, mixed)
			wantWhole(t, filepath.Join(dir, "image"), made)
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil {
				t.Fatal(err)
			}
			want := map[string]int64{"ext4": unix.EXT4_SUPER_MAGIC, "xfs": unix.XFS_SUPER_MAGIC, "btrfs": unix.BTRFS_SUPER_MAGIC}[kind]
			if st.Type != want {
				t.Errorf("type %#x, want %#x", st.Type, want)
			}
			release := fillUp(t, dir, 0)
			if free := freeBytes(t, dir); free > 24*mib {
				t.Errorf("%d bytes are free after it was filled", free)
			}
			release()
			if free := freeBytes(t, dir); free < 100*mib {
				t.Errorf("%d bytes are free after it was emptied", free)
			}
		})
		if mounts, err := os.ReadFile("/proc/mounts"); err != nil || strings.Contains(string(mounts), dir) {
			t.Errorf("%s is still mounted (%v)", dir, err)
		}
	}
}

func TestPartitionsAreWhereTheyShouldBe(t *testing.T) {
	path := sparse(t, filepath.Join(t.TempDir(), "disk"), 16*mib)
	_, partition := partitioned(t, path, 1*mib, 4*mib)
	if got := sizeOf(t, partition); got != 4*mib {
		t.Errorf("%s has %d bytes", partition, got)
	}
	overwrite(t, partition, 0, []byte("here"))
	data := make([]byte, 4)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(data, 1*mib); err != nil || string(data) != "here" {
		t.Errorf("at the start of the partition there is %q (%v)", data, err)
	}
	if statOf(t, partition).Mode&unix.S_IFMT != unix.S_IFBLK {
		t.Errorf("%s is no block device", partition)
	}
}
