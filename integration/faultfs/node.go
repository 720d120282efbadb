package faultfs

import (
	"context"
	"path"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a file or directory.
type node struct {
	fs.LoopbackNode
	fsys *FS

	mu   sync.Mutex
	open map[*file]bool // what was opened and not closed
}

func (f *FS) newNode(data *fs.LoopbackRoot) *node {
	return &node{LoopbackNode: fs.LoopbackNode{RootData: data}, fsys: f}
}

// The operations that faults and recording need; all others are those of the
// directory behind.
var (
	_ fs.NodeWrapChilder   = (*node)(nil)
	_ fs.NodeOpener        = (*node)(nil)
	_ fs.NodeCreater       = (*node)(nil)
	_ fs.NodeMkdirer       = (*node)(nil)
	_ fs.NodeUnlinker      = (*node)(nil)
	_ fs.NodeRmdirer       = (*node)(nil)
	_ fs.NodeRenamer       = (*node)(nil)
	_ fs.NodeLinker        = (*node)(nil)
	_ fs.NodeSymlinker     = (*node)(nil)
	_ fs.NodeMknoder       = (*node)(nil)
	_ fs.NodeTmpfiler      = (*node)(nil)
	_ fs.NodeSetattrer     = (*node)(nil)
	_ fs.NodeGetattrer     = (*node)(nil)
	_ fs.NodeStatxer       = (*node)(nil)
	_ fs.NodeGetxattrer    = (*node)(nil)
	_ fs.NodeSetxattrer    = (*node)(nil)
	_ fs.NodeRemovexattrer = (*node)(nil)
	_ fs.NodeStatfser      = (*node)(nil)
	_ fs.NodeFsyncer       = (*node)(nil)
	_ fs.NodeOpendirer     = (*node)(nil)
)

func (n *node) path() string { return filepath.Join(n.fsys.backing, n.Path(n.Root())) }

// name is the node's base name, that of the root is a slash.
func (n *node) name() string { return path.Base("/" + n.Path(n.Root())) }

func (n *node) ino() uint64 {
	if n.IsRoot() {
		return rootIno
	}
	return n.StableAttr().Ino
}

// WrapChild implements fs.NodeWrapChilder.
func (n *node) WrapChild(context.Context, fs.InodeEmbedder) fs.InodeEmbedder {
	return n.fsys.newNode(n.RootData)
}

// strike lets the faults of an operation on the node itself happen.
func (n *node) strike(ctx context.Context, op Op) syscall.Errno {
	return n.fsys.faults.strike(ctx, operation{op: op, name: n.name()}).errno
}

// strikeChild does so for an operation on a name in the directory.
func (n *node) strikeChild(ctx context.Context, op Op, name string) syscall.Errno {
	return n.fsys.faults.strike(ctx, operation{op: op, name: name}).errno
}

// Open implements fs.NodeOpener. The file behind is opened without O_DIRECT: the
// buffers here are not aligned.
func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.strike(ctx, Open); errno != 0 {
		return nil, 0, errno
	}
	fd, err := unix.Open(n.path(), backingFlags(flags), 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	if flags&unix.O_TRUNC != 0 {
		n.fsys.log.note(record{kind: truncated, ino: n.ino()})
	}
	return n.newFile(fd), openedFlags(flags), 0
}

// openedFlags leaves the kernel's own cutting and caching out where the caller wants
// no cache. Otherwise a short read would be taken for the end of the file.
func openedFlags(flags uint32) uint32 {
	if flags&unix.O_DIRECT != 0 {
		return fuse.FOPEN_DIRECT_IO
	}
	return 0
}

func (n *node) newFile(fd int) *file {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := &file{node: n, fd: fd}
	if n.open == nil {
		n.open = map[*file]bool{}
	}
	n.open[f] = true
	return f
}

// withPath lends a path of the node that works also if it is open and its name was
// removed.
func (n *node) withPath(use func(path string) syscall.Errno) syscall.Errno {
	n.mu.Lock()
	defer n.mu.Unlock()
	for f := range n.open {
		return use(f.path())
	}
	return use(n.path())
}

// Getattr implements fs.NodeGetattrer.
func (n *node) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return n.withPath(func(path string) syscall.Errno {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			return fs.ToErrno(err)
		}
		out.FromStat(&st)
		return 0
	})
}

// Statx implements fs.NodeStatxer.
func (n *node) Statx(_ context.Context, _ fs.FileHandle, flags, mask uint32, out *fuse.StatxOut) syscall.Errno {
	return n.withPath(func(path string) syscall.Errno {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, int(flags)&^unix.AT_SYMLINK_NOFOLLOW, int(mask), &st); err != nil {
			return fs.ToErrno(err)
		}
		out.FromStatx(&st)
		return 0
	})
}

func backingFlags(flags uint32) int {
	return int(flags)&^(unix.O_DIRECT|unix.O_APPEND|unix.O_CREAT|unix.O_EXCL|fuse.FMODE_EXEC) | unix.O_CLOEXEC
}

// Create implements fs.NodeCreater.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.strikeChild(ctx, Create, name); errno != 0 {
		return nil, nil, 0, errno
	}
	n.fsys.log.lock()
	defer n.fsys.log.unlock()
	fd, err := unix.Open(filepath.Join(n.path(), name), backingFlags(flags)|unix.O_CREAT|unix.O_EXCL, mode)
	if err != nil {
		return nil, nil, 0, fs.ToErrno(err)
	}
	child, errno := n.Lookup(ctx, name, out)
	if errno != 0 {
		_ = unix.Close(fd) // nothing was written to it
		return nil, nil, 0, errno
	}
	n.fsys.log.add(record{kind: created, dir: n.ino(), name: name, ino: child.StableAttr().Ino, mode: mode})
	return child, child.Operations().(*node).newFile(fd), openedFlags(flags), 0
}

// Mkdir implements fs.NodeMkdirer.
func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.fsys.log.lock()
	defer n.fsys.log.unlock()
	child, errno := n.LoopbackNode.Mkdir(ctx, name, mode, out)
	if errno == 0 {
		n.fsys.log.add(record{kind: directoryMade, dir: n.ino(), name: name, ino: child.StableAttr().Ino, mode: mode})
	}
	return child, errno
}

// Unlink implements fs.NodeUnlinker.
func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	if errno := n.strikeChild(ctx, Unlink, name); errno != 0 {
		return errno
	}
	n.fsys.log.lock()
	defer n.fsys.log.unlock()
	errno := n.LoopbackNode.Unlink(ctx, name)
	if errno == 0 {
		n.fsys.log.add(record{kind: unlinked, dir: n.ino(), name: name})
	}
	return errno
}

// Rmdir implements fs.NodeRmdirer.
func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	n.fsys.log.lock()
	defer n.fsys.log.unlock()
	errno := n.LoopbackNode.Rmdir(ctx, name)
	if errno == 0 {
		n.fsys.log.add(record{kind: unlinked, dir: n.ino(), name: name})
	}
	return errno
}

// Rename implements fs.NodeRenamer. Of the flags it knows RENAME_NOREPLACE.
func (n *node) Rename(ctx context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if errno := n.strikeChild(ctx, Rename, name); errno != 0 {
		return errno
	}
	to, ok := newParent.(*node)
	if !ok || flags&^unix.RENAME_NOREPLACE != 0 {
		return syscall.EINVAL
	}
	n.fsys.log.lock()
	defer n.fsys.log.unlock()
	err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(n.path(), name), unix.AT_FDCWD, filepath.Join(to.path(), newName), uint(flags))
	if err != nil {
		return fs.ToErrno(err)
	}
	n.fsys.log.add(record{kind: renamed, dir: n.ino(), name: name, newDir: to.ino(), newName: newName})
	return 0
}

// What leaves names that a Log could not follow is refused while there is one.

// Link implements fs.NodeLinker.
func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if n.fsys.log != nil {
		return nil, syscall.EPERM
	}
	return n.LoopbackNode.Link(ctx, target, name, out)
}

// Symlink implements fs.NodeSymlinker.
func (n *node) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if n.fsys.log != nil {
		return nil, syscall.EPERM
	}
	return n.LoopbackNode.Symlink(ctx, target, name, out)
}

// Mknod implements fs.NodeMknoder.
func (n *node) Mknod(ctx context.Context, name string, mode, rdev uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if n.fsys.log != nil {
		return nil, syscall.EPERM
	}
	return n.LoopbackNode.Mknod(ctx, name, mode, rdev, out)
}

// Tmpfile implements fs.NodeTmpfiler.
func (n *node) Tmpfile(context.Context, uint32, uint32, *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EOPNOTSUPP
}

// Setattr implements fs.NodeSetattrer.
func (n *node) Setattr(ctx context.Context, handle fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	size, resizes := in.GetSize()
	op := SetTimes
	if resizes {
		op = Truncate
	}
	if errno := n.strike(ctx, op); errno != 0 {
		return errno
	}
	n.fsys.log.lock()
	defer n.fsys.log.unlock()
	var errno syscall.Errno
	if f, ok := handle.(*file); ok { // it may have no name any more
		errno = f.setattr(ctx, in, out)
	} else {
		errno = n.LoopbackNode.Setattr(ctx, nil, in, out)
	}
	if errno == 0 && resizes {
		n.fsys.log.add(record{kind: truncated, ino: n.ino(), off: int64(size)})
	}
	return errno
}

// Getxattr implements fs.NodeGetxattrer.
func (n *node) Getxattr(ctx context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	if errno := n.strike(ctx, GetAttribute); errno != 0 {
		return 0, errno
	}
	var size int
	errno := n.withPath(func(path string) (errno syscall.Errno) {
		var err error
		size, err = unix.Getxattr(path, attr, dest)
		return fs.ToErrno(err)
	})
	return uint32(size), errno
}

// Setxattr implements fs.NodeSetxattrer.
func (n *node) Setxattr(ctx context.Context, attr string, data []byte, flags uint32) syscall.Errno {
	if errno := n.strike(ctx, SetAttribute); errno != 0 {
		return errno
	}
	n.fsys.log.lock()
	defer n.fsys.log.unlock()
	errno := n.withPath(func(path string) syscall.Errno { return fs.ToErrno(unix.Setxattr(path, attr, data, int(flags))) })
	if errno == 0 {
		n.fsys.log.add(record{kind: attributeSet, ino: n.ino(), name: attr, data: append([]byte(nil), data...)})
	}
	return errno
}

// Removexattr implements fs.NodeRemovexattrer.
func (n *node) Removexattr(ctx context.Context, attr string) syscall.Errno {
	if errno := n.strike(ctx, RemoveAttribute); errno != 0 {
		return errno
	}
	n.fsys.log.lock()
	defer n.fsys.log.unlock()
	errno := n.withPath(func(path string) syscall.Errno { return fs.ToErrno(unix.Removexattr(path, attr)) })
	if errno == 0 {
		n.fsys.log.add(record{kind: attributeRemoved, ino: n.ino(), name: attr})
	}
	return errno
}

// Statfs implements fs.NodeStatfser.
func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	if errno := n.strike(ctx, Statfs); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Statfs(ctx, out)
}

// Opendir implements fs.NodeOpendirer.
func (n *node) Opendir(context.Context) syscall.Errno { return 0 }

// OpendirHandle hides that of the directory behind, whose handle would take the
// syncs that Fsync has to see.
func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	handle, fuseFlags, errno := n.LoopbackNode.OpendirHandle(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	return &directory{FileHandle: handle, node: n}, fuseFlags, 0
}

// Fsync implements fs.NodeFsyncer.
func (n *node) Fsync(ctx context.Context, handle fs.FileHandle, _ uint32) syscall.Errno {
	if f, ok := handle.(*file); ok {
		return n.sync(ctx, Sync, f.fd)
	}
	return n.syncDirectory(ctx)
}

// syncDirectory makes the names of a directory durable.
func (n *node) syncDirectory(ctx context.Context) syscall.Errno {
	fd, err := unix.Open(n.path(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fs.ToErrno(err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written to it
	return n.sync(ctx, SyncDir, fd)
}

// sync makes durable what fd has open. While there is a log, durability is what the
// log says, and the medium behind is spared.
func (n *node) sync(ctx context.Context, op Op, fd int) syscall.Errno {
	if errno := n.strike(ctx, op); errno != 0 {
		return errno
	}
	n.fsys.log.lock()
	defer n.fsys.log.unlock()
	if n.fsys.log == nil {
		if err := unix.Fsync(fd); err != nil {
			return fs.ToErrno(err)
		}
	}
	n.fsys.log.add(record{kind: synced, ino: n.ino(), name: n.name()})
	return 0
}
