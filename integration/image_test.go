package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// image is what is known of a file made by a test.
type image struct {
	bytes     int64
	dataBytes int64 // what is neither a hole nor zeros
	sum       string
}

// mixture says which of a hundred pieces of an image are data and which are holes;
// the rest are zeros that take space.
type mixture struct{ data, holes int }

var (
	mixed = mixture{data: 55, holes: 25}
	solid = mixture{data: 100}
)

// makeImage makes a file of random data, holes and zeros, always the same for the
// same seed. The pieces have from 4 KiB to 4 MiB.
func makeImage(t testing.TB, path string, bytes int64, seed uint64, m mixture) image {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(bytes); err != nil {
		t.Fatal(err)
	}
	made := fillImage(t, f, bytes, seed, m)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return made
}

// fillImage writes an image into something that reads as zeros.
func fillImage(t testing.TB, f io.WriterAt, bytes int64, seed uint64, m mixture) image {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	made, sum, zeros, buffer := image{bytes: bytes}, sha256.New(), make([]byte, 4*mib), make([]byte, 4*mib)
	for off := int64(0); off < bytes; {
		n := min(4*kib<<rng.IntN(11), bytes-off)
		piece := zeros[:n]
		kind := rng.IntN(100)
		if kind < m.data {
			piece = buffer[:n]
			_, _ = random.Read(piece) // never fails
			made.dataBytes += n
		}
		if kind < m.data || kind >= m.data+m.holes {
			if _, err := f.WriteAt(piece, off); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = sum.Write(piece) // never fails
		off += n
	}
	made.sum = hex.EncodeToString(sum.Sum(nil))
	return made
}

// sumOf is the SHA-256 of the first bytes of a file or device.
func sumOf(t testing.TB, path string, bytes int64) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if n, err := io.Copy(sum, io.LimitReader(f, bytes)); err != nil || n < bytes {
		t.Fatalf("read %s: %d of %d bytes, %v", path, n, bytes, err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// wantWhole fails the test unless path holds the image, and no more.
func wantWhole(t testing.TB, path string, want image) {
	t.Helper()
	if got := sizeOf(t, path); got != want.bytes {
		t.Fatalf("%s has %d bytes, want %d", path, got, want.bytes)
	}
	if got := sumOf(t, path, want.bytes); got != want.sum {
		t.Fatalf("%s is not what the source was: SHA-256 %s, want %s", path, got, want.sum)
	}
}

// wantEmptied fails the test unless a source takes less than a hundredth of what
// the image did.
func wantEmptied(t testing.TB, path string, was image) {
	t.Helper()
	if got := allocated(t, path); got > was.dataBytes/100 {
		t.Errorf("the source still takes %d bytes of %d", got, was.dataBytes)
	}
}

func statOf(t testing.TB, path string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t)
}

// sizeOf is the size of a file or block device.
func sizeOf(t testing.TB, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// allocated is the space that a file takes.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	return statOf(t, path).Blocks * 512
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// overwrite changes bytes of a file in place.
func overwrite(t testing.TB, path string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// copyFile copies contents alone, to a name that is free.
func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestImagesAreTheSameForTheSameSeed(t *testing.T) {
	dir := t.TempDir()
	first := makeImage(t, filepath.Join(dir, "a"), 24*mib, 7, mixed)
	second := makeImage(t, filepath.Join(dir, "b"), 24*mib, 7, mixed)
	other := makeImage(t, filepath.Join(dir, "c"), 24*mib, 8, mixed)
	if first != second || first.sum == other.sum {
		t.Errorf("seed 7: %+v and %+v, seed 8: %+v", first, second, other)
	}
	wantWhole(t, filepath.Join(dir, "b"), first)
	taken := allocated(t, filepath.Join(dir, "a"))
	if taken <= first.dataBytes || taken >= first.bytes {
		t.Errorf("%d bytes taken of %d, with %d of data: there are not both holes and zeros", taken, first.bytes, first.dataBytes)
	}
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
