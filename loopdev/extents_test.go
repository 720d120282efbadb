package loopdev

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// sparse is a file with data at the given places and holes around it.
func sparse(t *testing.T, dir string, size int64, data ...[2]int64) string {
	t.Helper()
	path := filepath.Join(dir, "sparse")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(size))
	for _, r := range data {
		_, err := f.WriteAt(random(int(r[1]-r[0]), 5), r[0])
		must(t, err)
	}
	must(t, f.Sync())
	return path
}

func extentsOf(t *testing.T, d *Device) (out [][2]int64) {
	t.Helper()
	for off := int64(0); ; {
		start, end, err := d.NextData(off)
		must(t, err)
		if start == d.Bytes() {
			if end != start {
				t.Errorf("without data the end is %d", end)
			}
			return out
		}
		out, off = append(out, [2]int64{start, end}), end
	}
}

func wantExtents(t *testing.T, what string, d *Device, want ...[2]int64) {
	t.Helper()
	got := extentsOf(t, d)
	if len(got) != len(want) {
		t.Errorf("%s: data at %v, want %v", what, got, want)
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: data at %v, want %v", what, got, want)
		}
	}
}

// fault 9
func TestFault9HolesAreFound(t *testing.T) {
	const k = 1 << 10
	for _, fsType := range punching {
		path := sparse(t, dirOn(t, fsType), 10<<20, [2]int64{1024 * k, 1088 * k}, [2]int64{4096 * k, 4160 * k})
		wantExtents(t, fsType, openDevice(t, path, Options{}), [2]int64{1024 * k, 1088 * k}, [2]int64{4096 * k, 4160 * k})
		// A part that begins and ends inside data.
		part := openDevice(t, attach(t, path, "-o", "1057280", "--sizelimit", "3170304"), Options{})
		wantExtents(t, fsType+" part", part, [2]int64{0, 1088*k - 1057280}, [2]int64{4096*k - 1057280, 3170304})
		// A part without any.
		empty := openDevice(t, attach(t, path, "-o", "2097152", "--sizelimit", "65536"), Options{})
		wantExtents(t, fsType+" empty part", empty)
		for _, c := range []struct {
			off, n int64
			want   bool
		}{{0, 1024 * k, true}, {0, 1024*k + 1, false}, {1088 * k, 100, true}, {1088*k - 1, 100, false}, {5 << 20, 5 << 20, true}} {
			got, err := openDevice(t, path, Options{}).ReadsZero(c.off, c.n)
			if got != c.want || err != nil {
				t.Errorf("%s: ReadsZero(%d, %d) = %v, %v", fsType, c.off, c.n, got, err)
			}
		}
	}
}

// fault 9: what is in the cache over space that is only reserved is data.
func TestFault9DirtyPageOverReservedSpace(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		path := filepath.Join(dirOn(t, fsType), "reserved")
		f, err := os.Create(path)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		must(t, unix.Fallocate(int(f.Fd()), 0, 0, 1<<20))
		must(t, f.Sync())
		d := openDevice(t, path, Options{})
		_, err = f.WriteAt(random(4096, 1), 512<<10)
		must(t, err)
		start, _, err := d.NextData(0)
		must(t, err)
		if start > 512<<10 {
			t.Errorf("%s: the first data is at %d", fsType, start)
		}
	}
}

func TestFileSystemWithoutHolesIsAllData(t *testing.T) {
	path := sparse(t, dirOn(t, "ramfs"), 1<<20)
	d := openDevice(t, path, Options{})
	wantExtents(t, "ramfs", d, [2]int64{0, 1 << 20})
	if zero, err := d.ReadsZero(0, 4096); zero || err != nil {
		t.Error(zero, err)
	}
	_, block := blockDevice(t, t.TempDir(), 1<<20)
	d = openDevice(t, block, Options{})
	wantExtents(t, "block", d, [2]int64{0, 1 << 20})
	if zero, err := d.ReadsZero(0, 4096); zero || err != nil {
		t.Error(zero, err)
	}
}

// fault 1: what was cut off is no hole.
func TestFault1TruncatedEndIsNoHole(t *testing.T) {
	for _, fsType := range punching {
		path, _ := image(t, dirOn(t, fsType), 1<<20)
		d := openDevice(t, path, Options{})
		must(t, os.Truncate(path, 512<<10))
		if start, end, err := d.NextData(512 << 10); !errors.Is(err, ErrSourceShrunk) {
			t.Errorf("%s: NextData = %d, %d, %v", fsType, start, end, err)
		}
		if zero, err := d.ReadsZero(600<<10, 4096); zero || !errors.Is(err, ErrSourceShrunk) {
			t.Errorf("%s: ReadsZero = %v, %v", fsType, zero, err)
		}
	}
}

func TestNextDataIsSafeForConcurrentUse(t *testing.T) {
	path := sparse(t, dirOn(t, "ext4"), 8<<20, [2]int64{1 << 20, 1<<20 + 4096}, [2]int64{5 << 20, 5<<20 + 8192})
	d := openDevice(t, path, Options{})
	var readers sync.WaitGroup
	for i := range 4 {
		off, want := int64(0), [2]int64{1 << 20, 1<<20 + 4096}
		if i%2 == 1 {
			off, want = 3<<20, [2]int64{5 << 20, 5<<20 + 8192}
		}
		readers.Go(func() {
			for range 2000 {
				if start, end, err := d.NextData(off); err != nil || start != want[0] || end != want[1] {
					t.Errorf("NextData(%d) = %d, %d, %v", off, start, end, err)
					return
				}
			}
		})
	}
	readers.Wait()
}

func TestHoldsData(t *testing.T) {
	dir := dirOn(t, "ext4")
	path := filepath.Join(dir, "file")
	write := func(size int64, b []byte, off int64) {
		must(t, os.WriteFile(path, nil, 0o600))
		must(t, os.Truncate(path, size))
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt(b, off)
		must(t, err)
		must(t, f.Close())
	}
	for _, c := range []struct {
		name string
		b    []byte
		off  int64
		want bool
	}{
		{"only a hole", nil, 0, false},
		{"written zeros", make([]byte, 1<<20), 1 << 20, false},
		{"the first byte", []byte{1}, 0, true},
		{"the last byte", []byte{1}, 20<<20 + 6, true},
		{"behind zeros", append(make([]byte, 3<<20), 1), 5 << 20, true},
	} {
		write(20<<20+7, c.b, c.off)
		d := openDevice(t, path, Options{})
		got, err := d.HoldsData()
		if got != c.want || err != nil {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
		must(t, d.Close())
	}
	write(20<<20, []byte{1}, 0) // outside of the part
	got, err := openDevice(t, attach(t, path, "-o", "512"), Options{}).HoldsData()
	if got || err != nil {
		t.Errorf("a part without data: %v, %v", got, err)
	}
}

func TestHoldsDataOfABlockDevice(t *testing.T) {
	for _, c := range []struct {
		at   int64
		want bool
	}{{-1, false}, {0, true}, {32<<20 - 1, true}, {32 << 20 / 65 * 30, true}} {
		path := sparse(t, t.TempDir(), 32<<20)
		if c.at >= 0 {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt(random(1, 1), c.at)
			must(t, err)
			must(t, f.Close())
		}
		d := openDevice(t, attach(t, attach(t, path)), Options{})
		got, err := d.HoldsData()
		if got != c.want || err != nil {
			t.Errorf("a byte at %d: %v, %v", c.at, got, err)
		}
	}
}

func TestAllocatedBytesOfAPart(t *testing.T) {
	for _, fsType := range punching {
		path := sparse(t, dirOn(t, fsType), 8<<20, [2]int64{0, 1 << 20}, [2]int64{2 << 20, 4 << 20})
		d := openDevice(t, attach(t, path, "-o", "3145728"), readWrite)
		if n, err := d.AllocatedBytes(); n != 1<<20 || err != nil {
			t.Errorf("%s: %d, %v", fsType, n, err)
		}
		must(t, d.Discard(0, 512<<10))
		if n, err := d.AllocatedBytes(); n != 512<<10 || err != nil {
			t.Errorf("%s after a discard: %d, %v", fsType, n, err)
		}
	}
}

// fault 8
func TestFault8SharedExtentsAreCounted(t *testing.T) {
	for _, fsType := range []string{"xfs", "btrfs"} {
		path, _ := image(t, dirOn(t, fsType), 4<<20)
		d := openDevice(t, path, readWrite)
		if n, err := d.SharedBytes(); n != 0 || err != nil {
			t.Errorf("%s, alone: %d, %v", fsType, n, err)
		}
		run(t, "cp", "--reflink=always", path, path+".clone")
		if n, err := d.SharedBytes(); n != 4<<20 || err != nil {
			t.Errorf("%s, cloned: %d, %v", fsType, n, err)
		}
		part := openDevice(t, attach(t, path+".clone", "-o", "1048576", "--sizelimit", "1048576"), Options{})
		if n, err := part.SharedBytes(); n != 1<<20 || err != nil {
			t.Errorf("%s, a part: %d, %v", fsType, n, err)
		}
		_, err := d.WriteAt(AlignedBuffer(1<<20), 0)
		must(t, err)
		must(t, d.Flush())
		if n, err := d.SharedBytes(); n != 3<<20 || err != nil {
			t.Errorf("%s, partly rewritten: %d, %v", fsType, n, err)
		}
	}
}

// Many extents need more than one FIEMAP call.
func TestManyExtentsAreAllCounted(t *testing.T) {
	var data [][2]int64
	for off := int64(0); off < 8<<20; off += 8192 {
		data = append(data, [2]int64{off, off + 4096})
	}
	path := sparse(t, dirOn(t, "ext4"), 8<<20+4096, data...)
	d := openDevice(t, attach(t, path, "-o", "4096"), Options{})
	if n, err := d.AllocatedBytes(); n != 4<<20-4096 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestBlockDeviceIsNotCountable(t *testing.T) {
	_, block := blockDevice(t, t.TempDir(), 1<<20)
	d := openDevice(t, block, Options{})
	for name, count := range map[string]func() (int64, error){"allocated": d.AllocatedBytes, "shared": d.SharedBytes, "free": d.FreeBytes} {
		if n, err := count(); !errors.Is(err, ErrNotCountable) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	must(t, d.SyncFS())
}

func TestSharedBytesWithoutFiemap(t *testing.T) {
	path, _ := image(t, dirOn(t, "tmpfs"), 1<<20)
	if n, err := openDevice(t, path, Options{}).SharedBytes(); !errors.Is(err, ErrNotCountable) {
		t.Error(n, err)
	}
}
