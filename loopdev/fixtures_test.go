package loopdev

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The file systems are made once and shared by all tests, each in a directory of
// its own.
var fileSystems = struct {
	sync.Mutex
	root   string
	points map[string]string
	undo   []func()
	dirs   int
}{points: map[string]string{}}

func TestMain(m *testing.M) {
	root, err := os.MkdirTemp("", "loopdev-*")
	if err != nil {
		panic(err)
	}
	fileSystems.root = root
	code := m.Run()
	for i := len(fileSystems.undo) - 1; i >= 0; i-- {
		fileSystems.undo[i]()
	}
	os.RemoveAll(root)
	os.Exit(code)
}

func command(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := command(name, args...)
	must(t, err)
	return out
}

func must(t interface {
	Helper()
	Fatal(args ...any)
}, err error,
) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var mkfs = map[string]struct {
	bytes int64
	args  []string
}{
	"ext4":  {128 << 20, []string{"mkfs.ext4", "-q", "-F", "-b", "4096"}},
	"ext2":  {64 << 20, []string{"mkfs.ext2", "-q", "-F"}},
	"xfs":   {320 << 20, []string{"mkfs.xfs", "-q", "-f", "-m", "reflink=1"}},
	"btrfs": {256 << 20, []string{"mkfs.btrfs", "-q", "-f"}},
}

// memory are the file systems without a disk: ramfs knows neither direct I/O nor
// holes.
var memory = map[string][]string{
	"tmpfs": {"-t", "tmpfs", "-o", "size=64m", "tmpfs"},
	"ramfs": {"-t", "ramfs", "ramfs"},
}

// dirOn is an empty directory on a real file system of the type.
func dirOn(t testing.TB, fsType string) string {
	t.Helper()
	fileSystems.Lock()
	defer fileSystems.Unlock()
	point := fileSystems.points[fsType]
	if point == "" {
		point = filepath.Join(fileSystems.root, fsType)
		must(t, os.Mkdir(point, 0o755))
		if args := memory[fsType]; args != nil {
			run(t, "mount", append(args, point)...)
		} else {
			image := filepath.Join(fileSystems.root, fsType+".img")
			makeFileSystem(t, fsType, image)
			run(t, "mount", "-o", "loop", image, point)
		}
		fileSystems.undo = append(fileSystems.undo, func() {
			if _, err := command("umount", point); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		})
		fileSystems.points[fsType] = point
	}
	fileSystems.dirs++
	dir := filepath.Join(point, fmt.Sprintf("test-%d", fileSystems.dirs))
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func makeFileSystem(t testing.TB, fsType, image string) {
	t.Helper()
	if _, err := os.Stat(image); err != nil {
		must(t, os.WriteFile(image, nil, 0o600))
		must(t, os.Truncate(image, mkfs[fsType].bytes))
	}
	args := mkfs[fsType].args
	run(t, args[0], slices.Concat(args[1:], []string{image})...)
}

// attach makes a loop device over the file or block device.
func attach(t testing.TB, path string, args ...string) string {
	t.Helper()
	loop := run(t, "losetup", append(append([]string{"-f", "--show"}, args...), path)...)
	// A warning about a tail comes first.
	loop = loop[strings.LastIndex(loop, "/dev/loop"):]
	t.Cleanup(func() { run(t, "losetup", "-d", loop) })
	return loop
}

// attachPartition makes a loop device with a partition.
func attachPartition(t testing.TB, path string, startSectors, sectors int64) (disk, partition string) {
	t.Helper()
	disk = attach(t, path, "-P")
	return disk, addPartition(t, disk, 1, startSectors, sectors)
}

func addPartition(t testing.TB, disk string, nr, startSectors, sectors int64) string {
	t.Helper()
	run(t, "addpart", disk, fmt.Sprint(nr), fmt.Sprint(startSectors), fmt.Sprint(sectors))
	t.Cleanup(func() { run(t, "delpart", disk, fmt.Sprint(nr)) })
	return fmt.Sprintf("%sp%d", disk, nr)
}

func mountOn(t testing.TB, device string, args ...string) string {
	t.Helper()
	point := filepath.Join(fileSystems.root, "mount-"+strings.ReplaceAll(t.Name(), "/", "-")+filepath.Base(device))
	must(t, os.Mkdir(point, 0o755))
	run(t, "mount", append(args, device, point)...)
	t.Cleanup(func() { run(t, "umount", point) })
	return point
}

// random are bytes of which none is zero, the same for the same seed.
func random(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + r.IntN(255))
	}
	return b
}

// image writes a file of random bytes.
func image(t testing.TB, dir string, n int) (path string, content []byte) {
	t.Helper()
	path, content = filepath.Join(dir, "image"), random(n, uint64(n))
	must(t, os.WriteFile(path, content, 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, f.Sync())
	return path, content
}

func openDevice(t testing.TB, path string, o Options) *Device {
	t.Helper()
	d, err := Open(path, o)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

var readWrite = Options{Write: true, Exclusive: true}

func readAll(t testing.TB, d *Device) []byte {
	t.Helper()
	b := AlignedBuffer(int(d.Bytes()))
	_, err := d.ReadAt(b, 0)
	must(t, err)
	return b
}

func sameBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d is %#x, want %#x", what, i, got[i], want[i])
		}
	}
}

func blocksOf(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks
}
