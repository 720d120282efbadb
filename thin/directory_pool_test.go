package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newPool makes a pool of sizeBytes in a registry of its own. When the test ends
// the pool is closed and checked.
func newPool(t *testing.T, sizeBytes int64) *DirectoryPool {
	t.Helper()
	dir := t.TempDir()
	p, err := CreateDirectory(NewRegistry(filepath.Join(dir, "state")), "p", filepath.Join(dir, "pool"), sizeBytes)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, p)
	return p
}

func closeAtEnd(t *testing.T, p *DirectoryPool) {
	t.Cleanup(func() {
		if err := check(p); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

// openAgain opens another handle of the pool, as another process would.
func openAgain(t *testing.T, p *DirectoryPool) *DirectoryPool {
	t.Helper()
	again, err := p.registry.openNamed(p.name)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, again)
	return again
}

// check is what must hold of a settled pool: every volume has its file of the
// right size, every file has its volume, and the limit is kept.
func check(p *DirectoryPool) error {
	if _, err := os.Stat(p.dir); errors.Is(err, os.ErrNotExist) {
		return nil // destroyed
	}
	records, err := p.catalog.volumes()
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, r := range records {
		known[r.name+volumeSuffix] = true
		stat, err := os.Stat(p.volumePath(r.name))
		if err != nil {
			return err
		}
		if stat.Size() != r.sizeBytes || r.state != Active {
			return fmt.Errorf("volume %s in state %s, of %d bytes, has a file of %d bytes", r.name, r.state, r.sizeBytes, stat.Size())
		}
	}
	files, err := filepath.Glob(filepath.Join(p.dir, "*"+volumeSuffix))
	if err != nil {
		return err
	}
	for _, file := range files {
		if !known[filepath.Base(file)] {
			return fmt.Errorf("file %s belongs to no volume", file)
		}
	}
	used, err := allocatedBytes(p.dir, p.blockBytes)
	if err == nil && used > p.sizeBytes {
		err = fmt.Errorf("%d bytes of at most %d are allocated", used, p.sizeBytes)
	}
	return err
}

func mustCreate(t *testing.T, p *DirectoryPool, name string, bytes int64) VolumeInfo {
	t.Helper()
	v, err := p.CreateVolume(name, bytes, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustOpen(t *testing.T, p *DirectoryPool, name string, exclusive bool) *DirectoryVolume {
	t.Helper()
	v, err := p.OpenVolume(name, exclusive)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v.(*DirectoryVolume)
}

// expect fails unless err is want and says all of texts.
func expect(t *testing.T, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not say %q", err, text)
		}
	}
}

func TestPoolTellsItsState(t *testing.T) {
	p := newPool(t, 1<<30)
	mustCreate(t, p, "v", 1<<20)
	v := mustOpen(t, p, "v", false)
	if _, err := v.WriteAt(make([]byte, 3*p.blockBytes), 0); err != nil {
		t.Fatal(err)
	}
	got, err := p.Info()
	want := PoolInfo{
		Name: "p", Kind: "directory", BlockBytes: p.blockBytes, DataBlocks: 1 << 30 / p.blockBytes, DataUsedBlocks: 3,
		TransactionID: 2, Mode: "rw", Volumes: 1, UUID: p.uuid, Dir: p.dir, SizeBytes: 1 << 30,
	}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestPoolIsFoundByItsName(t *testing.T) {
	p := newPool(t, 1<<30)
	again := openAgain(t, p)
	if again.Name() != "p" || again.uuid != p.uuid || again.sizeBytes != p.sizeBytes || again.dir != p.dir {
		t.Errorf("got %+v, want %+v", again, p)
	}
	if names, err := p.registry.List(); err != nil || !slices.Equal(names, []string{"p"}) {
		t.Errorf("the registry lists %q, %v", names, err)
	}
}

func TestPoolOfAnotherHostIsOpenedByItsDirectory(t *testing.T) {
	p := newPool(t, 1<<30)
	other := NewRegistry(filepath.Join(t.TempDir(), "deep", "state"))
	_, err := other.openNamed("p")
	expect(t, err, ErrNotFound, "p", "pool open --dir")
	again, err := other.OpenDir(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, again)
	byName, err := other.openNamed("p")
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, byName)
}

func TestCreateDirectoryRefuses(t *testing.T) {
	p := newPool(t, 1<<30)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "fresh")
	for name, c := range map[string]struct {
		pool, dir string
		bytes     int64
		want      error
	}{
		"a name that is taken":         {"p", fresh, 1 << 20, ErrExists},
		"a directory that is a pool":   {"q", p.dir, 1 << 20, ErrExists},
		"a directory with other files": {"q", full, 1 << 20, ErrNotEmpty},
		"no size":                      {"q", fresh, 0, ErrInvalid},
		"a negative size":              {"q", fresh, -1, ErrInvalid},
		"less than a block":            {"q", fresh, 511, ErrInvalid},
		"a bad name":                   {"../q", fresh, 1 << 20, ErrInvalid},
		"a kernel's file system":       {"q", "/proc", 1 << 20, ErrNotEmpty},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := CreateDirectory(p.registry, c.pool, c.dir, c.bytes)
			if err == nil {
				t.Error(q.Close())
			}
			expect(t, err, c.want)
			if !Refused(err) {
				t.Error("that is not counted as a refusal")
			}
			if _, err := os.Lstat(fresh); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the refusal left %s behind", fresh)
			}
		})
	}
}

func TestCreateDirectoryGoesOnAfterACrash(t *testing.T) {
	dir := t.TempDir()
	registry := NewRegistry(filepath.Join(dir, "state"))
	pool := filepath.Join(dir, "pool")
	if err := os.Mkdir(pool, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, leftover := range []string{lockFile, newCatalogFile, newCatalogFile + "-wal", newCatalogFile + "-shm"} {
		if err := os.WriteFile(filepath.Join(pool, leftover), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := CreateDirectory(registry, "p", pool, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, p)
}

func TestCreateDirectoryThatWasNotRegisteredIsOpened(t *testing.T) {
	dir := t.TempDir()
	registry := NewRegistry(filepath.Join(dir, "state"))
	if err := fillDirectory(dir, "p", 1<<20); err != nil {
		t.Fatal(err)
	}
	_, err := CreateDirectory(registry, "p", dir, 1<<20)
	expect(t, err, ErrExists, "pool open --dir")
	p, err := registry.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, p)
}

func TestOpenRefusesAnotherPoolInTheDirectory(t *testing.T) {
	p := newPool(t, 1<<20)
	if err := os.Symlink(p.dir, p.registry.link("q")); err != nil {
		t.Fatal(err)
	}
	_, err := p.registry.Open("q")
	expect(t, err, ErrForeign, "holds the pool p")
	if err := p.registry.Forget("q"); err != nil {
		t.Error(err)
	}
}

func TestOpenDirRefusesATakenName(t *testing.T) {
	p, q := newPool(t, 1<<20), newPool(t, 1<<20)
	_, err := p.registry.OpenDir(q.dir)
	expect(t, err, ErrExists, p.dir)
}

func TestOpenDirWithoutAPool(t *testing.T) {
	p := newPool(t, 1<<20)
	for _, dir := range []string{t.TempDir(), "/does/not/exist"} {
		_, err := p.registry.OpenDir(dir)
		expect(t, err, ErrNotFound, dir)
	}
}

func TestPoolWhoseDirectoryIsGoneCanBeForgotten(t *testing.T) {
	p := newPool(t, 1<<20)
	if err := os.Symlink("/does/not/exist", p.registry.link("q")); err != nil {
		t.Fatal(err)
	}
	_, err := p.registry.Open("q")
	expect(t, err, ErrNotFound, "/does/not/exist", "pool close q")
	if err := p.registry.Forget("q"); err != nil {
		t.Error(err)
	}
	expect(t, p.registry.Forget("q"), ErrNotFound)
}

func TestPoolWithADamagedCatalogCanBeForgotten(t *testing.T) {
	p := makeSpare(t)
	if err := errors.Join(p.Close(), os.WriteFile(filepath.Join(p.dir, catalogFile), []byte("garbage"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if q, err := p.registry.Open("p"); err == nil {
		t.Error("the pool was opened", q.Close())
	}
	if err := p.registry.Forget("p"); err != nil {
		t.Error(err)
	}
}

func TestForgetLeavesThePoolAlone(t *testing.T) {
	p := newPool(t, 1<<20)
	registry, dir := p.registry, p.dir
	expect(t, registry.Forget("p"), ErrInUse, fmt.Sprintf("process %d", os.Getpid()))
	mustCreate(t, p, "v", 1)
	if err := p.account.user.leave(); err != nil { // as if the handle were closed
		t.Fatal(err)
	}
	if err := registry.Forget("p"); err != nil {
		t.Fatal(err)
	}
	_, err := registry.Open("p")
	expect(t, err, ErrNotFound)
	again, err := registry.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, again)
	if _, err := again.Volume("v"); err != nil {
		t.Error(err)
	}
	if p.account.user, err = enroll(dir); err != nil { // for the Close that follows
		t.Fatal(err)
	}
}

// makeSpare makes a pool that the test closes or destroys by itself.
func makeSpare(t *testing.T) *DirectoryPool {
	t.Helper()
	dir := t.TempDir()
	p, err := CreateDirectory(NewRegistry(filepath.Join(dir, "state")), "p", filepath.Join(dir, "pool"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDestroyRemovesThePool(t *testing.T) {
	p := makeSpare(t)
	if err := p.Destroy(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(p.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if names, err := p.registry.List(); err != nil || len(names) > 0 {
		t.Errorf("the registry lists %q, %v", names, err)
	}
	again, err := CreateDirectory(p.registry, "p", p.dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, again)
}

func TestDestroyLeavesForeignFiles(t *testing.T) {
	p := makeSpare(t)
	foreign := filepath.Join(p.dir, "notes.txt")
	if err := os.WriteFile(foreign, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Destroy(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v; want the foreign file only", entries, err)
	}
}

func TestDestroyRefuses(t *testing.T) {
	p := newPool(t, 1<<20)
	mustCreate(t, p, "v", 1)
	expect(t, p.Destroy(), ErrNotEmpty, "1 volumes", "p")
	if err := p.DeleteVolume("v"); err != nil {
		t.Fatal(err)
	}
	openAgain(t, p)
	expect(t, p.Destroy(), ErrInUse, fmt.Sprintf("process %d", os.Getpid()))
}

// A process that waited for the lock of a pool must not go on in its ruins.
func TestChangeAfterDestroyIsRefused(t *testing.T) {
	p := makeSpare(t)
	waiting, err := newLock(p.dir, lockFile)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	if err := p.Destroy(); err != nil {
		t.Fatal(err)
	}
	expect(t, waiting.with(func() error { t.Error("went on"); return nil }), ErrNotFound)
}

func TestCloseRefusesWhileVolumesAreOpen(t *testing.T) {
	p := newPool(t, 1<<20)
	mustCreate(t, p, "v", 1)
	v := mustOpen(t, p, "v", true)
	expect(t, p.Close(), ErrInUse)
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}

func TestHandleOfADeadProcessIsForgotten(t *testing.T) {
	p := newPool(t, 1<<20)
	left := filepath.Join(p.dir, usersDir, "1-left")
	if err := os.WriteFile(left, []byte(`{"pid":1,"granted_bytes":1048576}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if others, err := otherUsers(p.dir, p.account.user); err != nil || len(others) > 0 {
		t.Errorf("there are other users %v, %v", others, err)
	}
	if free, err := p.FreeBytes(); err != nil || free != 1<<20 {
		t.Errorf("%d bytes are free, %v; want all", free, err)
	}
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its file is still there: %v", err)
	}
}

func TestUnreadableGrantIsNotTakenForNone(t *testing.T) {
	p := newPool(t, 1<<20)
	other := openAgain(t, p)
	if _, err := other.account.user.file.WriteAt([]byte("garbage"), 0); err != nil {
		t.Fatal(err)
	}
	if free, err := p.FreeBytes(); err == nil {
		t.Errorf("%d bytes are said to be free", free)
	}
	if err := other.account.user.setGrant(0); err != nil {
		t.Fatal(err)
	}
}

func TestDefaultStateDir(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the tests run as root")
	}
	t.Setenv("XDG_STATE_HOME", "/elsewhere")
	if dir, err := DefaultStateDir(); err != nil || dir != "/var/lib/decant" {
		t.Errorf("for root: %q, %v", dir, err)
	}
}

func TestNoSpaceErrorIsENOSPC(t *testing.T) {
	err := fmt.Errorf("copy: %w", &NoSpaceError{Pool: "p", Volume: "v", NeedBytes: 2, FreeBytes: 1, SizeBytes: 3})
	expect(t, err, unix.ENOSPC, "p/v", "1 of its 3 bytes free", "2 are needed")
	if Refused(err) {
		t.Error("a full pool counts as a refusal")
	}
}
