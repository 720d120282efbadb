package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decant/integration/faultfs"
)

// Users who write into holes until there is no more space are refused before the file
// system is full. They can go on to read, to overwrite and to trim; what they trim can be
// written again; and the run ends well. Nothing that was answered is lost.
func TestUsersNeverFillTheFileSystem(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			dir := newFileSystem(t, kind, 320*mib)
			source, destination := s.path("image"), dir+"/moved"
			makeImage(t, source, 400*mib, 90, mixture{data: 12, holes: 88})
			d := newDisk(t, source)
			r, uri := s.startExport(source, destination, served...)
			c := s.connect(uri)
			least, refused := freeBytes(t, dir), 0
			order := rand.New(rand.NewPCG(1, 1)).Perm(400)
			for _, nr := range order {
				err := d.change(c, "write", int64(nr)*mib, mib)
				least = min(least, freeBytes(t, dir))
				if err == nil {
					continue
				}
				if !errors.Is(err, unix.ENOSPC) {
					t.Fatalf("MiB %d: %v", nr, err)
				}
				if refused++; refused == 20 {
					break
				}
			}
			if refused == 0 {
				t.Fatal("all of it had room")
			}
			if least < mib {
				t.Errorf("only %d bytes were left free", least)
			}
			first := int64(order[0]) * mib
			for _, kind := range []string{"write", "discard", "write"} {
				if err := d.change(c, kind, first, mib); err != nil {
					t.Errorf("%s of what has space: %v", kind, err)
				}
			}
			if err := d.flush(c); err != nil {
				t.Error(err)
			}
			d.settle(c)
			for _, nr := range order[1:40] {
				if err := d.change(c, "discard", int64(nr)*mib, mib); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.flush(c); err != nil {
				t.Error(err)
			}
			c.Close()
			o := s.want(0, r.wait())
			d.wantFile(destination)
			if said := warningsOf(o); !strings.Contains(said, "refused to write") {
				t.Errorf("warned of %q", said)
			}
		})
	}
}

// warningsOf are the texts of all warnings.
func warningsOf(o outcome) string {
	var b strings.Builder
	for _, e := range o.events {
		if e.Event == "warning" {
			b.Write(e.fields["message"])
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// A flush of the destination fails while the volume is used: whoever is connected can
// go on to read, what was flushed is there, nothing more is written; the run ends with
// the last client, and the next one goes on from there.
func TestUsersReadAfterAFailedFlush(t *testing.T) {
	for _, hydrated := range []bool{false, true} {
		t.Run(fmt.Sprintf("hydrated: %v", hydrated), func(t *testing.T) {
			t.Parallel()
			readAfterFailedFlush(t, hydrated)
		})
	}
}

func readAfterFailedFlush(t *testing.T, hydrated bool) {
	s := newSite(t)
	f, dir, backing := faulty(t)
	source, destination := dir+"/image", dir+"/moved"
	made := makeImage(t, backing+"/image", 24*mib, 91, mixed)
	d := newDisk(t, backing+"/image")
	r, uri := s.startExport(source, destination, uncommitted...)
	c := s.connect(uri)
	if hydrated {
		r.await("the end of hydration", func(e event) bool { return e.Event == "hydrated" })
	}
	u := user{disk: d, client: c, rng: rand.New(rand.NewPCG(1, 1)), of: 1}
	for range 200 {
		if err := u.one(); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.flush(c); err != nil {
		t.Fatal(err)
	}
	if err := d.change(c, "write", 5*mib, mib); err != nil { // which no flush will cover
		t.Fatal(err)
	}
	injection := f.Inject(faultfs.Fault{Op: faultfs.Sync, Name: "moved", Errno: unix.EIO})
	if err := d.flush(c); err == nil {
		t.Fatal("a flush has succeeded that has failed")
	}
	if !hydrated {
		r.await("a warning", func(e event) bool { return e.Event == "warning" })
	}
	if err := d.change(c, "write", 9*mib, 4096); err == nil {
		t.Error("a write has succeeded after the flush that failed")
	}
	if err := d.flush(c); err == nil {
		t.Error("a later flush has succeeded")
	}
	d.settle(c)
	client(t, "qemu-io", "-r", "-f", "raw", "-c", "read 0 24M", uri) // who comes now can read as well
	c.Close()
	o := s.want(3, r.wait())
	if e := o.last(); e.Event != "stopped" || !strings.Contains(e.Reason, "flush the destination") {
		t.Errorf("ended with %v", e)
	}
	injection.Heal()
	r, uri = s.startExport(source, destination, served...)
	c = s.connect(uri)
	d.settle(c)
	c.Close()
	s.want(0, r.wait())
	d.wantFile(backing + "/moved")
	wantEmptied(t, backing+"/image", made)
}
