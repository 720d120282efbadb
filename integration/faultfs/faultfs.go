// Package faultfs is a file system for tests, served by this process through FUSE. It
// passes everything through to a directory of another file system, fails as it is
// told to (Fault), and can record what reaches it, so as to tell what a power cut
// would have left at any moment (Log).
//
// A process should not work on its own mount: a page fault or a fork that waits for
// an answer could keep this process from giving it. Let another process do the work,
// and look at the result in the directory behind.
package faultfs

import (
	"errors"
	"fmt"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maxRequestBytes is the most that one read or write moves; the kernel cuts larger
// ones into pieces.
const maxRequestBytes = 256 << 10

// Options of a mount.
type Options struct {
	Backing    string // the directory that holds everything
	MountPoint string // an empty directory
	Record     bool   // keep a Log; Backing must be empty
}

// FS is a mounted file system. Its methods may be called concurrently.
type FS struct {
	backing    string
	mountPoint string
	server     *fuse.Server
	faults     faults
	log        *Log // nil if nothing is recorded
}

// Mount mounts the file system; it takes root. Call Unmount in the end.
func Mount(o Options) (*FS, error) {
	f := &FS{backing: o.Backing, mountPoint: o.MountPoint}
	if o.Record {
		log, err := newLog(o.Backing)
		if err != nil {
			return nil, err
		}
		f.log = log
	}
	data := &fs.LoopbackRoot{Path: o.Backing}
	root := f.newNode(data)
	data.RootNode = root
	var st unix.Stat_t
	if err := unix.Stat(o.Backing, &st); err != nil {
		return nil, fmt.Errorf("directory %s behind the file system: %w", o.Backing, err)
	}
	data.Dev = st.Dev
	var uncached time.Duration
	server, err := fs.Mount(o.MountPoint, root, &fs.Options{
		// Nothing is remembered by the kernel, so that every question arrives here.
		AttrTimeout: &uncached, EntryTimeout: &uncached, NegativeTimeout: &uncached,
		NullPermissions: true,
		MountOptions: fuse.MountOptions{
			FsName: "faultfs", Name: "faultfs", MaxWrite: maxRequestBytes,
			AllowOther: true, DirectMountStrict: true,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", o.MountPoint, err)
	}
	f.server = server
	return f, nil
}

// Unmount ends the file system. One that is in use is detached all the same, and
// fails the requests that are under way; the error then says so.
func (f *FS) Unmount() error {
	f.faults.release()
	err := unix.Unmount(f.mountPoint, 0)
	if errors.Is(err, unix.EBUSY) {
		err = errors.Join(fmt.Errorf("%s is still in use", f.mountPoint), unix.Unmount(f.mountPoint, unix.MNT_DETACH|unix.MNT_FORCE))
	}
	f.server.Wait()
	return err
}

// Log is what was recorded since Mount, or nil if nothing is.
func (f *FS) Log() *Log { return f.log }

// Inject makes operations fail from now on.
func (f *FS) Inject(fault Fault) *Injection { return f.faults.add(fault) }
