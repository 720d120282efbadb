package loopdev

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// place is a way to have a device of some bytes somewhere inside a file.
type place struct {
	name string
	make func(t *testing.T) (device, file string, offset, bytes int64)
}

const fileBytes = 1 << 20

func fileOn(fsType string, n int) place {
	return place{name: "file on " + fsType, make: func(t *testing.T) (string, string, int64, int64) {
		path, _ := image(t, dirOn(t, fsType), n)
		return path, path, 0, int64(n)
	}}
}

func loopOn(fsType string, offset, bytes int64, args ...string) place {
	name := fmt.Sprintf("loop at %d on %s %v", offset, fsType, args)
	return place{name: name, make: func(t *testing.T) (string, string, int64, int64) {
		path, _ := image(t, dirOn(t, fsType), fileBytes)
		args := append(args, "-o", fmt.Sprint(offset), "--sizelimit", fmt.Sprint(bytes))
		return attach(t, path, args...), path, offset, bytes
	}}
}

var places = []place{
	fileOn("ext4", fileBytes), fileOn("ext4", fileBytes-4096+77), fileOn("xfs", fileBytes-511),
	fileOn("btrfs", fileBytes-1), fileOn("ext2", fileBytes-1000), fileOn("tmpfs", fileBytes-3), fileOn("ramfs", fileBytes-5),
	loopOn("ext4", 1536, 300*512), loopOn("xfs", 7*512, 999*512), loopOn("btrfs", 512, 1001*512),
	loopOn("ext2", 2560, 301*512), loopOn("ramfs", 1024, 300*512), loopOn("ext4", 777*512, 64*4096, "-b", "4096"),
	{name: "partition", make: func(t *testing.T) (string, string, int64, int64) {
		path, _ := image(t, dirOn(t, "ext4"), fileBytes)
		_, partition := attachPartition(t, path, 33, 1111)
		return partition, path, 33 * 512, 1111 * 512
	}},
	{name: "block", make: func(t *testing.T) (string, string, int64, int64) {
		path, device := blockDevice(t, dirOn(t, "ext4"), fileBytes)
		return device, path, 0, fileBytes
	}},
	{name: "block with sectors of 4 KiB", make: func(t *testing.T) (string, string, int64, int64) {
		path, device := blockDevice(t, dirOn(t, "ext4"), fileBytes, "-b", "4096")
		return device, path, 0, fileBytes
	}},
}

// faults 9, 17, 18, 19, 22, 23: on every kind of device any sequence of writes,
// zeroing and discards does to it what it says, and nothing to what lies around it.
func TestFault18DeviceBehavesLikeItsBytes(t *testing.T) {
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) {
			device, file, offset, size := p.make(t)
			whole, err := os.ReadFile(file)
			must(t, err)
			d := openDevice(t, device, readWrite)
			if d.Bytes() != size {
				t.Fatalf("%d bytes, want %d", d.Bytes(), size)
			}
			m := &model{d: d, bytes: whole[offset : offset+size]}
			pristine := bytes.Clone(m.bytes)
			rapid.Check(t, func(t *rapid.T) {
				_, err := d.WriteAt(pristine, 0)
				must(t, err)
				copy(m.bytes, pristine)
				m.sequence(t)
			})
			m.compare(t, 0, size)
			must(t, d.Flush())
			must(t, d.Close())
			after, err := os.ReadFile(file)
			must(t, err)
			// whole shares its memory with the model.
			sameBytes(t, "the whole file", after, whole)
		})
	}
}

type model struct {
	d     *Device
	bytes []byte
}

func (m *model) sequence(t *rapid.T) {
	for range rapid.IntRange(1, 6).Draw(t, "steps") {
		off, n := m.drawRange(t)
		switch op := rapid.SampledFrom([]string{"write", "write to the cache", "zero", "discard", "read"}).Draw(t, "op"); op {
		case "write", "write to the cache":
			b := drawMemory(t, n)
			copy(b, random(int(n), rapid.Uint64().Draw(t, "content")))
			write := m.d.WriteAt
			if cached, ok := m.d.Cached(); ok && op == "write to the cache" {
				write = cached.WriteAt
			}
			written, err := write(b, off)
			if err != nil || written != len(b) {
				t.Fatalf("wrote %d of %d: %v", written, len(b), err)
			}
			copy(m.bytes[off:], b)
		case "zero":
			if err := m.d.Zero(off, n); err != nil {
				t.Fatal(err)
			}
			clear(m.bytes[off : off+n])
		case "discard":
			m.discard(t, off, n)
		}
		lo, hi := max(0, off-9000), min(m.d.Bytes(), off+n+9000)
		m.compare(t, lo, hi-lo)
	}
}

// drawRange prefers the borders of blocks and of the device.
func (m *model) drawRange(t *rapid.T) (off, n int64) {
	size := m.d.Bytes()
	unit := rapid.SampledFrom([]int64{1, 512, 4096}).Draw(t, "unit")
	off = rapid.Int64Range(0, size/unit).Draw(t, "off") * unit
	n = min(rapid.Int64Range(0, 200<<10).Draw(t, "n")/unit*unit, size-off)
	if rapid.IntRange(0, 3).Draw(t, "to the end") == 0 {
		off, n = max(off, size-100<<10), size-max(off, size-100<<10)
	}
	return off, n
}

func drawMemory(t *rapid.T, n int64) []byte {
	skip := rapid.SampledFrom([]int{0, 0, 1, 512}).Draw(t, "memory")
	return AlignedBuffer(int(n) + skip)[skip:]
}

// discard may turn into zeros what lies in the range, and nothing else.
func (m *model) discard(t *rapid.T, off, n int64) {
	if err := m.d.Discard(off, n); err != nil {
		if m.d.Info().FSType != "ramfs" || !errors.Is(err, ErrCannotPunch) {
			t.Fatal(err)
		}
		return
	}
	now := make([]byte, n)
	if _, err := m.d.ReadAt(now, off); err != nil {
		t.Fatal(err)
	}
	for i, b := range now {
		if b != 0 && b != m.bytes[off+int64(i)] {
			t.Fatalf("byte %d became %#x by a discard", off+int64(i), b)
		}
	}
	copy(m.bytes[off:], now)
}

func (m *model) compare(t rapid.TB, off, n int64) {
	ways := []io.ReaderAt{m.d}
	if cached, ok := m.d.Cached(); ok {
		ways = []io.ReaderAt{cached, m.d, cached} // without what is not written back, and with it
	}
	got := make([]byte, n)
	for _, way := range ways {
		if _, err := way.ReadAt(got, off); err != nil {
			t.Fatal(err)
		}
		if i := firstDifference(got, m.bytes[off:off+n]); i >= 0 {
			t.Fatalf("%T: byte %d is %#x, want %#x", way, off+int64(i), got[i], m.bytes[off+int64(i)])
		}
	}
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// fault 1: what is not there is an error and never zeros.
func TestFault1TruncatedFile(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs", "ext2", "tmpfs", "ramfs"} {
		path, content := image(t, dirOn(t, fsType), 1<<20)
		devices := []*Device{openDevice(t, path, Options{}), openDevice(t, attach(t, path), Options{Write: true})}
		for _, left := range []int64{512 << 10, 100<<10 + 333, 0} {
			must(t, os.Truncate(path, left))
			for _, d := range devices {
				checkTruncated(t, d, content, left)
			}
		}
		must(t, os.Truncate(path, 1<<20)) // for detaching the loop device
	}
}

func checkTruncated(t *testing.T, d *Device, content []byte, left int64) {
	t.Helper()
	for _, n := range []int{4096, 65536, 1000} {
		for _, off := range []int64{left &^ 4095, left - int64(n) + 1, left, left + 4096} {
			off = max(off, 0)
			for i := range 2 {
				b := AlignedBuffer(n + i)[i:] // aligned and not
				got, err := d.ReadAt(b, off)
				if !errors.Is(err, io.ErrUnexpectedEOF) || got != int(max(0, left-off)) {
					t.Errorf("%s of %d bytes: ReadAt(%d, %d) = %d, %v", d.Info().FSType, left, n, off, got, err)
				}
				sameBytes(t, "what is there", b[:got], content[min(off, left):min(off, left)+int64(got)])
			}
		}
	}
	if left > 8192 {
		if _, err := d.ReadAt(make([]byte, 8192), 0); err != nil {
			t.Errorf("what is left cannot be read: %v", err)
		}
	}
}

// fault 2
func TestFault2GrownFile(t *testing.T) {
	path, content := image(t, t.TempDir(), 1<<20)
	for _, d := range []*Device{openDevice(t, path, Options{}), openDevice(t, attach(t, path), Options{})} {
		must(t, os.Truncate(path, 2<<20))
		if d.Bytes() != 1<<20 {
			t.Errorf("%d bytes", d.Bytes())
		}
		sameBytes(t, "the device", readAll(t, d), content)
		if _, err := d.ReadAt(make([]byte, 1), 1<<20); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		must(t, os.Truncate(path, 1<<20))
	}
}

// fault 19
func TestFault19SectorsOf4KiB(t *testing.T) {
	path, content := image(t, dirOn(t, "ext4"), 1<<20)
	loop := attach(t, path, "-b", "4096")
	block := attach(t, loop, "-b", "4096")
	for _, path := range []string{loop, block} {
		d := openDevice(t, path, Options{})
		if d.Info().LogicalBlockBytes != 4096 {
			t.Errorf("%s: blocks of %d bytes", path, d.Info().LogicalBlockBytes)
		}
		b := make([]byte, 512)
		_, err := d.ReadAt(b, 512)
		must(t, err)
		sameBytes(t, path, b, content[512:1024])
	}
}

// fault 22: the kernel leaves off what fills no sector, the image does not.
func TestFault22TailOfALoopDevice(t *testing.T) {
	path, content := image(t, dirOn(t, "ext4"), 100*512+99)
	whole, limited := attach(t, path), attach(t, path, "--sizelimit", "51200")
	d := openDevice(t, whole, readWrite)
	sameBytes(t, "the device", readAll(t, d), content)
	must(t, d.Close())
	if n := openDevice(t, limited, readWrite).Bytes(); n != 51200 {
		t.Errorf("with a limit of 51200: %d bytes", n)
	}
}

// fault 22: a tail is read from the medium, not from the cache that it was
// written to.
func TestFault22TailIsReadFromTheMedium(t *testing.T) {
	path, _ := image(t, dirOn(t, "ext4"), 8192+100)
	d := openDevice(t, path, readWrite)
	tail := random(100, 7)
	_, err := d.WriteAt(tail, 8192)
	must(t, err)
	b := make([]byte, 100)
	_, err = d.ReadAt(b, 8192)
	must(t, err)
	sameBytes(t, "the tail", b, tail)
	if st, err := os.Stat(path); err != nil || st.Size() != 8292 {
		t.Errorf("the file has %d bytes now: %v", st.Size(), err)
	}
}

func TestRangesOutsideAreRefused(t *testing.T) {
	path, content := image(t, t.TempDir(), 1<<20)
	d := openDevice(t, attach(t, path, "-o", "4096", "--sizelimit", "8192"), readWrite)
	for _, r := range [][2]int64{{-1, 1}, {8192, 1}, {4096, 4097}, {0, 8193}, {1 << 62, 1 << 62}, {0, -1}} {
		errs := map[string]error{"discard": d.Discard(r[0], r[1]), "zero": d.Zero(r[0], r[1])}
		if r[1] > 0 && r[1] < 1<<20 {
			_, errs["write"] = d.WriteAt(make([]byte, r[1]), r[0])
		}
		for op, err := range errs {
			if !errors.Is(err, unix.EINVAL) {
				t.Errorf("%s %v: %v", op, r, err)
			}
		}
	}
	if n, err := d.ReadAt(make([]byte, 8193), 0); n != 8192 || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if _, err := d.ReadAt(make([]byte, 1), -1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("read before the start: %v", err)
	}
	must(t, d.Close())
	after, err := os.ReadFile(path)
	must(t, err)
	sameBytes(t, "the file", after, content)
}

func TestDataGoesPastThePageCache(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		path := filepath.Join(dirOn(t, fsType), "new")
		d := openDevice(t, path, Options{Write: true, CreateBytes: 4 << 20})
		b := AlignedBuffer(1 << 20)
		copy(b, random(len(b), 3))
		_, err := d.WriteAt(b, 1<<20)
		must(t, err)
		_, err = d.ReadAt(b, 1<<20)
		must(t, err)
		if pages := residentPages(t, path); len(pages) > 0 {
			t.Errorf("%s: pages %v are in the cache", fsType, pages)
		}
	}
}

// residentPages are the pages of a file that are in the page cache.
func residentPages(t *testing.T, path string) (resident []int) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	st, err := f.Stat()
	must(t, err)
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(m)
	pages := make([]byte, len(m)/pageBytes)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for nr, p := range pages {
		if p&1 != 0 {
			resident = append(resident, nr)
		}
	}
	return resident
}

// Writers whose ranges meet inside a block do not undo one another's work.
func TestConcurrentWritesThatShareABlock(t *testing.T) {
	dir := dirOn(t, "xfs")
	file, _ := image(t, dir, fileBytes)
	blockDir := filepath.Join(dir, "block")
	must(t, os.Mkdir(blockDir, 0o755))
	_, block := blockDevice(t, blockDir, fileBytes)
	for _, path := range []string{file, block} {
		d := openDevice(t, path, readWrite)
		want := random(fileBytes, 99)
		const pieceSize = 5000 // ends inside a block each time
		var writers sync.WaitGroup
		for at := 0; at < fileBytes; at += pieceSize {
			writers.Go(func() {
				end := min(at+pieceSize, fileBytes)
				if _, err := d.WriteAt(want[at:end], int64(at)); err != nil {
					t.Error(err)
				}
			})
		}
		writers.Wait()
		sameBytes(t, path, readAll(t, d), want)
	}
}

// fault 47
func TestFault47FlushFailsForEver(t *testing.T) {
	path, _ := image(t, t.TempDir(), 8192)
	d := openDevice(t, path, readWrite)
	must(t, d.Flush())
	// As if the kernel had reported a lost write, which it does once.
	if err := d.sync(func(int) error { return unix.EIO }); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	for range 3 {
		if err := d.Flush(); !errors.Is(err, unix.EIO) {
			t.Errorf("a flush after a failed one: %v", err)
		}
	}
	if err := d.WriteMark(Mark{ID: "x"}); !errors.Is(err, unix.EIO) {
		t.Errorf("a mark after a failed flush: %v", err)
	}
	if _, err := d.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("reading must go on: %v", err)
	}
}

func TestFlushFindsATruncatedDestination(t *testing.T) {
	path, _ := image(t, t.TempDir(), 8192)
	d := openDevice(t, path, readWrite)
	must(t, os.Truncate(path, 4096))
	if err := d.Flush(); !errors.Is(err, ErrSourceShrunk) {
		t.Error(err)
	}
}

func TestAlignedBuffer(t *testing.T) {
	for _, n := range []int{0, 1, 4096, 1 << 20} {
		b := AlignedBuffer(n)
		if len(b) != n || cap(b) != n || uintptr(unsafe.Pointer(unsafe.SliceData(b)))%4096 != 0 {
			t.Errorf("%d: len %d cap %d at %p", n, len(b), cap(b), unsafe.SliceData(b))
		}
	}
}
