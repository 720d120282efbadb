package integration

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

// slowly makes a run last for seconds, in transactions of 4 MiB.
var slowly = []string{"--discard-src", "--region-size=256KiB", "--commit-bytes=4MiB", "--commit-period=100ms", "--bwlimit=24MiB/s"}

const slowTransaction = 4 * mib

// fault 63: SIGKILL at a dozen random moments of one migration loses nothing, and
// at most one transaction is copied again after each.
func TestFault63Killed(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			dir := newFileSystem(t, kind, 640*mib)
			rounds := 1
			if nightly() {
				rounds = 25
			}
			for round := range rounds {
				source, destination := dir+"/image", dir+"/moved"
				made := makeImage(t, source, 112*mib, 50+uint64(round), mixed)
				killAtRandom(t, s, source, destination, 12)
				o := s.want(0, s.move(source, destination, "--discard-src"))
				wantWhole(t, destination, made)
				wantEmptied(t, source, made)
				wantEvents(t, o, "done")
				remove(t, source, destination)
			}
		})
	}
}

func remove(t testing.TB, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

// killAtRandom kills runs of the same migration, from the first instructions of the
// program on.
func killAtRandom(t *testing.T, s *site, source, destination string, times int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	var before event
	killed := 0
	for killed < times {
		delay := time.Duration(rng.IntN(350)) * time.Millisecond
		r := s.startMove(source, destination, slowly...)
		time.Sleep(delay)
		o := r.kill()
		if o.code == 0 {
			t.Fatalf("the migration has ended after %d of %d kills", killed, times)
		}
		if o.code != -1 {
			t.Fatalf("run %d, which was to be killed after %v, ended by itself: %v", killed, delay, o)
		}
		killed++
		if len(o.events) == 0 {
			continue // killed before it had begun
		}
		wantLittleCopiedAgain(t, before, o.events[0])
		before = o.last()
	}
}

// wantLittleCopiedAgain compares the last event before a crash with the first one
// after it.
func wantLittleCopiedAgain(t *testing.T, before, after event) {
	t.Helper()
	if before.Event == "" {
		return
	}
	if after.BytesCopied < before.BytesCommitted {
		t.Errorf("%d bytes were committed, the next run knows of %d", before.BytesCommitted, after.BytesCopied)
	}
	if again := before.BytesCopied - after.BytesCopied; again > slowTransaction {
		t.Errorf("%d bytes are copied again, a transaction has %d", again, slowTransaction)
	}
	if after.BytesCopied != after.BytesCommitted {
		t.Errorf("at the start %d bytes are copied and %d committed", after.BytesCopied, after.BytesCommitted)
	}
	if after.ID != before.ID {
		t.Errorf("migration %s goes on as %s", before.ID, after.ID)
	}
}

// fault 67: a run that is killed while it recovers, again and again, gets there.
func TestFault67KilledWhileRecovering(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 24*mib, 51, mixed)
	r := s.startMove(source, destination, slowly...)
	r.awaitCommitted(2)
	r.kill()
	ended := false
	for delay := time.Duration(0); delay < 60*time.Millisecond && !ended; delay += 4 * time.Millisecond {
		r := s.startMove(source, destination, "--discard-src", "--region-size=256KiB", "--commit-bytes=1MiB")
		time.Sleep(delay)
		o := r.kill()
		ended = o.code == 0
		if !ended && o.code != -1 {
			t.Fatalf("the run that was to be killed after %v ended by itself: %v", delay, o)
		}
	}
	s.want(0, s.move(source, destination, "--discard-src"))
	wantWhole(t, destination, made)
	wantEmptied(t, source, made)
}

// Kills with a volume of a pool at the other end, and resumes by id.
func TestKilledOnTheWayIntoAPool(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.thinctl("pool", "create", "tank", "--dir", s.path("tank"), "--size", "1GiB")
	source := s.path("image")
	made := makeImage(t, source, 48*mib, 52, mixed)
	killAtRandom(t, s, source, "tank/vm", 3)
	var id string
	for range 3 {
		r := s.startMove(source, "tank/vm", slowly...)
		id = r.awaitStarted().ID
		time.Sleep(100 * time.Millisecond)
		r.kill()
	}
	s.want(0, s.run("resume", id))
	wantEmptied(t, source, made)
	if sumOf(t, onlyFileOf(t, s.path("tank"), made.bytes), made.bytes) != made.sum {
		t.Error("the volume is not what the source was")
	}
}

// A source without extended attributes of its own: its mark is kept elsewhere.
func TestKilledWithBlockDevicesAtBothEnds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 48*mib, 53, mixed)
	source := attach(t, attach(t, s.path("image")))
	destination := attach(t, attach(t, sparse(t, s.path("disk"), 48*mib)))
	killAtRandom(t, s, source, destination, 6)
	s.want(0, s.move(source, destination, "--discard-src"))
	wantWhole(t, destination, made)
	wantEmptied(t, s.path("image"), made)
}

// fault 69: after a restart the same objects have other device numbers and are
// mounted elsewhere. The migration is found by what they are.
func TestFault69OtherDeviceNumbers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	disk, first, second := sparse(t, s.path("disk"), 320*mib), t.TempDir(), t.TempDir()
	do(t, "mkfs.ext4", "-q", "-F", disk)
	loop := attach(t, disk)
	mountAt(t, first, "-t", "ext4", loop)
	made := makeImage(t, first+"/image", 48*mib, 54, mixed)
	device := statOf(t, first+"/image").Dev
	r := s.startMove(first+"/image", first+"/moved", slowly...)
	r.awaitDiscarded()
	id := r.kill().last().ID
	unmount(t, first)
	// A new device, before the old one is free.
	other := attach(t, disk)
	detach(t, loop)
	mountAt(t, second, "-t", "ext4", other)
	if statOf(t, second+"/image").Dev == device {
		t.Fatal("the device number is the same as before")
	}
	o := s.want(0, s.move(second+"/image", second+"/moved", "--discard-src"))
	if o.last().ID != id || o.events[0].BytesCopied == 0 {
		t.Errorf("migration %s went on as %v", id, o.events[0])
	}
	wantWhole(t, second+"/moved", made)
	wantEmptied(t, second+"/image", made)
}

// fault 69: loop devices come back under other names.
func TestFault69OtherLoopDevices(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 48*mib, 55, mixed)
	sparse(t, s.path("disk"), 48*mib)
	source, destination := attach(t, s.path("image")), attach(t, s.path("disk"))
	r := s.startMove(source, destination, slowly...)
	r.awaitDiscarded()
	id := r.kill().last().ID
	detach(t, source)
	detach(t, destination)
	newDestination, newSource := attach(t, s.path("disk")), attach(t, s.path("image"))
	o := s.want(0, s.move(newSource, newDestination, "--discard-src"))
	if o.last().ID != id {
		t.Errorf("migration %s went on as %s", id, o.last().ID)
	}
	wantWhole(t, newDestination, made)
	wantEmptied(t, s.path("image"), made)
}
