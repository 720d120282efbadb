package integration

import (
	"syscall"
	"testing"
)

// A qcow2 image and the destination on one file system, which has room for a tenth of the
// image: what the server frees comes back, and the server tells by its open files that it
// does.
func TestNBDSourceOnAFullDisk(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			dir := newFileSystem(t, kind, 448*mib)
			made := s.qcow2("q", (freeBytes(t, dir)-40*mib)/mib*mib, 90)
			fill := (freeBytes(t, dir) - allocated(t, s.path("q")) - 44*mib) / mib * mib
			do(t, "fallocate", "-l", itoa(fill), dir+"/fill")
			do(t, "cp", s.path("q"), dir+"/q")
			if err := syncFileSystem(dir); err != nil {
				t.Fatal(err)
			}
			free := freeBytes(t, dir)
			if free > made.dataBytes/4 {
				t.Fatalf("%d bytes are free for %d of data", free, made.dataBytes)
			}
			server := s.qemuNBD(dir+"/q", "qcow2", freeing...)
			s.wantMessage(s.wantMoveRefused(s.uri(), dir+"/moved"), "does not fit", "--discard-src")
			o := s.want(0, s.move(s.uri(), dir+"/moved", "--discard-src"))
			wantWhole(t, dir+"/moved", made)
			if e := o.last(); e.PeakExtraBytes > free {
				t.Errorf("%d bytes existed twice where %d were free", e.PeakExtraBytes, free)
			}
			server.end(syscall.SIGTERM)
			// A server that frees nothing makes the run stop, and loses nothing.
			remove(t, dir+"/moved", dir+"/q")
			do(t, "cp", s.path("q"), dir+"/q")
			if err := syncFileSystem(dir); err != nil {
				t.Fatal(err)
			}
			server = s.qemuNBD(dir+"/q", "qcow2")
			s.wantMessage(s.want(3, s.move(s.uri(), dir+"/moved", "--discard-src")), "out of space", "--discard=unmap")
			if free := freeBytes(t, dir); free < mib {
				t.Errorf("%d bytes are left on the file system", free)
			}
			server.end(syscall.SIGTERM)
			server = s.qemuNBD(dir+"/q", "qcow2", freeing...)
			s.want(0, s.move(s.uri(), dir+"/moved", "--discard-src"))
			wantWhole(t, dir+"/moved", made)
			server.end(syscall.SIGTERM)
		})
	}
}
