package integration

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// The destination beside the source, on a file system that has 40 MiB left. btrfs
// gives an extent of up to 128 MiB back only when no byte of it is left, so that it
// takes more.
func TestMoveOnAFullDisk(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			leave := map[string]int64{"ext4": 40 * mib, "xfs": 40 * mib, "btrfs": 320 * mib}[kind]
			dir, made := nearlyFull(t, kind, leave)
			o := s.want(0, s.move(dir+"/image", dir+"/moved", "--discard-src"))
			wantEvents(t, o, "done")
			wantWhole(t, dir+"/moved", made)
			wantEmptied(t, dir+"/image", made)
			if e := o.last(); e.PeakExtraBytes > leave {
				t.Errorf("%d bytes existed twice where %d were free", e.PeakExtraBytes, leave)
			}
		})
	}
}

// Where btrfs has too little room for its extents, a migration is refused, or stops
// while there is some space left: a full file system could not even take the marks.
func TestMoveOnAFullerBtrfs(t *testing.T) {
	for name, flags := range map[string][]string{"ordinary": {}, "mixed": {"--mixed"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			dir := newFileSystem(t, "btrfs", 384*mib, flags...)
			made := makeImage(t, dir+"/image", (freeBytes(t, dir)-40*mib)/mib*mib, 76, solid)
			do(t, "cp", dir+"/image", s.path("as it was"))
			if err := syncFileSystem(dir); err != nil {
				t.Fatal(err)
			}
			o := s.move(dir+"/image", dir+"/moved", "--discard-src")
			switch o.code {
			case 0:
				wantWhole(t, dir+"/moved", made)
				return
			case 4:
				return // wantRefused is for others
			}
			s.want(3, o)
			if free := freeBytes(t, dir); free < 1*mib {
				t.Errorf("%d bytes are left on the file system: %v", free, o)
			}
			wantOnOneSide(t, s.path("as it was"), dir+"/image", dir+"/moved")
			// The same command is no worse off than before.
			if again := s.move(dir+"/image", dir+"/moved", "--discard-src"); again.code != 0 && again.code != 3 {
				t.Errorf("after a stop that was to be resumed: %v", again)
			}
		})
	}
}

// nearlyFull makes a file system that an image fills but for some bytes.
func nearlyFull(t *testing.T, kind string, leave int64) (dir string, made image) {
	t.Helper()
	size := map[string]int64{"ext4": 512 * mib, "xfs": 512 * mib, "btrfs": 1 * gib}[kind]
	dir = newFileSystem(t, kind, size)
	made = makeImage(t, dir+"/image", (freeBytes(t, dir)-leave)/mib*mib, 70, solid)
	if err := syncFileSystem(dir); err != nil {
		t.Fatal(err)
	}
	if free := freeBytes(t, dir); free > leave+8*mib {
		t.Fatalf("%d bytes are free, not %d", free, leave)
	}
	return dir, made
}

// Without --discard-src there is no room, and nothing is begun.
func TestCopyOnAFullDiskIsRefused(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			dir, _ := nearlyFull(t, kind, 40*mib)
			before := treeOf(t, dir)
			s.wantMessage(s.wantMoveRefused(dir+"/image", dir+"/moved"), "--discard-src")
			if diff := before.difference(treeOf(t, dir)); diff != "" {
				t.Error(diff)
			}
			if exists(s.state) {
				t.Error("a state directory was made")
			}
		})
	}
}

// fault 36: the file system fills up in the middle of a run. It stops with code 3,
// takes nothing of the last space, and goes on when there is some again.
func TestFault36DestinationFullMidRun(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			dir := newFileSystem(t, kind, 320*mib)
			source, destination := s.path("image"), dir+"/moved"
			made := makeImage(t, source, 64*mib, 71, solid)
			r := s.startMove(source, destination, slowly...)
			r.awaitCommitted(2)
			release := fillUp(t, dir, 0)
			o := s.want(3, r.wait())
			wantEvents(t, o, "stopped")
			s.wantMessage(o, "space")
			release()
			s.want(0, s.move(source, destination, "--discard-src"))
			wantWhole(t, destination, made)
			wantEmptied(t, source, made)
		})
	}
}

// fault 57: the journal's file system fills up. A transaction that was not recorded
// discards nothing.
func TestFault57JournalFileSystemFull(t *testing.T) {
	for _, kind := range []string{"ext4", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			size := map[string]int64{"ext4": 16 * mib, "btrfs": 128 * mib}[kind]
			s.state = newFileSystem(t, kind, size) + "/state"
			source, destination := s.path("image"), s.path("moved")
			made := makeImage(t, source, 32*mib, 72, solid)
			copyFile(t, source, s.path("as it was"))
			flags := []string{"--discard-src", "--region-size=4KiB", "--commit-bytes=64KiB", "--commit-period=20ms", "--bwlimit=16MiB/s"}
			r := s.startMove(source, destination, flags...)
			r.awaitDiscarded()
			release := fillUp(t, s.state, 0)
			o := r.wait()
			if o.code == 0 {
				t.Fatalf("the journal did not have to grow: %v", o)
			}
			s.want(3, o)
			wantEvents(t, o, "stopped")
			wantOnOneSide(t, s.path("as it was"), source, destination)
			release()
			next := s.want(0, s.move(source, destination, flags...))
			if got, want := next.events[0].BytesCopied, o.last().BytesCommitted; got < want {
				t.Errorf("%d bytes were committed, the next run knows of %d", want, got)
			}
			wantWhole(t, destination, made)
			wantEmptied(t, source, made)
		})
	}
}

// wantOnOneSide fails the test unless every page of an image is whole at the source
// or at the destination.
func wantOnOneSide(t *testing.T, original, source, destination string) {
	t.Helper()
	for off := int64(0); ; off += mib {
		var chunks [3][]byte
		for i, path := range []string{original, source, destination} {
			chunks[i] = chunkOf(t, path, off)
		}
		for at := 0; at < len(chunks[0]); at += 4096 {
			page := pageOf(chunks[0], at)
			if !bytes.Equal(page, pageOf(chunks[1], at)) && !bytes.Equal(page, pageOf(chunks[2], at)) {
				t.Fatalf("the page at %d is lost", off+int64(at))
			}
		}
		if len(chunks[0]) < int(mib) {
			return
		}
	}
}

// chunkOf is up to a mebibyte of a file. The file is not kept open, which would count
// as a use of it.
func chunkOf(t *testing.T, path string, off int64) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, mib)
	n, err := f.ReadAt(chunk, off)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return chunk[:n]
}

func pageOf(chunk []byte, at int) []byte {
	return chunk[min(at, len(chunk)):min(at+4096, len(chunk))]
}

// fault 57: no room for a journal is known before anything is made.
func TestFault57NoRoomForAJournal(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := newFileSystem(t, "ext4", 16*mib)
	s.state = dir + "/state"
	makeImage(t, s.path("image"), 8*mib, 73, mixed)
	release := fillUp(t, dir, 0)
	before := treeOf(t, s.path("image"))
	s.want(4, s.move(s.path("image"), s.path("moved"), "--discard-src"))
	if diff := before.difference(treeOf(t, s.path("image"))); diff != "" {
		t.Error(diff)
	}
	if exists(s.path("moved")) {
		t.Error("there is a destination now")
	}
	release()
	s.want(0, s.move(s.path("image"), s.path("moved"), "--discard-src"))
}

// fault 36: a pool has a limit of its own.
func TestFault36PoolTooSmall(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.thinctl("pool", "create", "tank", "--dir", s.path("tank"), "--size", "16MiB")
	makeImage(t, s.path("image"), 24*mib, 74, solid)
	s.wantMessage(s.wantMoveRefused(s.path("image"), "tank/vm", "--discard-src"), "space")
}

// A source and a destination in one pool that is full but for 40 MiB.
func TestMoveWithinAFullPool(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.thinctl("pool", "create", "tank", "--dir", s.path("tank"), "--size", "140MiB")
	made := makeImage(t, s.path("image"), 96*mib, 75, solid)
	s.want(0, s.move(s.path("image"), "tank/first", "--discard-src"))
	begun := time.Now()
	o := s.want(0, s.move("tank/first", "tank/second", "--discard-src"))
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	wantEvents(t, o, "done")
	s.want(0, s.move("tank/second", s.path("back"), "--discard-src"))
	wantWhole(t, s.path("back"), made)
}
