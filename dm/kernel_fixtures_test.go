//go:build testkernel

package dm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mib          = 1 << 20
	mibSectors   = mib / SectorBytes
	linearBytes  = 8 * mib
	linearOffset = 4 * mib // on the disk
)

// disks are the test kernel's; both are blank when a test program starts.
func disks(t *testing.T) (first, second string) {
	t.Helper()
	nodes := strings.Fields(os.Getenv("DECANT_TEST_DISKS"))
	if len(nodes) < 2 {
		t.Fatalf("two disks are needed, DECANT_TEST_DISKS has %v", nodes)
	}
	return nodes[0], nodes[1]
}

func open(t *testing.T) *Control {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// create makes a device without a table that is removed after the test, if it is
// still there under this name, and resumed first so that nothing hangs on it.
func create(t *testing.T, c *Control, name, uuid string) Info {
	t.Helper()
	info, err := c.Create(name, uuid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if info, err := c.Info(name); err == nil && info.Suspended {
			_ = c.Resume(name) // a device without a table cannot be, and need not
		}
		// With udev, its probing may keep the device busy for a moment.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.RemoveRetry(ctx, name); err != nil && !errors.Is(err, unix.ENXIO) {
			t.Error(err)
		}
	})
	return info
}

// activate makes a device with that table and starts it.
func activate(t *testing.T, c *Control, name string, table ...Target) string {
	t.Helper()
	create(t, c, name, "")
	must(t, c.Load(name, table))
	must(t, c.Resume(name))
	return Path(name)
}

func linear(disk string) Target {
	return Target{0, linearBytes / SectorBytes, "linear", fmt.Sprintf("%s %d", disk, linearOffset/SectorBytes)}
}

func zero(bytes uint64) Target { return Target{0, bytes / SectorBytes, "zero", ""} }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pwrite and pread go past the page cache, so that they return what the device said.
func pwrite(path string, off int64, fill byte) error {
	return direct(path, func(f *os.File, block []byte) error {
		copy(block, bytes.Repeat([]byte{fill}, len(block)))
		_, err := f.WriteAt(block, off)
		return err
	})
}

func pread(path string, off int64) (first byte, err error) {
	err = direct(path, func(f *os.File, block []byte) error {
		_, err := f.ReadAt(block, off)
		first = block[0]
		return err
	})
	return first, err
}

func direct(path string, do func(f *os.File, block []byte) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer unix.Munmap(block)
	return do(f, block)
}

func wantByte(t *testing.T, path string, off int64, want byte) {
	t.Helper()
	if got, err := pread(path, off); err != nil || got != want {
		t.Errorf("%s at byte %d: %#x, %v, want %#x", path, off, got, err, want)
	}
}

func wantErrno(t *testing.T, err error, want unix.Errno) {
	t.Helper()
	var wrapped *Error
	if !errors.Is(err, want) || !errors.As(err, &wrapped) || wrapped.Op == "" {
		t.Errorf("got %v, want %v in an Error", err, want)
	}
}

func wantGone(t *testing.T, path string) {
	t.Helper()
	if exists(path) {
		t.Errorf("%s is still there", path)
	}
}

// within fails the test if the channel stays silent.
func within[T any](t *testing.T, limit time.Duration, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(limit):
		t.Fatalf("%s: nothing within %v", what, limit)
		panic("unreachable")
	}
}

func async(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}
