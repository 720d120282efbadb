package loopdev

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestResizeEmptiesTheFile(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		for _, size := range []int64{1 << 20, 300_000, 5 << 20} {
			path, _ := image(t, dirOn(t, fsType), 1<<20)
			d := openDevice(t, path, readWrite)
			must(t, d.Resize(size))
			if d.Bytes() != size || d.Info().Bytes != size {
				t.Errorf("%s: the device has %d bytes, want %d", fsType, d.Bytes(), size)
			}
			sameBytes(t, fsType, readAll(t, d), make([]byte, size))
			if n, err := d.AllocatedBytes(); n != 0 || err != nil {
				t.Errorf("%s: takes %d bytes after it was emptied: %v", fsType, n, err)
			}
			want := random(4096, 1)
			_, err := d.WriteAt(want, size-4096)
			must(t, err)
			sameBytes(t, fsType+" written anew", readAll(t, d)[size-4096:], want)
		}
	}
}

// What a file that is being emptied still holds exists nowhere else.
func TestResizeRefusesWhatIsBeingEmptied(t *testing.T) {
	path, content := image(t, dirOn(t, "ext4"), 1<<20)
	d := openDevice(t, path, readWrite)
	must(t, d.WriteMark(Mark{ID: "m1", Role: GivingRole}))
	if err := d.Resize(2 << 20); !errors.Is(err, ErrMarked) {
		t.Errorf("%v", err)
	}
	sameBytes(t, "the refused file", readAll(t, d), content)
	must(t, d.RemoveMark())
	must(t, d.WriteMark(Mark{ID: "m2", Role: "destination"}))
	must(t, d.Resize(2<<20))
	if m, marked, err := d.ReadMark(); m.ID != "m2" || !marked || err != nil {
		t.Errorf("the mark of what is being filled: %+v, %v, %v", m, marked, err)
	}
}

func TestResizeRefusesABrokenMark(t *testing.T) {
	path, content := image(t, dirOn(t, "ext4"), 1<<20)
	must(t, unix.Setxattr(path, "user.decant.mark", []byte("{"), 0))
	d := openDevice(t, path, readWrite)
	if err := d.Resize(2 << 20); err == nil {
		t.Error("resized under a broken mark")
	}
	sameBytes(t, "the refused file", readAll(t, d), content)
}

func TestImpossibleSizeLosesNothing(t *testing.T) {
	path, content := image(t, dirOn(t, "ext4"), 1<<20)
	d := openDevice(t, path, readWrite)
	for size, want := range map[int64]error{-1: unix.EINVAL, 1 << 60: unix.EFBIG} {
		if err := d.Resize(size); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, want %v", size, err, want)
		}
		sameBytes(t, "the refused file", readAll(t, d), content)
	}
}

func TestResizeOfOtherThanFiles(t *testing.T) {
	path, content := image(t, dirOn(t, "ext4"), 1<<20)
	if err := openDevice(t, path, Options{}).Resize(1 << 20); !errors.Is(err, ErrReadOnly) {
		t.Errorf("opened for reading: %v", err)
	}
	loop := openDevice(t, attach(t, path), readWrite)
	if err := loop.Resize(1 << 20); !errors.Is(err, ErrWrongType) {
		t.Errorf("loop device: %v", err)
	}
	sameBytes(t, "the refused file", readAll(t, loop), content)
	_, block := blockDevice(t, t.TempDir(), 1<<20)
	if err := openDevice(t, block, readWrite).Resize(1 << 20); !errors.Is(err, ErrWrongType) {
		t.Errorf("block device: %v", err)
	}
}

func TestSetModified(t *testing.T) {
	want := time.Unix(1_700_000_000, 123_456_789)
	for _, fsType := range []string{"ext4", "xfs", "btrfs", "tmpfs"} {
		path, _ := image(t, dirOn(t, fsType), 1<<20)
		for _, d := range []*Device{openDevice(t, path, Options{Write: true}), openDevice(t, attach(t, path), Options{Write: true})} {
			must(t, d.SetModified(time.Unix(1, 0)))
			before := statOf(t, path)
			must(t, d.SetModified(want))
			after := statOf(t, path)
			if got := time.Unix(after.Mtim.Unix()); !got.Equal(want) {
				t.Errorf("%s: %s, want %s", fsType, got, want)
			}
			if after.Atim != before.Atim {
				t.Errorf("%s: the time of the last access was changed, too", fsType)
			}
			if same, err := d.UnchangedSince(want); !same || err != nil {
				t.Errorf("%s: %v, %v", fsType, same, err)
			}
		}
	}
}

func TestSetModifiedLeavesABlockDeviceAlone(t *testing.T) {
	backing, block := blockDevice(t, t.TempDir(), 1<<20)
	before := statOf(t, backing).Mtim
	must(t, openDevice(t, block, readWrite).SetModified(time.Unix(1, 0)))
	if after := statOf(t, backing).Mtim; after != before {
		t.Errorf("%v, and was %v", after, before)
	}
}

func statOf(t testing.TB, path string) (st unix.Stat_t) {
	t.Helper()
	must(t, unix.Stat(path, &st))
	return st
}
