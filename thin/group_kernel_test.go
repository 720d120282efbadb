//go:build testkernel

package thin

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decant/loopdev"
)

const groupExtentBytes = 1 << 20

// lvm runs a command of LVM that must succeed.
func lvm(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("lvm", args...).CombinedOutput(); err != nil {
		t.Fatalf("lvm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// newTestGroup makes the volume group "vg" with a thin pool "pool" of 32 MiB, and
// opens it.
func newTestGroup(t *testing.T, flags ...string) *GroupPool {
	t.Helper()
	disk := strings.Fields(os.Getenv("DECANT_TEST_DISKS"))[0]
	lvm(t, "vgcreate", "-q", "-y", "-s", "1m", "vg", disk)
	t.Cleanup(func() { lvm(t, "vgremove", "-q", "-ff", "-y", "vg") })
	lvm(t, append([]string{"lvcreate", "-q", "--type", "thin-pool", "-L", "32m", "-n", "pool", "--poolmetadatasize", "4m", "vg"}, flags...)...)
	p, err := OpenGroup("vg", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *GroupPool) mustCreate(t *testing.T, name string, size int64) VolumeInfo {
	t.Helper()
	info, err := p.CreateVolume(name, size, nil)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func (p *GroupPool) mustOpen(t *testing.T, name string) *GroupVolume {
	t.Helper()
	v, err := p.OpenVolume(name, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil { // a second time does nothing
			t.Error(err)
		}
	})
	return v.(*GroupVolume)
}

func wantError(t *testing.T, err, want error, words string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v, want %v with %q", err, want, words)
	}
}

func TestKernelGroupCreateShowDelete(t *testing.T) {
	p := newTestGroup(t)
	info := p.mustCreate(t, "vm", 5*groupExtentBytes-1)
	if info.SizeBytes != 5*groupExtentBytes || info.MappedBytes != 0 || info.Path != "/dev/vg/vm" || info.State != Active || info.Created.IsZero() {
		t.Errorf("%+v", info)
	}
	wantError(t, p.tryCreate("vm"), ErrExists, "exists already")
	wantError(t, p.tryCreate("pool"), ErrExists, "exists already")
	wantError(t, p.tryCreate("-vm"), ErrInvalid, "begins with")
	_, err := p.CreateVolume("blob", groupExtentBytes, []byte("x"))
	wantError(t, err, ErrInvalid, "no blob")
	for _, size := range []int64{0, -1, 1<<63 - 1} {
		_, err := p.CreateVolume("big", size, nil)
		wantError(t, err, ErrInvalid, "a size of")
	}
	volumes, err := p.Volumes()
	if err != nil || len(volumes) != 1 || volumes[0].Name != "vm" {
		t.Errorf("%+v, %v", volumes, err)
	}
	if err := p.DeleteVolume("vm"); err != nil {
		t.Fatal(err)
	}
	wantError(t, p.DeleteVolume("vm"), ErrNotFound, "no such volume")
	wantError(t, p.DeleteVolume("pool"), ErrInvalid, "thin pool")
	wantError(t, p.Destroy(), ErrInvalid, "belongs to LVM")
}

func (p *GroupPool) tryCreate(name string) error {
	_, err := p.CreateVolume(name, groupExtentBytes, nil)
	return err
}

func TestKernelGroupInfoCountsBlocks(t *testing.T) {
	p := newTestGroup(t, "-c", "64k")
	p.mustCreate(t, "vm", 8<<20)
	v := p.mustOpen(t, "vm")
	before, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	if before.Kind != KindGroup || before.BlockBytes != 64<<10 || before.DataBlocks != 512 || before.DataUsedBlocks != 0 ||
		before.Mode != ReadWrite || before.Volumes != 1 || before.MetadataBlocks == 0 {
		t.Errorf("%+v", before)
	}
	data := bytes.Repeat([]byte{7}, 3<<16)
	if _, err := v.WriteAt(data, 1<<16); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(v.Flush(), v.SyncFS()); err != nil {
		t.Fatal(err)
	}
	after, err := p.Info()
	free, freeErr := v.FreeBytes()
	allocated, allocatedErr := v.AllocatedBytes()
	if err := errors.Join(err, freeErr, allocatedErr); err != nil {
		t.Fatal(err)
	}
	if after.DataUsedBlocks != 3 || allocated != 3<<16 || free > (512-3)<<16 || free <= 0 {
		t.Errorf("%+v, %d allocated, %d free", after, allocated, free)
	}
	if info, err := p.Volume("vm"); err != nil || info.MappedBytes != 3<<16 {
		t.Errorf("%+v, %v", info, err)
	}
	if holds, err := v.HoldsData(); err != nil || !holds {
		t.Errorf("holds data: %t, %v", holds, err)
	}
	if err := errors.Join(v.Zero(0, 8<<20), v.Flush()); err != nil {
		t.Fatal(err)
	}
	start, _, err := v.NextData(0)
	if err != nil || start != 8<<20 {
		t.Errorf("after all was zeroed: data at %d, %v", start, err)
	}
}

// fault 30: a volume that is open or mounted is neither opened nor deleted.
func TestKernelGroupFault30VolumeInUse(t *testing.T) {
	p := newTestGroup(t)
	p.mustCreate(t, "vm", 8<<20)
	v := p.mustOpen(t, "vm")
	wantError(t, p.DeleteVolume("vm"), ErrInUse, "in use")
	_, err := p.OpenVolume("vm", true)
	wantError(t, err, ErrInUse, "in use")
	wantError(t, p.Close(), ErrInUse, "1 of its volumes")
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "/dev/vg/vm").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount("/dev/vg/vm", dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) }) // it is unmounted unless the test fails
	wantError(t, p.DeleteVolume("vm"), ErrInUse, "in use")
	_, err = p.OpenVolume("vm", true)
	wantError(t, err, ErrInUse, "in use")
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteVolume("vm"); err != nil {
		t.Error(err)
	}
}

// The key is the same by whichever path the volume is reached, and under another name.
func TestKernelGroupKeyIsTheDevices(t *testing.T) {
	p := newTestGroup(t)
	p.mustCreate(t, "vm", 8<<20)
	v := p.mustOpen(t, "vm")
	key := v.Info().Key
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	lvm(t, "lvrename", "-q", "vg", "vm", "other")
	device, err := loopdev.Open("/dev/vg/other", loopdev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := device.Info().Key; got != key || !strings.Contains(key, "LVM-") {
		t.Errorf("as a device it is %q, as a volume %q", got, key)
	}
	if err := device.Close(); err != nil {
		t.Error(err)
	}
}

// A pool that is inactive is active as long as it is looked at, and so are volumes.
func TestKernelGroupInactive(t *testing.T) {
	p := newTestGroup(t)
	p.mustCreate(t, "vm", 8<<20)
	lvm(t, "vgchange", "-q", "-an", "vg")
	other, err := OpenGroupFor("vg", "vm", "")
	if err != nil {
		t.Fatal(err)
	}
	if free, err := other.FreeBytes(); err != nil || free <= 0 {
		t.Errorf("%d bytes are free, %v", free, err)
	}
	v := other.mustOpen(t, "vm")
	if err := errors.Join(v.Close(), other.Close()); err != nil {
		t.Fatal(err)
	}
	control := p.control
	for _, uuid := range []string{v.volume.deviceUUID(), p.pool.deviceUUID() + "-tpool"} {
		if _, err := control.InfoByUUID(uuid); !errors.Is(err, unix.ENXIO) {
			t.Errorf("%s: %v, want it to be inactive again", uuid, err)
		}
	}
}

// Only CreateVolume puts the tag on, and only Keep takes it off.
func TestKernelGroupTag(t *testing.T) {
	p := newTestGroup(t)
	p.mustCreate(t, "vm", 8<<20)
	lvm(t, "lvcreate", "-q", "-V", "8m", "-n", "theirs", "--thinpool", "vg/pool")
	lvm(t, "lvchange", "-q", "--addtag", "mine", "vg/vm")
	if p.mustOpen(t, "theirs").Fresh() {
		t.Error("a volume of others counts as made by this program")
	}
	v := p.mustOpen(t, "vm")
	if !v.Fresh() {
		t.Error("a volume of this program is not known again")
	}
	if err := errors.Join(v.Keep(), v.Close()); err != nil {
		t.Fatal(err)
	}
	v = p.mustOpen(t, "vm")
	if v.Fresh() || !slices.Equal(v.volume.tags, []string{"mine"}) {
		t.Errorf("the tags are %v", v.volume.tags)
	}
}

// fault 44: in a pool that does not zero new blocks, nothing of the past shows beside
// what was written.
func TestKernelGroupFault44NothingOfThePast(t *testing.T) {
	p := newTestGroup(t, "-c", "256k", "--zero", "n", "--discards", "nopassdown")
	p.mustCreate(t, "past", 32<<20)
	past := p.mustOpen(t, "past")
	if _, err := past.WriteAt(bytes.Repeat([]byte{0xee}, 32<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(past.Flush(), past.Close(), p.DeleteVolume("past")); err != nil {
		t.Fatal(err)
	}
	p.mustCreate(t, "vm", 4<<20)
	v := p.mustOpen(t, "vm")
	// Straight to the device, to see that there is something of the past to be found.
	if _, err := v.Device.WriteAt(make([]byte, 4096), 3<<20); err != nil {
		t.Fatal(err)
	}
	v.wantFill(t, 3<<20+4096, 4096, 0xee)

	v.mustWrite(t, 4096, 4096, 1)
	v.mustWrite(t, 300<<10, 600<<10, 2)
	if err := v.Zero(1<<20+4096, 300<<10); err != nil {
		t.Fatal(err)
	}
	v.wantFill(t, 0, 4096, 0)
	v.wantFill(t, 8192, 300<<10-8192, 0)
	v.wantFill(t, 900<<10, 2<<20, 0)
}

// fault 36: a write that the pool has no room for is ENOSPC. What was written before
// is safe, and what is given back can be used again at once.
func TestKernelGroupFault36PoolIsFull(t *testing.T) {
	p := newTestGroup(t)
	lvm(t, "lvchange", "-q", "--errorwhenfull", "y", "vg/pool")
	p.mustCreate(t, "vm", 64<<20)
	v := p.mustOpen(t, "vm")
	_, err := v.WriteAt(bytes.Repeat([]byte{1}, 64<<20), 0)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write to a full pool: %v", err)
	}
	if err := v.Flush(); err != nil {
		t.Errorf("a flush of a full pool: %v", err)
	}
	v.wantFill(t, 0, groupExtentBytes, 1)
	if free, err := v.FreeBytes(); err != nil || free != 0 {
		t.Errorf("%d bytes are free, %v", free, err)
	}
	if err := v.Discard(0, groupExtentBytes); err != nil {
		t.Fatal(err)
	}
	if free, err := v.FreeBytes(); err != nil || free != groupExtentBytes {
		t.Errorf("%d bytes are free after a discard, %v", free, err)
	}
	v.mustWrite(t, 0, groupExtentBytes, 2)
}
