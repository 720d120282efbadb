package loopdev

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A loop device over a part of a file shows that part, and what is discarded of it is
// not what a cache remembers.
func TestShow(t *testing.T) {
	file, content := image(t, t.TempDir(), 1<<20+300)
	d := openDevice(t, file, Options{Write: true, Exclusive: true})
	a, err := d.Show()
	must(t, err)
	got := make([]byte, 1<<20)
	read := func() {
		t.Helper()
		p := AlignedBuffer(len(got))
		_, err := a.File().ReadAt(p, 0)
		must(t, err)
		copy(got, p)
	}
	read()
	sameBytes(t, "the loop device", got, content[:1<<20])
	b, err := BackingOf(a.Dev())
	must(t, err)
	if !b.ReadOnly || !b.Is(d) || b.Path != file {
		t.Errorf("behind it is %+v", b)
	}
	if other := openDevice(t, otherFile(t), Options{}); b.Is(other) {
		t.Error("another file counts as the same")
	}
	if _, err := a.File().WriteAt(AlignedBuffer(512), 0); err == nil {
		t.Error("the loop device can be written to")
	}
	must(t, d.Discard(64<<10, 64<<10))
	read()
	if !bytes.Equal(got[64<<10:128<<10], make([]byte, 64<<10)) {
		t.Error("a range that was discarded still shows what it held")
	}
	must(t, a.Close())
	gone(t, a.Dev())
}

// otherFile is another file.
func otherFile(t *testing.T) string {
	t.Helper()
	file, _ := image(t, t.TempDir(), 4096)
	return file
}

// gone waits until nothing is attached to a loop device: it goes when its last user
// does, which may be a program that looks at every new device.
func gone(t *testing.T, dev uint64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := BackingOf(dev)
		if errors.Is(err, ErrBackingFile) || errors.Is(err, unix.ENXIO) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the loop device stays: %v", err)
		}
	}
}

func TestAttachFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, make([]byte, 64<<10), 0o600))
	a, err := AttachFile(path)
	must(t, err)
	p := AlignedBuffer(4096)
	copy(p, "written")
	_, err = a.File().WriteAt(p, 4096)
	must(t, errors.Join(err, a.File().Sync()))
	got, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got[4096:8192], p) {
		t.Error("the file does not hold what was written to the loop device")
	}
	b, err := BackingOf(a.Dev())
	must(t, err)
	if b.ReadOnly || b.Path != path {
		t.Errorf("behind it is %+v", b)
	}
	must(t, a.Close())
	gone(t, a.Dev())
	if _, err := AttachFile(t.TempDir()); !errors.Is(err, ErrWrongType) {
		t.Errorf("a directory: %v", err)
	}
	over, err := openDevice(t, attach(t, path), Options{}).Show()
	must(t, err) // a loop device over a file is no block device
	must(t, over.Close())
}
