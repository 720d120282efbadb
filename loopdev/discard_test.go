package loopdev

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var punching = []string{"ext4", "xfs", "btrfs", "tmpfs"}

func TestDiscardGivesSpaceBack(t *testing.T) {
	for _, fsType := range punching {
		path, content := image(t, dirOn(t, fsType), 8<<20)
		for _, path := range []string{path, attach(t, path)} {
			d := openDevice(t, path, readWrite)
			must(t, d.SyncFS())
			before, err := d.AllocatedBytes()
			must(t, err)
			const off, n = 1 << 20, 2 << 20
			must(t, d.Discard(off, n))
			must(t, d.Discard(off, n)) // again changes nothing
			must(t, d.SyncFS())
			after, err := d.AllocatedBytes()
			must(t, err)
			if path == d.Info().BackingPath && before-after != n || after > 6<<20+64<<10 {
				t.Errorf("%s: %d allocated before, %d after", fsType, before, after)
			}
			got := readAll(t, d)
			sameBytes(t, "before the hole", got[:off], content[:off])
			sameBytes(t, "behind the hole", got[off+n:], content[off+n:])
			must(t, d.Close())
		}
	}
}

// btrfs keeps an extent as long as a byte of it is in use, so all of the file has
// to go before the free space tells.
func TestDiscardGivesSpaceBackToTheFileSystem(t *testing.T) {
	for _, fsType := range punching {
		path, _ := image(t, dirOn(t, fsType), 8<<20)
		d := openDevice(t, path, readWrite)
		must(t, d.SyncFS())
		before, err := d.FreeBytes()
		must(t, err)
		must(t, d.Discard(0, 8<<20))
		must(t, d.SyncFS())
		after, err := d.FreeBytes()
		must(t, err)
		if after-before < 8<<20-64<<10 {
			t.Errorf("%s: %d free before, %d after", fsType, before, after)
		}
	}
}

// A range that ends with the file frees the last block, though it covers only
// part of it; a range that ends with a part of the file does not.
func TestDiscardAtTheEndOfTheFile(t *testing.T) {
	for _, fsType := range punching {
		path, content := image(t, dirOn(t, fsType), 100<<12+10)
		part := openDevice(t, attach(t, path, "--sizelimit", "409600"), Options{Write: true})
		must(t, part.Discard(0, 409600))
		got, err := os.ReadFile(path)
		must(t, err)
		sameBytes(t, "behind the part", got[409600:], content[409600:])
		if blocksOf(t, path) == 0 {
			t.Errorf("%s: the tail is gone", fsType)
		}
		d := openDevice(t, path, readWrite)
		must(t, d.Discard(0, d.Bytes()))
		if n, err := d.AllocatedBytes(); n != 0 || err != nil {
			t.Errorf("%s: %d bytes are left: %v", fsType, n, err)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != 100<<12+10 {
			t.Errorf("%s: the file has %d bytes: %v", fsType, st.Size(), err)
		}
	}
}

// fault 23: where a range covers no whole block, its data stays.
func TestFault23PartsOfBlocksAreNotPunched(t *testing.T) {
	for _, fsType := range punching {
		path, content := image(t, dirOn(t, fsType), 64<<10)
		d := openDevice(t, path, readWrite)
		must(t, d.Discard(100, 4096))
		must(t, d.Discard(4096, 4095))
		sameBytes(t, fsType, readAll(t, d), content)
		must(t, d.Discard(100, 3*4096))
		clear(content[4096 : 3*4096])
		sameBytes(t, fsType, readAll(t, d), content)
	}
}

// fault 11: file systems that cannot punch say so, to the probe and to Discard.
func TestFault11FileSystemWithoutHoles(t *testing.T) {
	dir := dirOn(t, "ramfs")
	if err := ProbePunch(dir); !errors.Is(err, ErrCannotPunch) || !errors.Is(err, unix.EOPNOTSUPP) {
		t.Error("probe:", err)
	}
	path, content := image(t, dir, 64<<10)
	d := openDevice(t, path, readWrite)
	if err := d.Discard(0, 64<<10); !errors.Is(err, ErrCannotPunch) || !errors.Is(err, unix.EOPNOTSUPP) {
		t.Error("discard:", err)
	}
	sameBytes(t, "the file", readAll(t, d), content)
	must(t, d.Zero(100, 50000))
	clear(content[100:50100])
	sameBytes(t, "the file with zeros", readAll(t, d), content)
}

func TestProbePunch(t *testing.T) {
	for _, fsType := range punching {
		dir := dirOn(t, fsType)
		if err := ProbePunch(dir); err != nil {
			t.Errorf("%s: %v", fsType, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: the probe left %v: %v", fsType, left, err)
		}
	}
	if err := ProbePunch("/proc/self"); err == nil || errors.Is(err, ErrCannotPunch) {
		t.Errorf("where no file can be made: %v", err)
	}
}

// fault 1
func TestFault1NothingIsDiscardedFromATruncatedFile(t *testing.T) {
	path, content := image(t, dirOn(t, "ext4"), 1<<20)
	d := openDevice(t, path, readWrite)
	must(t, os.Truncate(path, 1<<20-1))
	if err := d.Discard(0, 64<<10); !errors.Is(err, ErrSourceShrunk) {
		t.Error(err)
	}
	got, err := os.ReadFile(path)
	must(t, err)
	sameBytes(t, "the file", got, content[:1<<20-1])
}

// fault 5
func TestFault5DiscardKeepsTheModificationTime(t *testing.T) {
	for _, fsType := range punching {
		path, content := image(t, dirOn(t, fsType), 1<<20)
		d := openDevice(t, path, readWrite)
		kept := d.Info().Modified
		d.KeepModified(kept)
		for off := int64(0); off < 256<<10; off += 64 << 10 {
			must(t, d.Discard(off, 64<<10))
			if st, err := os.Stat(path); err != nil || !st.ModTime().Equal(kept) {
				t.Fatalf("%s: modified %v, want %v: %v", fsType, st.ModTime(), kept, err)
			}
		}
		clear(content[:256<<10])

		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("foreign"), 512<<10)
		must(t, err)
		must(t, f.Close())
		copy(content[512<<10:], "foreign")
		for range 2 {
			if err := d.Discard(300<<10, 64<<10); !errors.Is(err, ErrSourceChanged) {
				t.Errorf("%s: after a foreign write: %v", fsType, err)
			}
		}
		sameBytes(t, fsType, readAll(t, d), content)
		if ok, err := d.UnchangedSince(kept); ok || err != nil {
			t.Errorf("%s: UnchangedSince after a foreign write: %v, %v", fsType, ok, err)
		}
	}
}

// fault 5: a punch that was killed before it restored the time is told from a
// foreign write by the mark.
func TestFault5KilledPunchIsOurOwn(t *testing.T) {
	path, _ := image(t, dirOn(t, "ext4"), 1<<20)
	d := openDevice(t, path, readWrite)
	kept := d.Info().Modified
	must(t, os.Chtimes(path, kept, kept))
	must(t, d.WriteMark(Mark{ID: "m", Role: "source", Tx: 3, Since: time.Now().Add(-time.Hour)}))
	if ok, err := d.UnchangedSince(kept); !ok || err != nil {
		t.Fatalf("an untouched file: %v, %v", ok, err)
	}
	// What punchInPieces does, and no restoreModified: the process is gone.
	must(t, d.punchInPieces(0, 64<<10))
	must(t, d.Close())

	d = openDevice(t, path, readWrite)
	d.KeepModified(kept)
	if err := d.Discard(64<<10, 64<<10); !errors.Is(err, ErrSourceChanged) {
		t.Errorf("discard before anybody asked: %v", err)
	}
	if ok, err := d.UnchangedSince(kept); !ok || err != nil {
		t.Fatalf("after our own punch: %v, %v", ok, err)
	}
	must(t, d.Discard(64<<10, 64<<10))
	if st, err := os.Stat(path); err != nil || !st.ModTime().Equal(kept) {
		t.Errorf("modified %v, want %v: %v", st.ModTime(), kept, err)
	}
	mark, _, err := d.ReadMark()
	must(t, err)
	if mark.ID != "m" || mark.Role != "source" || mark.Tx != 3 || time.Since(mark.Since) > time.Minute {
		t.Errorf("the mark is %+v now", mark)
	}
	// Nothing was killed any more: whoever changes the file is somebody else, also
	// at the very moment of our own last punch.
	for _, delay := range []time.Duration{-500 * time.Millisecond, 0, 50 * time.Millisecond} {
		must(t, os.Chtimes(path, kept, mark.Since.Add(delay)))
		if ok, err := d.UnchangedSince(kept); ok || err != nil {
			t.Errorf("modified by somebody %v after the mark: %v, %v", delay, ok, err)
		}
	}

	must(t, d.punchInPieces(128<<10, 192<<10)) // killed once more
	mark, _, err = d.ReadMark()
	must(t, err)
	must(t, d.WriteMark(Mark{ID: "m", Role: "source", Tx: 4, Since: time.Now().Add(time.Hour)})) // by the next run, before its first punch
	for delay, want := range map[time.Duration]bool{
		-1500 * time.Millisecond: false, -500 * time.Millisecond: true,
		50 * time.Millisecond: true, 200 * time.Millisecond: false,
	} {
		must(t, os.Chtimes(path, kept, mark.Since.Add(delay)))
		if ok, err := d.UnchangedSince(kept); ok != want || err != nil {
			t.Errorf("modified %v after the mark: %v, %v", delay, ok, err)
		}
	}
}

// fault 13
func TestFault13ActiveSwapFile(t *testing.T) {
	dir := dirOn(t, "ext4")
	path, _ := image(t, dir, 8<<20)
	must(t, os.Chmod(path, 0o600))
	run(t, "mkswap", path)
	run(t, "swapon", path)
	t.Cleanup(func() { run(t, "swapoff", path) })
	d, err := Open(path, Options{Write: true})
	if errors.Is(err, unix.ETXTBSY) {
		d, err = Open(path, Options{}) // refused for writing already
	}
	must(t, err)
	defer d.Close()
	uses, err := d.UsedBy()
	must(t, err)
	wantUse(t, uses, Swap)
	if d.write {
		if err := d.Discard(4<<20, 1<<20); !errors.Is(err, unix.ETXTBSY) {
			t.Error("discard:", err)
		}
	}
}

func TestBlockDeviceDiscardAndZeroFreeWhatIsBelow(t *testing.T) {
	file, device := blockDevice(t, dirOn(t, "ext4"), 4<<20)
	d := openDevice(t, device, readWrite)
	if d.Info().Kind != Block || !d.Info().DirectIO {
		t.Fatalf("%+v", d.Info())
	}
	before := blocksOf(t, file)
	must(t, d.Discard(1<<20, 1<<20))
	if freed := before - blocksOf(t, file); freed != 1<<20/512 {
		t.Errorf("a discard freed %d blocks", freed)
	}
	before = blocksOf(t, file)
	must(t, d.Zero(2<<20, 1<<20))
	if freed := before - blocksOf(t, file); freed != 1<<20/512 {
		t.Errorf("zeroing freed %d blocks", freed)
	}
	if err := d.Discard(100, 200); err != nil {
		t.Errorf("a range without a whole block: %v", err)
	}
}

// A block device that cannot discard says so, and is zeroed by writing.
func TestBlockDeviceWithoutDiscard(t *testing.T) {
	file, content := image(t, dirOn(t, "ramfs"), 1<<20)
	d := openDevice(t, attach(t, attach(t, file)), readWrite)
	if d.Info().Kind != Block {
		t.Fatalf("%+v", d.Info())
	}
	if err := d.Discard(0, 1<<20); !errors.Is(err, ErrCannotPunch) || !errors.Is(err, unix.EOPNOTSUPP) {
		t.Error(err)
	}
	sameBytes(t, "the device", readAll(t, d), content)
	must(t, d.Zero(1000, 500000))
	clear(content[1000:501000])
	sameBytes(t, "the device with zeros", readAll(t, d), content)
}

func TestZeroFreesBlocksOfAFile(t *testing.T) {
	for _, fsType := range punching {
		path, _ := image(t, dirOn(t, fsType), 1<<20)
		d := openDevice(t, path, readWrite)
		must(t, d.Zero(0, d.Bytes()))
		must(t, d.Flush())
		sameBytes(t, fsType, readAll(t, d), make([]byte, 1<<20))
		if blocksOf(t, path) != 0 {
			t.Errorf("%s: %d blocks are left", fsType, blocksOf(t, path))
		}
	}
}

func TestProbeLeavesNothingIfItFails(t *testing.T) {
	dir := dirOn(t, "ramfs")
	ProbePunch(dir) //nolint:errcheck // its failure is another test's business
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// fault 2: a file that grows while a Discard is under way gets its old modification
// time back, and its size still tells.
func TestFault2GrowthShowsWithoutTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d := openDevice(t, path, Options{Write: true, Exclusive: true})
	kept := d.Info().Modified
	d.KeepModified(kept)
	if err := os.Truncate(path, 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, kept); err != nil {
		t.Fatal(err)
	}
	if same, err := d.UnchangedSince(kept); same || err != nil {
		t.Errorf("a file that has grown counts as unchanged: %v, %v", same, err)
	}
	if err := d.Discard(0, 64<<10); !errors.Is(err, ErrSourceChanged) {
		t.Errorf("a file that has grown is discarded: %v", err)
	}
}
