package thin

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestCreateVolumeKeepsWhatItIsTold(t *testing.T) {
	p := newPool(t, 1<<20)
	blob := bytes.Repeat([]byte{0, 1, 255, 10}, 64)
	before := time.Now().Truncate(time.Second)
	created, err := p.CreateVolume("v", 12345, blob)
	if err != nil {
		t.Fatal(err)
	}
	if created.Created.Before(before) || created.Created.After(time.Now()) {
		t.Errorf("created %s", created.Created)
	}
	want := VolumeInfo{Pool: "p", Name: "v", ID: 1, ThinID: 1, SizeBytes: 12345, Blob: blob, State: Active, Path: filepath.Join(p.dir, "v.img")}
	again, err := openAgain(t, p).Volume("v")
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []VolumeInfo{created, again} {
		if !got.Created.Equal(created.Created) {
			t.Errorf("created %s, then %s", created.Created, got.Created)
		}
		got.Created, want.Created = time.Time{}, time.Time{}
		if g, w := mustJSON(t, got), mustJSON(t, want); g != w {
			t.Errorf("got %s, want %s", g, w)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestVolumeInfoJSON(t *testing.T) {
	got := mustJSON(t, VolumeInfo{
		Pool: "p", Name: "v", ID: 7, ThinID: 7, SizeBytes: 1, MappedBytes: 2, ExclusiveBytes: 3, ReservedBytes: 4, Blob: []byte{},
		State: Active, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Path: "/p/v.img",
	})
	want := `{"pool":"p","name":"v","id":7,"thin_id":7,"origin":"","size_bytes":1,"mapped_bytes":2,"exclusive_bytes":3,"reserved_bytes":4,` +
		`"blob":"","state":"active","created":"2026-01-02T03:04:05Z","path":"/p/v.img"}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestPoolInfoJSON(t *testing.T) {
	got := mustJSON(t, PoolInfo{Name: "p", Kind: "directory", BlockBytes: 1, DataBlocks: 2, DataUsedBlocks: 3, TransactionID: 4, Mode: "rw", Volumes: 5, Dir: "/p"})
	want := `{"name":"p","kind":"directory","block_bytes":1,"data_blocks":2,"data_used_blocks":3,"metadata_blocks":0,"metadata_used_blocks":0,` +
		`"reserved_blocks":0,"transaction_id":4,"mode":"rw","volumes":5}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestNewVolumeTakesNoSpaceAndReadsZeros(t *testing.T) {
	p := newPool(t, 1<<20)
	mustCreate(t, p, "v", 1<<40)
	v := mustOpen(t, p, "v", false)
	if zero, err := v.ReadsZero(0, v.Bytes()); err != nil || !zero {
		t.Errorf("reads zeros: %v, %v", zero, err)
	}
	if info, err := p.Volume("v"); err != nil || info.MappedBytes != 0 {
		t.Errorf("%d bytes are mapped, %v", info.MappedBytes, err)
	}
}

func TestCreateVolumeRefuses(t *testing.T) {
	p := newPool(t, 1<<20)
	mustCreate(t, p, "v", 1)
	for name, c := range map[string]struct {
		volume string
		bytes  int64
		blob   []byte
		want   error
	}{
		"a name that is taken": {"v", 1, nil, ErrExists},
		"a bad name":           {"../v", 1, nil, ErrInvalid},
		"no size":              {"w", 0, nil, ErrInvalid},
		"a negative size":      {"w", -1, nil, ErrInvalid},
		"a large blob":         {"w", 1, make([]byte, 257), ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.CreateVolume(c.volume, c.bytes, c.blob)
			expect(t, err, c.want)
		})
	}
	if info, err := p.Info(); err != nil || info.Volumes != 1 || info.TransactionID != 2 {
		t.Errorf("the refusals left %+v, %v", info, err)
	}
}

// A file that the pool did not make must never be removed by settling.
func TestCreateVolumeLeavesAForeignFileAlone(t *testing.T) {
	p := newPool(t, 1<<20)
	if err := os.WriteFile(p.volumePath("v"), []byte("foreign"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := p.CreateVolume("v", 1, nil)
	expect(t, err, ErrExists, p.volumePath("v"))
	if text, err := os.ReadFile(p.volumePath("v")); err != nil || string(text) != "foreign" {
		t.Errorf("the file holds %q, %v", text, err)
	}
	if err := os.Remove(p.volumePath("v")); err != nil {
		t.Fatal(err)
	}
}

func TestCreateVolumeThatFailsLeavesNothing(t *testing.T) {
	p := newPool(t, 1<<20)
	immutable(t, p.dir, true) // no name can be added; the catalog's files are there already
	v, err := p.CreateVolume("v", 1, nil)
	immutable(t, p.dir, false)
	if err == nil {
		t.Fatalf("made %+v", v)
	}
	if Refused(err) || !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v, want EPERM", err)
	}
	if volumes, err := p.Volumes(); err != nil || len(volumes) != 0 {
		t.Errorf("the failure left %v, %v", volumes, err)
	}
}

// immutable does what chattr does with +i and -i.
func immutable(t *testing.T, path string, on bool) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	flags, err := unix.IoctlGetInt(int(file.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		t.Fatal(err)
	}
	const immutableFlag = 0x10 // FS_IMMUTABLE_FL, which package unix does not have
	if flags &^= immutableFlag; on {
		flags |= immutableFlag
	}
	if err := unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
		t.Fatal(err)
	}
}

func TestDeleteVolume(t *testing.T) {
	p := newPool(t, 1<<20)
	mustCreate(t, p, "v", 1)
	mustCreate(t, p, "w", 1)
	if err := p.DeleteVolume("v"); err != nil {
		t.Fatal(err)
	}
	_, err := p.Volume("v")
	expect(t, err, ErrNotFound, "p/v")
	_, err = p.OpenVolume("v", false)
	expect(t, err, ErrNotFound, "p/v")
	expect(t, p.DeleteVolume("v"), ErrNotFound, "p/v")
	expect(t, p.DeleteVolume("../w"), ErrInvalid)
	if volumes, err := p.Volumes(); err != nil || len(volumes) != 1 || volumes[0].Name != "w" {
		t.Errorf("there are %v, %v", volumes, err)
	}
}

func TestDeleteVolumeWhoseFileIsGone(t *testing.T) {
	p := newPool(t, 1<<20)
	mustCreate(t, p, "v", 1)
	if err := os.Remove(p.volumePath("v")); err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteVolume("v"); err != nil {
		t.Error(err)
	}
}

// fault 63: killed after any step, a volume is whole or not there, and the same
// command succeeds afterwards.
func TestFault63CrashInCreate(t *testing.T) {
	for _, step := range []string{"recorded creating", "created file"} {
		t.Run(step, func(t *testing.T) {
			p := newPool(t, 1<<20)
			mustDie(t, child(p, "crash", "create", strings.ReplaceAll(step, " ", "_")))
			again := openAgain(t, p)
			if err := check(again); err != nil {
				t.Fatal(err)
			}
			if volumes, err := again.Volumes(); err != nil || len(volumes) != 0 {
				t.Fatalf("the crash left %v, %v", volumes, err)
			}
			if v := mustCreate(t, again, "v", 1); v.ID != 2 {
				t.Errorf("the next id is %d; that of the volume that was begun is used up, so it has to be 2", v.ID)
			}
		})
	}
}

func TestFault63CrashInDelete(t *testing.T) {
	for _, step := range []string{"recorded deleting", "removed file"} {
		t.Run(step, func(t *testing.T) {
			p := newPool(t, 1<<20)
			mustCreate(t, p, "v", 1<<20)
			mustDie(t, child(p, "crash", "delete", strings.ReplaceAll(step, " ", "_")))
			again := openAgain(t, p)
			if err := check(again); err != nil {
				t.Fatal(err)
			}
			expect(t, again.DeleteVolume("v"), ErrNotFound)
			if v := mustCreate(t, again, "v", 1); v.ID != 2 {
				t.Errorf("the next id is %d, want 2", v.ID)
			}
		})
	}
}

// fault 67: a crash while a crash is being settled.
func TestFault67CrashInSettle(t *testing.T) {
	p := newPool(t, 1<<20)
	mustDie(t, child(p, "crash", "settle", "settled_file"))
	if r, err := p.catalog.volume("v"); err != nil || r.state != Creating {
		t.Fatalf("the crash left %+v, %v; it should have come before the record was removed", r, err)
	}
	if err := check(openAgain(t, p)); err != nil {
		t.Error(err)
	}
}

// A handle that was open before the crash settles what it left with its next change.
func TestNextChangeSettlesACrash(t *testing.T) {
	p := newPool(t, 1<<20)
	mustDie(t, child(p, "crash", "create", "created_file"))
	if v := mustCreate(t, p, "v", 5); v.SizeBytes != 5 {
		t.Errorf("got %+v", v)
	}
}

func TestFault63CrashInDestroy(t *testing.T) {
	p := makeSpare(t)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	mustDie(t, child(p, "crash", "destroy", "recorded_deleting_pool"))
	_, err := p.registry.Open("p")
	expect(t, err, ErrNotFound)
	if _, err := os.Lstat(p.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	again, err := CreateDirectory(p.registry, "p", p.dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, again)
}

// Whatever is created, deleted and reopened in whatever order: no id comes twice,
// and the pool lists what a map would.
func TestIDsAreNeverReused(t *testing.T) {
	fewerChecks(t)
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "") //nolint:usetesting // one for each check, not for each test
		if err != nil {
			rt.Fatal(err)
		}
		registry := NewRegistry(filepath.Join(dir, "state"))
		p, err := CreateDirectory(registry, "p", filepath.Join(dir, "pool"), 1<<20)
		if err != nil {
			rt.Fatal(err)
		}
		model, last := map[string]uint64{}, uint64(0)
		name := rapid.SampledFrom([]string{"a", "b", "c"})
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(rt *rapid.T) {
				n := name.Draw(rt, "name")
				v, err := p.CreateVolume(n, 1, nil)
				if _, exists := model[n]; exists {
					if !errors.Is(err, ErrExists) {
						rt.Fatalf("creating %s again: %v", n, err)
					}
					return
				}
				if err != nil || v.ID <= last {
					rt.Fatalf("created %s with id %d after %d, %v", n, v.ID, last, err)
				}
				model[n], last = v.ID, v.ID
			},
			"delete": func(rt *rapid.T) {
				n := name.Draw(rt, "name")
				_, exists := model[n]
				if err := p.DeleteVolume(n); exists != (err == nil) {
					rt.Fatalf("deleting %s, which exists: %v: %v", n, exists, err)
				}
				delete(model, n)
			},
			"reopen": func(rt *rapid.T) {
				if err := p.Close(); err != nil {
					rt.Fatal(err)
				}
				if p, err = registry.openNamed("p"); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				volumes, err := p.Volumes()
				if err != nil || len(volumes) != len(model) || !slices.IsSortedFunc(volumes, func(a, b VolumeInfo) int { return strings.Compare(a.Name, b.Name) }) {
					rt.Fatalf("listed %v, %v; want %v", volumes, err, model)
				}
				for _, v := range volumes {
					if model[v.Name] != v.ID {
						rt.Fatalf("%s has id %d, want %d", v.Name, v.ID, model[v.Name])
					}
				}
			},
		})
		if err := errors.Join(check(p), p.Close()); err != nil {
			rt.Fatal(err)
		}
	})
}

// fewerChecks lowers the number of rapid's checks, unless it was asked for: every
// step here waits for the disk several times.
func fewerChecks(t *testing.T) {
	t.Helper()
	checks := flag.Lookup("rapid.checks")
	if checks.Value.String() != checks.DefValue {
		return
	}
	t.Cleanup(func() {
		if err := checks.Value.Set(checks.DefValue); err != nil {
			t.Error(err)
		}
	})
	if err := checks.Value.Set("8"); err != nil {
		t.Fatal(err)
	}
}
