package thin

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func anEntry() mapperEntry {
	return mapperEntry{
		Kind: KindMapper, UUID: "00112233-4455-4677-8899-aabbccddeeff", Data: "/dev/disk/by-id/data", Metadata: "/dev/disk/by-id/metadata",
		DataKey: "k1", MetadataKey: "k2", BlockBytes: 64 << 10, LowWaterBlocks: 5,
	}
}

func TestMapperEntryInTheRegistry(t *testing.T) {
	r := NewRegistry(filepath.Join(t.TempDir(), "state"))
	e := anEntry()
	if err := r.addMapper("m", e); err != nil {
		t.Fatal(err)
	}
	e.DataKey = "another size"
	if err := r.addMapper("m", e); err != nil {
		t.Fatal(err)
	}
	if got, err := r.mapperEntry("m"); err != nil || got != e {
		t.Errorf("got %+v, %v", got, err)
	}
	dir := filepath.Join(t.TempDir(), "dir")
	d, err := CreateDirectory(r, "d", dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if names, err := r.List(); err != nil || !slices.Equal(names, []string{"d", "m"}) {
		t.Errorf("registered are %q, %v", names, err)
	}
	// Each name is one pool's, of whatever kind.
	_, err = CreateDirectory(r, "m", filepath.Join(t.TempDir(), "new"), 1<<20)
	expect(t, err, ErrExists, "is registered already")
	_, err = CreateMapper(r, "d", MapperOptions{Data: "/dev/null", Metadata: "/dev/null"})
	expect(t, err, ErrExists, "with the directory "+dir)
	expect(t, r.addMapper("d", e), ErrExists)
	other := e
	other.UUID = newUUID()
	expect(t, r.addMapper("m", other), ErrExists)
	if err := r.removeMapper("test", "m", other.UUID); err != nil {
		t.Error(err)
	}
	if _, err := r.mapperEntry("m"); err != nil {
		t.Errorf("the entry of another pool was removed: %v", err)
	}
	if err := r.removeMapper("test", "m", e.UUID); err != nil {
		t.Error(err)
	}
	if names, err := r.List(); err != nil || !slices.Equal(names, []string{"d"}) {
		t.Errorf("registered are %q, %v", names, err)
	}
}

func TestDecodeEntryRefuses(t *testing.T) {
	good := `{"kind":"dm-thin","uuid":"00112233-4455-4677-8899-aabbccddeeff","data":"/dev/a","metadata":"/dev/b","block_bytes":65536}`
	if _, err := decodeEntry([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"dm-thin", "lvm"},
		{"00112233-", "../../../"},
		{"00112233-", "0011223-"},
		{"ccddeeff", "ccddeexx"},
		{`"/dev/a"`, `"a"`},
		{`"/dev/b"`, `""`},
		{"65536", "65537"},
		{"65536", "0"},
		{"65536", `"x"`},
		{"}", `,"low_water_blocks":-1}`},
		{"{", ""},
	} {
		if e, err := decodeEntry([]byte(strings.Replace(good, change[0], change[1], 1))); !errors.Is(err, ErrForeign) {
			t.Errorf("%q for %q: %+v, %v", change[1], change[0], e, err)
		}
	}
}

// An entry that cannot be read can still be forgotten.
func TestForgetDamagedEntry(t *testing.T) {
	r := NewRegistry(t.TempDir())
	if err := r.addMapper("m", anEntry()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.link("m"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := r.Open("m")
	expect(t, err, ErrForeign, "is damaged", "thinctl pool close m")
	if err := r.Forget("m"); err != nil {
		t.Error(err)
	}
	expect(t, r.Forget("m"), ErrNotFound)
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add(`{"kind":"dm-thin","uuid":"00112233-4455-4677-8899-aabbccddeeff","data":"/dev/a","metadata":"/dev/b","block_bytes":65536}`)
	f.Fuzz(func(t *testing.T, text string) {
		if e, err := decodeEntry([]byte(text)); err == nil && strings.ContainsAny(e.UUID, "/\n\x00") {
			t.Errorf("the UUID %q is taken", e.UUID)
		}
	})
}

func TestDeviceNamesOfPoolsDoNotMeet(t *testing.T) {
	// Names of pools and volumes have no colon, those of catalogs do.
	for _, name := range []string{catalogDeviceName("a"), peekDeviceName("a"), "decant:probe"} {
		if ValidateName(name) == nil {
			t.Errorf("a pool can have the name %q", name)
		}
	}
}

func TestCheckBlockBytes(t *testing.T) {
	for bytes, good := range map[int64]bool{
		64 << 10: true, 192 << 10: true, 1 << 30: true, 0: false, -65536: false, 4096: false, 100 << 10: false, 2 << 30: false,
	} {
		if err := checkBlockBytes(bytes); (err == nil) != good {
			t.Errorf("%d: %v", bytes, err)
		}
	}
}
