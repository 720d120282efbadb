//go:build testkernel

package inside

import (
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filesystem is a file system on a device of the test. It is unmounted after it.
type filesystem struct {
	s         *site
	dev, dir  string
	kind      string // ext4 or xfs, which needs 300 MiB
	options   string
	isMounted bool
}

// newFilesystem makes a file system and mounts it with the options.
func (s *site) newFilesystem(kind string, on *device, options ...string) *filesystem {
	s.Helper()
	flags := map[string][]string{"ext4": {"-q", "-F", "-b", "4096"}, "xfs": {"-q", "-f"}}[kind]
	s.do("mkfs."+kind, append(flags, on.path())...)
	f := &filesystem{s: s, dev: on.path(), kind: kind, options: strings.Join(options, ",")}
	var err error
	f.dir, err = os.MkdirTemp("/mnt", "fs")
	s.must(err)
	s.Cleanup(f.unmount)
	f.mount()
	return f
}

func (f *filesystem) mount() {
	f.s.Helper()
	f.s.must(unix.Mount(f.dev, f.dir, f.kind, 0, f.options))
	f.isMounted = true
}

func (f *filesystem) unmount() {
	f.s.Helper()
	if !f.isMounted {
		return
	}
	if err := unix.Unmount(f.dir, 0); err != nil {
		f.s.Errorf("unmount %s: %v", f.dir, err)
	}
	f.isMounted = false
}

// path is a path in the file system.
func (f *filesystem) path(name string) string { return filepath.Join(f.dir, name) }

// check unmounts the file system and fails the test if it is not sound.
func (f *filesystem) check() {
	f.s.Helper()
	f.unmount()
	if f.kind == "xfs" {
		f.s.do("xfs_repair", "-n", f.dev)
		return
	}
	f.s.do("e2fsck", "-fn", f.dev)
}

// blockOf is the byte of the device at which the file system keeps the block of 4 KiB
// with this byte of a file.
func (f *filesystem) blockOf(path string, off int64) int64 {
	f.s.Helper()
	const fibmap, blockBytes = 1, 4096 // FIBMAP of linux/fs.h
	file, err := os.Open(path)
	f.s.must(err)
	defer file.Close()
	block := int32(off / blockBytes)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), fibmap, uintptr(unsafe.Pointer(&block)))
	if errno != 0 || block == 0 {
		f.s.Fatalf("find byte %d of %s on the device: block %d, %v", off, path, block, errno)
	}
	return int64(block) * blockBytes
}
