package loopdev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func deviceNumber(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Rdev
}

func TestBlockDeviceAt(t *testing.T) {
	path, _ := image(t, dirOn(t, "ext4"), 4<<20)
	loop, partition := attachPartition(t, path, 2048, 2048)
	over := attach(t, loop)
	for device, want := range map[string]BlockDevice{
		loop:      {BackingFile: path},
		partition: {Below: []uint64{deviceNumber(t, loop)}},
		over:      {Below: []uint64{deviceNumber(t, loop)}},
	} {
		got, err := BlockDeviceAt(deviceNumber(t, device))
		must(t, err)
		if got.Title != device || got.BackingFile != want.BackingFile || !slices.Equal(got.Below, want.Below) || got.Mapper != "" {
			t.Errorf("%s: %+v, want %+v", device, got, want)
		}
		if got.DiscardBytes == 0 {
			t.Errorf("%s takes no discards", device)
		}
	}
	if _, err := BlockDeviceAt(unix.Mkdev(4000, 1)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no device: %v", err)
	}
}

func TestPlace(t *testing.T) {
	outer := dirOn(t, "ext4")
	medium := filepath.Join(outer, "medium")
	must(t, os.WriteFile(medium, nil, 0o600))
	must(t, os.Truncate(medium, 32<<20))
	loop := attach(t, medium)
	run(t, "mkfs.ext4", "-q", loop)
	for _, options := range []string{"rw", "discard"} {
		t.Run(options, func(t *testing.T) {
			dir := mountOn(t, loop, "-o", options)
			path, _ := image(t, dir, 1<<20)
			d := openDevice(t, path, readWrite)
			p, err := d.Place()
			must(t, err)
			defer p.Close()
			if p.Path != path || p.FSType != "ext4" || p.DiscardsFreed != (options == "discard") || !slices.Equal(p.Devices, []uint64{deviceNumber(t, loop)}) {
				t.Errorf("%+v", p)
			}
			free, err := p.FreeBytes()
			must(t, err)
			if want, err := d.FreeBytes(); err != nil || free != want {
				t.Errorf("%d bytes are free, the device says %d, %v", free, want, err)
			}
			below, err := PlaceAt(medium)
			must(t, err)
			defer below.Close()
			if holes, err := below.HoleBytes(); err != nil || holes <= 16<<20 || holes >= 32<<20 {
				t.Errorf("%d bytes of holes in a medium of 32 MiB, %v", holes, err)
			}
			if holes, err := p.HoleBytes(); err != nil || holes != 0 {
				t.Errorf("%d bytes of holes in a solid file, %v", holes, err)
			}
		})
	}
}

func TestPlaceInMemoryHasNoDevice(t *testing.T) {
	p, err := PlaceAt(dirOn(t, "tmpfs"))
	must(t, err)
	defer p.Close()
	if len(p.Devices) != 0 || p.FSType != "tmpfs" {
		t.Errorf("%+v", p)
	}
}

func TestBlockHasNoPlace(t *testing.T) {
	path, _ := image(t, dirOn(t, "ext4"), 1<<20)
	d := openDevice(t, attach(t, attach(t, path)), Options{})
	if p, err := d.Place(); p != nil || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
}

// What was punched leaves the medium when its file system is trimmed, not before.
func TestTrim(t *testing.T) {
	medium := filepath.Join(dirOn(t, "ext4"), "medium")
	must(t, os.WriteFile(medium, nil, 0o600))
	must(t, os.Truncate(medium, 64<<20))
	loop := attach(t, medium)
	run(t, "mkfs.ext4", "-q", loop)
	path, _ := image(t, mountOn(t, loop), 16<<20)
	d := openDevice(t, path, readWrite)
	must(t, d.SyncFS())
	_, err := d.Trim(1 << 20) // of what mkfs has left
	must(t, err)
	before := blocksOf(t, medium)
	must(t, d.Discard(0, 12<<20))
	must(t, d.SyncFS())
	if n := blocksOf(t, medium); n < before {
		t.Errorf("the medium takes %d blocks after %d without a trim", n, before)
	}
	trimmed, err := d.Trim(64 << 10)
	must(t, err)
	if freed := (before - blocksOf(t, medium)) * 512; trimmed < 12<<20 || freed < 11<<20 {
		t.Errorf("%d bytes were trimmed, the medium takes %d less", trimmed, freed)
	}
}

func TestTrimWhereNothingCan(t *testing.T) {
	path, _ := image(t, dirOn(t, "tmpfs"), 1<<20)
	if _, err := openDevice(t, path, readWrite).Trim(0); !errors.Is(err, ErrCannotPunch) {
		t.Errorf("tmpfs: %v", err)
	}
	path, _ = image(t, dirOn(t, "ext4"), 1<<20)
	block := openDevice(t, attach(t, attach(t, path)), Options{})
	if n, err := block.Trim(0); n != 0 || err != nil {
		t.Errorf("a block device: %d, %v", n, err)
	}
}

// A hole in the middle of a piece makes two of it.
func TestFragments(t *testing.T) {
	dir := dirOn(t, "ext4")
	path, _ := image(t, dir, 1<<20)
	d := openDevice(t, path, readWrite)
	before, err := d.Fragments()
	must(t, err)
	must(t, d.Discard(512<<10, 64<<10))
	after, err := d.Fragments()
	must(t, err)
	if before < 1 || after != before+1 {
		t.Errorf("%d fragments, then %d", before, after)
	}
	empty := filepath.Join(dir, "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	must(t, os.Truncate(empty, 1<<20))
	if n, err := openDevice(t, empty, readWrite).Fragments(); err != nil || n != 0 {
		t.Errorf("%d fragments in a hole, %v", n, err)
	}
}
