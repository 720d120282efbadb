package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// served makes a run last for some seconds, with many small transactions.
var served = []string{"--discard-src", "--region-size=256KiB", "--commit-bytes=4MiB", "--commit-period=200ms", "--bwlimit=6MiB/s"}

// lasting makes a run last longer than any test uses it; the same command with other
// flags ends it.
var lasting = append(append([]string{}, served...), "--bwlimit=256KiB/s")

// uncommitted makes a run commit for its users, and for the space, but not because time passes.
var uncommitted = append(append([]string{}, served...), "--commit-period=1h")

// useUntil lets users work, each with a connection of its own, until the context ends
// or the server is gone.
func useUntil(until context.Context, d *disk, s *site, uri string, seed uint64, users int) *sync.WaitGroup {
	var working sync.WaitGroup
	for i := range users {
		u := user{d, s.connect(uri), rand.New(rand.NewPCG(seed, uint64(i))), int64(users), int64(i)}
		working.Go(func() {
			defer u.client.Close()
			if err := u.work(until); errors.Is(err, errOtherBytes) || err != nil && until.Err() == nil {
				d.Errorf("user %d: %v", i, err)
			}
		})
	}
	return &working
}

// faults 79, 80, 81, 84: the server is killed while its volume is written, trimmed,
// flushed and read, again and again. What was flushed is there when it is back, every
// other sector is as it was or as it was written; and at the end the destination is what
// its users saw, and the source is empty.
func TestFault79KilledWhileInUse(t *testing.T) {
	rounds := 1
	if nightly() {
		rounds = 12
	}
	for _, kind := range []string{"ext4", "xfs", "btrfs", hostFileSystem} {
		for seed := range uint64(rounds) {
			for _, users := range []int{1, 3} {
				t.Run(fmt.Sprintf("%s, %d users, seed %d", kind, users, seed), func(t *testing.T) {
					t.Parallel()
					killWhileInUse(t, kind, seed, users)
				})
			}
		}
	}
}

// hostFileSystem is what temporary files lie on, as a rule an ext4 on a disk: unlike one in
// a file it is used through the page cache.
const hostFileSystem = "the host's"

func killWhileInUse(t *testing.T, kind string, seed uint64, users int) {
	s := newSite(t)
	dir := t.TempDir()
	if kind != hostFileSystem {
		dir = newFileSystem(t, kind, 640*mib)
	}
	source, destination := dir+"/image", dir+"/moved"
	made := makeImage(t, source, 40*mib, 70+seed, mixed)
	d := newDisk(t, source)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 3 {
		r, uri := s.startExport(source, destination, lasting...)
		c := s.connect(uri)
		d.settle(c)
		until, stop := context.WithCancel(context.Background())
		working := useUntil(until, d, s, uri, rng.Uint64(), users)
		time.Sleep(time.Duration(100+rng.IntN(900)) * time.Millisecond)
		stop() // what is under way meets the kill
		if o := r.kill(); o.code != -1 {
			t.Fatalf("ended by itself: %v", o)
		}
		working.Wait()
		c.Close()
	}
	r, uri := s.startExport(source, destination, served...)
	c := s.connect(uri)
	d.settle(c)
	until, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	useUntil(until, d, s, uri, rng.Uint64(), users).Wait()
	c.Close()
	s.want(0, r.wait())
	d.wantFile(destination)
	wantEmptied(t, source, made)
}

// A stop by a signal, and by migrate pause: those who are connected are cut off after
// their requests were answered, the run ends within seconds and has committed; a resume
// offers the volume at the same place.
func TestStoppedWhileInUse(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 40*mib, 71, mixed)
	d := newDisk(t, source)
	r, uri := s.startExport(source, destination, lasting...)
	id := r.awaitStarted().ID
	stops := []func(){
		func() { r.signal(syscall.SIGTERM) },
		func() { r.signal(syscall.SIGINT) },
		func() { s.want(0, s.run("pause", id)) },
	}
	for i, stop := range stops {
		idle := s.connect(uri)
		d.settle(idle)
		until, end := context.WithCancel(context.Background())
		working := useUntil(until, d, s, uri, uint64(i), 2)
		time.Sleep(300 * time.Millisecond)
		end() // requests that were not answered may have been made or not
		begun := time.Now()
		stop()
		o := s.want(3, r.wait())
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("stop %d took %v", i, took)
		}
		if e := o.last(); e.Event != "stopped" || e.BytesCommitted != e.BytesCopied || !strings.Contains(e.Hint, "migrate resume "+id) {
			t.Errorf("stopped with %v", e)
		}
		working.Wait()
		idle.Close()
		if exists(s.exportSocket()) || exists(s.exportSocket()+".lock") {
			t.Error("the socket is still there")
		}
		if i == len(stops)-1 {
			break
		}
		r = s.start("resume", "--progress=json", id)
		if again := r.awaitExported(); again != uri {
			t.Errorf("exported at %s, before at %s", again, uri)
		}
	}
	r, uri = s.startExport(source, destination, served...)
	c := s.connect(uri)
	d.settle(c)
	s.want(4, s.run("cancel", id))
	c.Close()
	s.want(0, r.wait())
	d.wantFile(destination)
	wantEmptied(t, source, made)
}

// Orderly stopped, a run has committed all that was answered, flushed or not.
func TestStopKeepsWhatWasAnswered(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	makeImage(t, source, 16*mib, 72, mixed)
	d := newDisk(t, source)
	r, uri := s.startExport(source, destination, lasting...)
	c := s.connect(uri)
	for off := int64(0); off < 16*mib; off += mib {
		if err := d.change(c, "write", off+4096, 8192); err != nil {
			t.Fatal(err)
		}
	}
	r.signal(syscall.SIGTERM)
	s.want(3, r.wait())
	c.Close()
	r, uri = s.startExport(source, destination, served...)
	d.mu.Lock()
	for i, versions := range d.sectors {
		d.sectors[i] = versions[len(versions)-1:]
	}
	d.mu.Unlock()
	c = s.connect(uri)
	d.settle(c)
	c.Close()
	s.want(0, r.wait())
	d.wantFile(destination)
}

// A migration that was in use cannot be cancelled, and is reversed with all that its
// users have written: stopped half-way, and when it is done.
func TestReverseBringsBackWhatUsersSaw(t *testing.T) {
	for name, flags := range map[string][]string{"discarding": served, "copying": served[1:]} {
		for _, end := range []string{"stopped", "done"} {
			t.Run(name+", "+end, func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				source, destination := s.path("image"), s.path("moved")
				makeImage(t, source, 12*mib, 73, mixed)
				d := newDisk(t, source)
				r, uri := s.startExport(source, destination, flags...)
				id := r.awaitStarted().ID
				until, stop := context.WithTimeout(context.Background(), 700*time.Millisecond)
				defer stop()
				idle := s.connect(uri)
				useUntil(until, d, s, uri, 5, 1).Wait()
				if end == "stopped" {
					r.signal(syscall.SIGTERM)
					s.want(3, r.wait())
					refused := s.want(4, s.run("cancel", id))
					if !strings.Contains(refused.stderr, "migrate reverse "+id) {
						t.Errorf("refused with %s", refused.stderr)
					}
				} else {
					idle.Close()
					s.want(0, r.wait())
					if v := s.want(0, s.run("verify", "--json", id)); !strings.Contains(v.stdout, "written_regions") {
						t.Errorf("verified with %s", v.stdout)
					}
				}
				s.want(0, s.run("reverse", "--progress=json", id))
				d.wantFile(source)
				if exists(destination) {
					t.Error("the destination is still there")
				}
			})
		}
	}
}
