package journal_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/region"
)

// mount mounts something on a directory of its own until the test ends.
func mount(t *testing.T, source, kind, options string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount(source, dir, kind, 0, options); err != nil {
		t.Fatalf("mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fill writes a file until there is no more space, and gives its name.
func fill(t *testing.T, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // written below as far as the test needs
	for size := 64 << 10; size >= 512; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// fault 57: a full file system costs nothing but the transaction, and the journal
// goes on once there is space.
func TestFault57FullFileSystem(t *testing.T) {
	dir := mount(t, "tmpfs", "tmpfs", "size=2m")
	j := mustCreate(t, filepath.Join(dir, "m.db"), superblockOf(t, 1<<40, 1<<20))
	commit(t, j, regions(0, 10))
	filler := fill(t, dir)
	// Too much for the space that SQLite has in its files already.
	sums := []journal.Checksum{}
	for nr := region.Nr(100); nr < 100_000; nr++ {
		sums = append(sums, journal.Checksum{Nr: nr, Sum: 5})
	}
	large := journal.Transaction{Hydrated: region.NewSet(regions(100, 99_900)), Checksums: sums}
	for range 3 {
		if _, err := j.Commit(large); !errors.Is(err, journal.ErrFull) {
			t.Fatalf("commit on a full file system: %v", err)
		}
		if s := load(t, j); s.Tx != 1 || s.Hydrated.Count() != 10 {
			t.Fatalf("transaction %d, %d regions", s.Tx, s.Hydrated.Count())
		}
		if err := j.Check(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if tx := commit(t, j, regions(100, 10)); tx != 2 {
		t.Errorf("transaction %d", tx)
	}
	mustClose(t, j)
}

// fault 57: opening takes no space, neither does looking; the first change does.
func TestFault57OpenOnFullFileSystem(t *testing.T) {
	dir := mount(t, "tmpfs", "tmpfs", "size=1m")
	path := filepath.Join(dir, "m.db")
	mustClose(t, mustCreate(t, path, superblock(t)))
	filler := fill(t, dir)
	mustClose(t, mustLook(t, path))
	j := mustOpen(t, path)
	for range 2 {
		if _, err := j.Commit(journal.Transaction{Hydrated: region.NewSet(regions(0, 1))}); !errors.Is(err, journal.ErrFull) {
			t.Fatalf("commit on a full file system: %v", err)
		}
		if s := load(t, mustLook(t, path)); s.Tx != 0 {
			t.Errorf("a look shows transaction %d", s.Tx)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	commit(t, j, regions(0, 1))
	mustClose(t, j)
}

func TestCreateOnFullFileSystem(t *testing.T) {
	dir := mount(t, "tmpfs", "tmpfs", "size=1m")
	filler := fill(t, dir)
	path := filepath.Join(dir, "m.db")
	if _, err := journal.Create(path, superblock(t)); !errors.Is(err, journal.ErrFull) {
		t.Errorf("create: %v", err)
	}
	if left, err := filepath.Glob(path + "*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustCreate(t, path, superblock(t)))
}

// fault 58: after a failed sync the journal neither tells nor takes anything until
// it is opened anew. The sync fails because the disk under the file system, a
// sparse file, finds no space.
func TestFault58SyncFails(t *testing.T) {
	under := mount(t, "tmpfs", "tmpfs", "size=12m")
	image := filepath.Join(under, "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0", image)
	loop := strings.TrimSpace(command(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() { command(t, "losetup", "--detach", loop) })
	dir := mount(t, loop, "ext4", "errors=continue")

	j, err := journal.Create(filepath.Join(dir, "m.db"), superblockOf(t, 1<<40, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() }) // or a failing test leaves the mount behind
	commit(t, j, regions(0, 10))
	unix.Sync()
	filler := fill(t, under)
	for nr := region.Nr(1000); err == nil && nr < 2000; nr += 2 {
		_, err = j.Commit(journal.Transaction{
			Hydrated: region.NewSet(regions(nr*256, 1)), Checksums: []journal.Checksum{{Nr: nr * 256, Sum: 1}},
		})
	}
	if !errors.Is(err, journal.ErrUnknownOutcome) {
		t.Fatalf("commit on a failing disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	_, loadErr := j.Load()
	_, commitErr := j.Commit(journal.Transaction{Hydrated: region.NewSet(regions(50, 1))})
	for _, err := range []error{loadErr, commitErr, j.MarkDiscarded([]region.Range{regions(0, 1)}), j.SetPhase(journal.Done)} {
		if !errors.Is(err, journal.ErrUnknownOutcome) {
			t.Errorf("after the failure: %v", err)
		}
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	mustClose(t, mustOpen(t, filepath.Join(dir, "m.db")))
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// fault 59: file systems that cannot keep a journal are named.
func TestFault59FileSystems(t *testing.T) {
	for _, test := range []struct {
		kind   string
		reason error
	}{{"tmpfs", journal.ErrVolatileFS}, {"ramfs", journal.ErrVolatileFS}} {
		dir := mount(t, test.kind, test.kind, "")
		err := journal.CheckFileSystem(dir)
		var e *journal.FileSystemError
		if !errors.Is(err, test.reason) || !errors.As(err, &e) || e.FileSystem != test.kind || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", test.kind, err)
		}
	}
	lower, base := t.TempDir(), mount(t, "tmpfs", "tmpfs", "")
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	if err := errors.Join(os.Mkdir(upper, 0o700), os.Mkdir(work, 0o700)); err != nil {
		t.Fatal(err)
	}
	merged := mount(t, "overlay", "overlay", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work))
	if err := journal.CheckFileSystem(merged); !errors.Is(err, journal.ErrNetworkFS) {
		t.Errorf("overlay: %v", err)
	}
	if err := journal.CheckFileSystem(filepath.Join(lower, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

// fault 60: the second locker is told who has the lock.
func TestFault60SecondLocker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.lock")
	l, err := journal.Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = journal.Lock(path)
	var locked *journal.LockedError
	if !errors.Is(err, journal.ErrLocked) || !errors.As(err, &locked) || locked.PID != os.Getpid() ||
		!strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) || !strings.Contains(err.Error(), path) {
		t.Errorf("second locker: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if l, err = journal.Lock(path); err != nil {
		t.Fatal(err)
	}
	if err := l.Unlock(); err != nil {
		t.Error(err)
	}
}

// Who looks disturbs nobody, and sees what the holder has said of itself.
func TestHolderOfALock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.lock")
	if err := journal.Holder(path); err != nil {
		t.Errorf("without a file: %v", err)
	}
	for _, name := range []string{"", "hydrated"} {
		l, err := journal.LockAs(path, name)
		if err != nil {
			t.Fatal(err)
		}
		var locked *journal.LockedError
		if err := journal.Holder(path); !errors.As(err, &locked) || locked.PID != os.Getpid() || locked.Holder != name {
			t.Errorf("as %q: %v", name, err)
		}
		if _, err := journal.Lock(path); !errors.As(err, &locked) || locked.Holder != name || !strings.Contains(err.Error(), name) {
			t.Errorf("as %q: %v", name, err)
		}
		if err := l.Unlock(); err != nil {
			t.Fatal(err)
		}
		if err := journal.Holder(path); err != nil {
			t.Errorf("of a free lock: %v", err)
		}
	}
	// What older versions and mistakes leave in the file is for people only.
	l, err := journal.Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Unlock() }() // the process ends soon
	for text, pid := range map[string]int{"": 0, "17\n": 17, "x y z": 0, "-3": 0, strings.Repeat("9", 99): 0} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var locked *journal.LockedError
		if err := journal.Holder(path); !errors.As(err, &locked) || locked.PID != pid {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestLockFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "victim"), filepath.Join(dir, "m.lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Lock(filepath.Join(dir, "m.lock")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("got %v", err)
	}
}

// A journal of a huge and almost empty device stays small.
func TestSparseJournalIsSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	sb := superblockOf(t, 16<<40, 1<<20)
	j := mustCreate(t, path, sb)
	rng := rand.New(rand.NewPCG(1, 2))
	data := &region.Set{}
	for range 64 { // 1 GiB in 64 places
		data.Add(regions(region.Nr(rng.Uint64N(sb.Geometry.Regions()-16)), 16))
	}
	holes := region.NewSet(sb.Geometry.All())
	holes.Subtract(data)
	start := time.Now()
	if _, err := j.Commit(journal.Transaction{Hydrated: holes}); err != nil {
		t.Fatal(err)
	}
	sums := []journal.Checksum{}
	for r := range data.Ranges() {
		for nr := r.First; nr < r.End(); nr++ {
			sums = append(sums, journal.Checksum{Nr: nr, Sum: rng.Uint64()})
		}
	}
	if _, err := j.Commit(journal.Transaction{Hydrated: data, Checksums: sums, CopiedBytes: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if err := j.MarkDiscarded([]region.Range{sb.Geometry.All()}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	mustClose(t, j)
	if size := fileBytes(t, path); size > 1<<20 {
		t.Errorf("%d bytes", size)
	}
}

func fileBytes(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestDenseJournalIsSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	const count = 1 << 16
	j := mustCreate(t, path, superblockOf(t, count<<20, 1<<20))
	order := rand.New(rand.NewPCG(3, 4)).Perm(count / 16)
	for len(order) > 0 { // 64 MiB a transaction, from four places
		set, sums := &region.Set{}, []journal.Checksum{}
		for _, i := range order[:4] {
			set.Add(regions(region.Nr(i)*16, 16))
		}
		order = order[4:]
		for r := range set.Ranges() {
			for nr := r.First; nr < r.End(); nr++ {
				sums = append(sums, journal.Checksum{Nr: nr, Sum: uint64(nr)})
			}
		}
		if _, err := j.Commit(journal.Transaction{Hydrated: set, Checksums: sums}); err != nil {
			t.Fatal(err)
		}
	}
	if wal := fileBytes(t, path+"-wal"); wal > 8<<20 {
		t.Errorf("the log has %d bytes", wal)
	}
	mustClose(t, j)
	if size := fileBytes(t, path); size > 64*count {
		t.Errorf("%d bytes a region", size/count)
	}
}
