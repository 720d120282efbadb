package integration

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/integration/faultfs"
)

// faulty mounts a file system that fails as it is told to. Programs use dir; a test
// looks at the directory behind.
func faulty(t testing.TB) (f *faultfs.FS, dir, backing string) {
	t.Helper()
	dir, backing = t.TempDir(), t.TempDir()
	f, err := faultfs.Mount(faultfs.Options{Backing: backing, MountPoint: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return f, dir, backing
}

// A faulty file system without faults is as good as any other.
func TestMoveOverFUSE(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, dir, backing := faulty(t)
	made := makeImage(t, backing+"/image", 24*mib, 150, mixed)
	o := s.want(0, s.move(dir+"/image", dir+"/moved", "--discard-src", "--verify"))
	wantEvents(t, o, "done")
	wantWhole(t, backing+"/moved", made)
	wantEmptied(t, backing+"/image", made)
}

// fault 24: parts of the source cannot be read. The rest is moved, the bad parts are
// listed and never punched, and the migration ends when they can be read again.
func TestFault24BadSectors(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	f, dir, backing := faulty(t)
	source, destination := dir+"/image", dir+"/moved"
	made := makeImage(t, backing+"/image", 24*mib, 151, solid)
	copyFile(t, backing+"/image", s.path("as it was"))
	const regionBytes = 256 * kib
	bad := []int64{3 * mib, 3*mib + regionBytes, 17*mib + 4096, 24*mib - 512}
	var faults []*faultfs.Injection
	for _, off := range bad {
		faults = append(faults, f.Inject(faultfs.Fault{Op: faultfs.Read, Name: "image", FromByte: off, ToByte: off + 1, Errno: unix.EIO}))
	}
	flags := []string{"--discard-src", "--region-size=256KiB"}
	o := s.want(3, s.move(source, destination, flags...))
	wantEvents(t, o, "stopped")
	s.wantMessage(o, "show")
	was, at, to := readFile(t, s.path("as it was")), readFile(t, backing+"/image"), readFile(t, backing+"/moved")
	lost := badBytesOf(s, o.last().ID)
	for off := int64(0); off < made.bytes; off += regionBytes {
		region := was[off : off+regionBytes]
		switch listed := lost[off]; {
		case isBad(bad, off, regionBytes) != listed:
			t.Errorf("the region at %d is listed as bad: %v", off, listed)
		case listed && at[off:off+regionBytes] != region:
			t.Errorf("the bad region at %d was punched", off)
		case !listed && to[off:off+regionBytes] != region:
			t.Errorf("the region at %d was not copied", off)
		}
	}
	if got := allocated(t, backing+"/image"); got > int64(len(bad)+1)*regionBytes {
		t.Errorf("the source still takes %d bytes", got)
	}
	var e explained
	s.decode(&e, "explain", o.last().ID, itoa(bad[0]), "--json")
	if e.State != "bad" || e.Owner != source {
		t.Errorf("explained as %+v", e)
	}
	s.want(3, s.move(source, destination, flags...)) // still bad
	for _, fault := range faults {
		fault.Heal()
	}
	s.want(0, s.move(source, destination, flags...))
	wantWhole(t, backing+"/moved", made)
	wantEmptied(t, backing+"/image", made)
	if left := badBytesOf(s, o.last().ID); len(left) != 0 {
		t.Errorf("still listed: %v", left)
	}
}

// badBytesOf are the offsets of the bad regions that show lists.
func badBytesOf(s *site, id string) map[int64]bool {
	s.Helper()
	const regionBytes = 256 * kib
	found := map[int64]bool{}
	for _, b := range s.show(id).Bad {
		if b.Error == "" || b.Offset%regionBytes != 0 {
			s.Errorf("listed as %+v", b)
		}
		for off := b.Offset; off < b.Offset+b.Bytes; off += regionBytes {
			found[off] = true
		}
	}
	return found
}

func isBad(bad []int64, off, bytes int64) bool {
	for _, b := range bad {
		if b >= off && b < off+bytes {
			return true
		}
	}
	return false
}

// fault 24: short reads and interrupted ones are no errors.
func TestFault24ShortReads(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	f, dir, backing := faulty(t)
	made := makeImage(t, backing+"/image", 8*mib, 152, mixed)
	f.Inject(faultfs.Fault{Op: faultfs.Read, Name: "image", ShortBytes: 40960, Times: 20})
	f.Inject(faultfs.Fault{Op: faultfs.Read, Name: "image", Errno: unix.EINTR, Skip: 3, Times: 5})
	f.Inject(faultfs.Fault{Op: faultfs.Write, Name: "moved", ShortBytes: 40960, Times: 20})
	s.want(0, s.move(dir+"/image", dir+"/moved", "--discard-src"))
	wantWhole(t, backing+"/moved", made)
}

// A fault at either end, and what has to come of it: code 3 (or done, where the
// fault does no harm), no page lost, and a whole destination after the same command
// again.
func TestFaultsOfTheEnds(t *testing.T) {
	tests := map[string]faultfs.Fault{
		"fault 46: write":           {Op: faultfs.Write, Name: "moved", Errno: unix.EIO, Skip: 9},
		"fault 46: one write":       {Op: faultfs.Write, Name: "moved", Errno: unix.EIO, Skip: 9, Times: 1},
		"fault 46: bad sector":      {Op: faultfs.Write, Name: "moved", Errno: unix.EIO, FromByte: 5 * mib, ToByte: 5*mib + 1},
		"fault 36: full":            {Op: faultfs.Write, Name: "moved", Errno: unix.ENOSPC, Skip: 9},
		"fault 36: quota":           {Op: faultfs.Write, Name: "moved", Errno: unix.EDQUOT, Skip: 9, Times: 3},
		"fault 47: flush":           {Op: faultfs.Sync, Name: "moved", Errno: unix.EIO, Skip: 2},
		"fault 47: one flush":       {Op: faultfs.Sync, Name: "moved", Errno: unix.EIO, Skip: 2, Times: 1},
		"fault 51: device gone":     {Name: "moved", Errno: unix.ENXIO, Skip: 40},
		"fault 12: punch forbidden": {Op: faultfs.Allocate, Name: "image", Errno: unix.EPERM, Skip: 1},
		"fault 11: punch unknown":   {Op: faultfs.Allocate, Name: "image", Errno: unix.EOPNOTSUPP},
		"one punch fails":           {Op: faultfs.Allocate, Name: "image", Errno: unix.EIO, Skip: 1, Times: 1},
		"mark of the source":        {Op: faultfs.SetAttribute, Name: "image", Errno: unix.EIO, Skip: 1},
		"no space for the mark":     {Op: faultfs.SetAttribute, Name: "image", Errno: unix.ENOSPC},
		"mark not durable":          {Op: faultfs.Sync, Name: "image", Errno: unix.EIO},
		"times of the source":       {Op: faultfs.SetTimes, Name: "image", Errno: unix.EIO, Skip: 1, Times: 1},
		"free space unknown":        {Op: faultfs.Statfs, Errno: unix.EIO, Skip: 5, Times: 1},
		"fault 24: all reads":       {Op: faultfs.Read, Name: "image", Errno: unix.EIO, Skip: 10},
		"source gone":               {Name: "image", Errno: unix.ENODEV, Skip: 60},
		"seek":                      {Op: faultfs.Seek, Name: "image", Errno: unix.EIO, Skip: 6, Times: 1},
	}
	for name, fault := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			f, dir, backing := faulty(t)
			source, destination := dir+"/image", dir+"/moved"
			made := makeImage(t, backing+"/image", 8*mib, 153, mixed)
			copyFile(t, backing+"/image", s.path("as it was"))
			injection := f.Inject(fault)
			flags := []string{"--discard-src", "--region-size=256KiB", "--commit-bytes=1MiB"}
			o := s.move(source, destination, flags...)
			if injection.Hits() == 0 {
				t.Fatalf("the fault was never met: %v", o)
			}
			if o.code != 3 && (o.code != 0 || fault.Times == 0) {
				t.Errorf("want code 3: %v", o)
			}
			wantOnOneSide(t, s.path("as it was"), backing+"/image", backing+"/moved")
			injection.Heal()
			s.want(0, s.move(source, destination, flags...))
			wantWhole(t, backing+"/moved", made)
			wantEmptied(t, backing+"/image", made)
		})
	}
}

// fault 57, fault 58: the journal's medium fails. What became of a commit is not
// known then, and nothing is punched on the strength of it.
func TestFault58JournalFails(t *testing.T) {
	tests := map[string]faultfs.Fault{
		"sync of the log":     {Op: faultfs.Sync, Name: "*-wal", Errno: unix.EIO, Skip: 2},
		"one sync of the log": {Op: faultfs.Sync, Name: "*-wal", Errno: unix.EIO, Skip: 2, Times: 1},
		"write of the log":    {Op: faultfs.Write, Name: "*-wal", Errno: unix.EIO, Skip: 9},
		"full":                {Op: faultfs.Write, Name: "*-wal", Errno: unix.ENOSPC, Skip: 9},
		"short writes":        {Op: faultfs.Write, Name: "*-wal", ShortBytes: 100, Skip: 9, Times: 5},
		"everything":          {Errno: unix.EIO, Skip: 200},
		"directory":           {Op: faultfs.SyncDir, Errno: unix.EIO},
		"creation":            {Op: faultfs.Create, Name: "*.db.new", Errno: unix.EIO},
		"rename":              {Op: faultfs.Rename, Errno: unix.EIO},
		"merging the log":     {Op: faultfs.Write, Name: "*.db", Errno: unix.EIO},
		"log not removed":     {Op: faultfs.Unlink, Errno: unix.EIO},
	}
	for name, fault := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			f, dir, _ := faulty(t)
			s.state = dir + "/state"
			source, destination := s.path("image"), s.path("moved")
			made := makeImage(t, source, 8*mib, 154, mixed)
			copyFile(t, source, s.path("as it was"))
			injection := f.Inject(fault)
			flags := []string{"--discard-src", "--region-size=64KiB", "--commit-bytes=256KiB"}
			o := s.move(source, destination, flags...)
			if injection.Hits() == 0 {
				t.Fatalf("the fault was never met: %v", o)
			}
			wantOrdinaryEnd(t, o)
			if exists(destination) {
				wantOnOneSide(t, s.path("as it was"), source, destination)
			} else {
				wantWhole(t, source, made)
			}
			injection.Heal()
			s.want(0, s.move(source, destination, flags...))
			wantWhole(t, destination, made)
			wantEmptied(t, source, made)
		})
	}
}

// wantOrdinaryEnd fails the test unless a program has ended in one of the ways that
// users can rely on, other than wrong usage.
func wantOrdinaryEnd(t testing.TB, o outcome) {
	t.Helper()
	switch o.code {
	case 0, 1, 3, 4:
	default:
		t.Errorf("an end that nobody can rely on: %v", o)
	}
}

// fault 25: a read that does not return. The rest goes on, a look at the migration
// is answered, and a second signal ends the process at once.
func TestFault25Hang(t *testing.T) {
	for op, name := range map[faultfs.Op]string{faultfs.Read: "image", faultfs.Write: "moved", faultfs.Sync: "moved", faultfs.Allocate: "image"} {
		t.Run(fmt.Sprintf("%s of %s", op, name), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			f, dir, backing := faulty(t)
			source, destination := dir+"/image", dir+"/moved"
			made := makeImage(t, backing+"/image", 24*mib, 155, mixed)
			injection := f.Inject(faultfs.Fault{Op: op, Name: name, Skip: 4, Times: 1, Delay: time.Hour})
			r := s.startMove(source, destination, "--discard-src", "--commit-bytes=4MiB", "--commit-period=50ms")
			id := r.awaitStarted().ID
			for deadline := time.Now().Add(20 * time.Second); injection.Hits() == 0; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the fault was never met")
				}
			}
			if d := s.show(id); !d.Active {
				t.Errorf("%+v", d)
			}
			r.signal(syscall.SIGINT)
			r.awaitSaid("press again")
			begun := time.Now()
			// The kernel hands the signal to some thread. If that is the one whose
			// operation hangs, FUSE is told, answers EINTR, and the run can end. Else
			// it is pressed again, as people do; one that follows at once counts as
			// the same.
			for !r.hasEnded() && time.Since(begun) < 10*time.Second {
				_ = r.cmd.Process.Signal(syscall.SIGINT) // fails if it has ended
				time.Sleep(100 * time.Millisecond)
			}
			o := s.want(3, r.wait())
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("it took %v to stop: %v", took, o)
			}
			injection.Heal()
			s.want(0, s.move(source, destination, "--discard-src"))
			wantWhole(t, backing+"/moved", made)
			wantEmptied(t, backing+"/image", made)
		})
	}
}

// fault 48, fault 49: a write that is acknowledged and never arrives. --verify finds
// it before anything of it is discarded.
func TestFault48VerifyFindsLostWrites(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	f, dir, backing := faulty(t)
	source, destination := dir+"/image", dir+"/moved"
	made := makeImage(t, backing+"/image", 8*mib, 156, solid)
	copyFile(t, backing+"/image", s.path("as it was"))
	injection := f.Inject(faultfs.Fault{Op: faultfs.Write, Name: "moved", FromByte: 5 * mib, ToByte: 5*mib + 1, LoseWrites: true})
	o := s.want(3, s.move(source, destination, "--discard-src", "--verify", "--commit-bytes=1MiB"))
	if injection.Hits() == 0 {
		t.Fatalf("the fault was never met: %v", o)
	}
	s.wantMessage(o, "verification")
	wantOnOneSide(t, s.path("as it was"), backing+"/image", backing+"/moved")
	injection.Heal()
	s.want(0, s.move(source, destination, "--discard-src", "--verify"))
	wantWhole(t, backing+"/moved", made)
}
