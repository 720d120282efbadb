package loopdev

import (
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func cachedDevice(t *testing.T, path string, o Options) Cached {
	t.Helper()
	c, ok := openDevice(t, path, o).Cached()
	if !ok {
		t.Fatalf("%s cannot be cached", path)
	}
	return c
}

func TestCachedRefusals(t *testing.T) {
	path, _ := image(t, t.TempDir(), 1<<20)
	reading, both := cachedDevice(t, path, Options{}), cachedDevice(t, path, readWrite)
	b := make([]byte, 4096)
	for name, c := range map[string]struct {
		do   func() (int, error)
		want error
	}{
		"write to a device opened for reading": {func() (int, error) { return reading.WriteAt(b, 0) }, ErrReadOnly},
		"write across the end":                 {func() (int, error) { return both.WriteAt(b, 1<<20-1) }, unix.EINVAL},
		"read across the end":                  {func() (int, error) { return both.ReadAt(b, 1<<20-1) }, unix.EINVAL},
		"read before the start":                {func() (int, error) { return both.ReadAt(b, -1) }, unix.EINVAL},
	} {
		if n, err := c.do(); n != 0 || !errors.Is(err, c.want) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
}

// fault 1: what is not there is an error and never zeros, in the cache as well.
func TestFault1CachedTruncatedFile(t *testing.T) {
	path, _ := image(t, t.TempDir(), 1<<20)
	c := cachedDevice(t, path, readWrite)
	b := make([]byte, 64<<10)
	if _, err := c.ReadAt(b, 480<<10); err != nil { // so that the cache has it
		t.Fatal(err)
	}
	must(t, os.Truncate(path, 512<<10))
	if n, err := c.ReadAt(b, 480<<10); n != 32<<10 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// Other things than files have caches that others see through other descriptors.
func TestCachedIsForFiles(t *testing.T) {
	path, _ := image(t, t.TempDir(), 1<<20)
	if _, ok := openDevice(t, attach(t, path), readWrite).Cached(); ok {
		t.Error("a loop device was cached")
	}
}

func TestCachedClosed(t *testing.T) {
	path, _ := image(t, t.TempDir(), 1<<20)
	c := cachedDevice(t, path, readWrite)
	must(t, c.d.Close())
	if _, err := c.WriteAt(make([]byte, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write: %v", err)
	}
}

// The cache has the pages that were asked for, and none beside them, which somebody may
// be about to write directly.
func TestCachedReadsNothingAhead(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		path, _ := image(t, dirOn(t, fsType), 1<<20)
		c := cachedDevice(t, path, readWrite)
		must(t, c.d.Flush())
		must(t, unix.Fadvise(int(c.d.main.Fd()), 0, 0, unix.FADV_DONTNEED))
		page := make([]byte, pageBytes)
		for _, nr := range []int64{7, 8, 9, 40} { // a sequence, too
			_, err := c.ReadAt(page, nr*pageBytes)
			must(t, err)
		}
		_, err := c.WriteAt(page, 50*pageBytes)
		must(t, err)
		if got, want := residentPages(t, path), []int{7, 8, 9, 40, 50}; !slices.Equal(got, want) {
			t.Errorf("%s: pages %v are cached, want %v", fsType, got, want)
		}
	}
}
