package faultfs

import (
	"context"
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// file is an open file. It holds a descriptor of the file behind.
type file struct {
	node *node
	fd   int
}

var (
	_ fs.FileReader    = (*file)(nil)
	_ fs.FileWriter    = (*file)(nil)
	_ fs.FileFlusher   = (*file)(nil)
	_ fs.FileReleaser  = (*file)(nil)
	_ fs.FileAllocater = (*file)(nil)
	_ fs.FileLseeker   = (*file)(nil)
)

// path leads to the file behind, whether it has a name or not.
func (f *file) path() string { return fmt.Sprintf("/proc/self/fd/%d", f.fd) }

func (f *file) strike(ctx context.Context, op Op, off, n int64) effect {
	return f.node.fsys.faults.strike(ctx, operation{op: op, name: f.node.name(), off: off, len: n})
}

// Read implements fs.FileReader.
func (f *file) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	e := f.strike(ctx, Read, off, int64(len(dest)))
	if e.errno != 0 {
		return nil, e.errno
	}
	n, err := unix.Pread(f.fd, dest[:e.mostBytes], off)
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

// Write implements fs.FileWriter.
func (f *file) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	e := f.strike(ctx, Write, off, int64(len(data)))
	if e.errno != 0 || e.lose {
		return uint32(e.mostBytes), e.errno
	}
	log := f.node.fsys.log
	log.lock()
	defer log.unlock()
	n, err := unix.Pwrite(f.fd, data[:e.mostBytes], off)
	if err != nil {
		return 0, fs.ToErrno(err)
	}
	if log != nil {
		log.add(record{kind: written, ino: f.node.ino(), off: off, data: append([]byte(nil), data[:n]...)})
	}
	return uint32(n), 0
}

// Flush implements fs.FileFlusher; closing a descriptor makes nothing durable.
func (f *file) Flush(context.Context) syscall.Errno { return 0 }

// Release implements fs.FileReleaser.
func (f *file) Release(context.Context) syscall.Errno {
	f.node.mu.Lock()
	defer f.node.mu.Unlock()
	delete(f.node.open, f)
	return fs.ToErrno(unix.Close(f.fd))
}

// Allocate implements fs.FileAllocater.
func (f *file) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	if errno := f.strike(ctx, Allocate, int64(off), int64(size)).errno; errno != 0 {
		return errno
	}
	log := f.node.fsys.log
	log.lock()
	defer log.unlock()
	if err := unix.Fallocate(f.fd, mode, int64(off), int64(size)); err != nil {
		return fs.ToErrno(err)
	}
	log.add(record{kind: allocated, ino: f.node.ino(), off: int64(off), length: int64(size), mode: mode})
	return 0
}

// Lseek implements fs.FileLseeker.
func (f *file) Lseek(ctx context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	if errno := f.strike(ctx, Seek, int64(off), 1).errno; errno != 0 {
		return 0, errno
	}
	at, err := unix.Seek(f.fd, int64(off), int(whence))
	return uint64(at), fs.ToErrno(err)
}

// setattr changes what an open file can be asked to change: size, mode and times.
func (f *file) setattr(ctx context.Context, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if err := unix.Ftruncate(f.fd, int64(size)); err != nil {
			return fs.ToErrno(err)
		}
	}
	if mode, ok := in.GetMode(); ok {
		if err := unix.Fchmod(f.fd, mode); err != nil {
			return fs.ToErrno(err)
		}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	if t, ok := in.GetATime(); ok {
		times[0] = unix.NsecToTimespec(t.UnixNano())
	}
	if t, ok := in.GetMTime(); ok {
		times[1] = unix.NsecToTimespec(t.UnixNano())
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, f.path(), times, 0); err != nil {
		return fs.ToErrno(err)
	}
	return f.node.Getattr(ctx, f, out)
}

// directory is an open directory.
type directory struct {
	fs.FileHandle
	node *node
}

var (
	_ fs.FileReaddirenter = (*directory)(nil)
	_ fs.FileSeekdirer    = (*directory)(nil)
	_ fs.FileReleasedirer = (*directory)(nil)
	_ fs.FileFsyncdirer   = (*directory)(nil)
)

// Readdirent implements fs.FileReaddirenter.
func (d *directory) Readdirent(ctx context.Context) (*fuse.DirEntry, syscall.Errno) {
	return d.FileHandle.(fs.FileReaddirenter).Readdirent(ctx)
}

// Seekdir implements fs.FileSeekdirer.
func (d *directory) Seekdir(ctx context.Context, off uint64) syscall.Errno {
	return d.FileHandle.(fs.FileSeekdirer).Seekdir(ctx, off)
}

// Releasedir implements fs.FileReleasedirer.
func (d *directory) Releasedir(ctx context.Context, flags uint32) {
	d.FileHandle.(fs.FileReleasedirer).Releasedir(ctx, flags)
}

// Fsyncdir implements fs.FileFsyncdirer.
func (d *directory) Fsyncdir(ctx context.Context, _ uint32) syscall.Errno {
	return d.node.syncDirectory(ctx)
}
