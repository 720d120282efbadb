//go:build testkernel

package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/loopdev"
)

func TestKernelMapperVolumeSpace(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "v", 4*mib)
	v := mustOpenVolume(t, p, "v")
	if holds, err := v.HoldsData(); err != nil || holds {
		t.Errorf("a new volume holds data: %v, %v", holds, err)
	}
	if start, end, err := v.NextData(0); err != nil || start != 4*mib || end != 4*mib {
		t.Errorf("its data is from %d to %d, %v", start, end, err)
	}
	free, err := v.FreeBytes()
	must(t, err)
	data := randomBytes(1, 256*kib)
	mustWrite(t, v, mib, data)
	must(t, v.Flush())
	if n, err := v.AllocatedBytes(); err != nil || n != 256*kib {
		t.Errorf("%d bytes are allocated, %v", n, err)
	}
	if now, err := v.FreeBytes(); err != nil || now != free-256*kib {
		t.Errorf("%d bytes are free, and were %d, %v", now, free, err)
	}
	if info, err := p.Volume("v"); err != nil || info.MappedBytes != 256*kib || info.ExclusiveBytes != 256*kib {
		t.Errorf("%+v, %v", info, err)
	}
	if n, err := v.SharedBytes(); err != nil || n != 0 {
		t.Errorf("%d shared bytes, %v", n, err)
	}

	must(t, v.Zero(mib, 100*kib)) // a block and a part of the next
	wantBytes(t, v, mib, make([]byte, 100*kib))
	wantBytes(t, v, mib+100*kib, data[100*kib:])
	if n, err := v.AllocatedBytes(); err != nil || n != 192*kib {
		t.Errorf("after zeroing %d bytes are allocated, %v", n, err)
	}
	must(t, v.Discard(mib+100*kib, 156*kib))
	must(t, v.Discard(mib+100*kib, 156*kib))
	must(t, v.SyncFS())
	if n, err := v.AllocatedBytes(); err != nil || n != 64*kib {
		t.Errorf("after discarding %d bytes are allocated, %v", n, err)
	}
	if now, err := v.FreeBytes(); err != nil || now != free-64*kib {
		t.Errorf("%d bytes are free, and were %d, %v", now, free, err)
	}
	must(t, v.Flush())
}

// fault 30: an exclusive opening is the only one.
func TestKernelMapperFault30ExclusiveOpening(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "v", 4*mib)
	again := s.open("p")
	v := mustOpenVolume(t, p, "v")
	for _, exclusive := range []bool{true, false} {
		_, err := again.OpenVolume("v", exclusive)
		expect(t, err, ErrInUse, "p/v: is in use", fmt.Sprintf("process %d", os.Getpid()))
	}
	must(t, v.Close())
	first, err := p.OpenVolume("v", false)
	must(t, err)
	second, err := again.OpenVolume("v", false)
	must(t, err)
	_, err = again.OpenVolume("v", true)
	expect(t, err, ErrInUse)
	must(t, errors.Join(first.Close(), second.Close(), second.Close()))

	run(t, "mkfs.ext4", "-q", "/dev/mapper/p-v")
	mounted := t.TempDir()
	must(t, unix.Mount("/dev/mapper/p-v", mounted, "ext4", 0, ""))
	_, err = p.OpenVolume("v", true)
	expect(t, err, ErrInUse, "is mounted on "+mounted)
	expect(t, p.DeleteVolume("v"), ErrInUse)
	must(t, unix.Unmount(mounted, 0))
	must(t, p.DeleteVolume("v"))
}

// fault 36: a full pool refuses the write that does not fit, at once; what was written
// stays, and after growing it goes on.
func TestKernelMapperFault36Full(t *testing.T) {
	s := newMapperSite(t)
	disk, _, err := openBacking("test", s.data, loopdev.Options{})
	must(t, err)
	must(t, disk.Close())
	linear := func(bytes int64) dm.Target {
		return dm.Target{Length: uint64(bytes / dm.SectorBytes), Type: "linear", Params: s.data + " 0"}
	}
	_, err = start(s.control, "small", "TEST-small", linear(4*mib))
	must(t, err)
	t.Cleanup(func() { s.removeAll(); must(t, stop(s.control, "small")) })
	p := s.keep(CreateMapper(s.registry, "p", MapperOptions{Data: "/dev/mapper/small", Metadata: s.metadata}))
	mustCreateVolume(t, p, "v", 8*mib)
	mustCreateVolume(t, p, "w", 8*mib)
	v, w := mustOpenVolume(t, p, "v"), mustOpenVolume(t, p, "w")
	data := randomBytes(1, 64*kib)
	blocks := int64(0)
	for ; ; blocks++ {
		if _, err = v.WriteAt(data, blocks*64*kib); err != nil {
			break
		}
	}
	errnoIs(t, err, unix.ENOSPC)
	if blocks != 63 { // and one for the catalog
		t.Errorf("%d blocks were written", blocks)
	}
	if info, err := p.Info(); err != nil || info.Mode != OutOfDataSpace {
		t.Errorf("%+v, %v", info, err)
	}
	if free, err := p.FreeBytes(); err != nil || free != 0 {
		t.Errorf("%d bytes are free, %v", free, err)
	}
	_, err = w.WriteAt(data, 0)
	errnoIs(t, err, unix.ENOSPC)
	wantBytes(t, v, 62*64*kib, data)

	// The catalog has its block: volumes can be made and deleted.
	mustCreateVolume(t, p, "x", mib)
	must(t, p.DeleteVolume("x"))

	// What is given back is seen, without a write in between.
	must(t, v.Discard(0, 3*64*kib))
	if free, err := p.FreeBytes(); err != nil || free != 3*64*kib {
		t.Errorf("%d bytes are free, %v", free, err)
	}
	for block := range int64(3) {
		mustWrite(t, v, block*64*kib, data)
	}

	must(t, p.Grow()) // by nothing
	must(t, s.control.Load("small", []dm.Target{linear(8 * mib)}))
	must(t, s.control.ResumeNoFlush("small"))
	must(t, p.Grow())
	if info, err := p.Info(); err != nil || info.Mode != ReadWrite || info.DataBlocks != 128 {
		t.Errorf("%+v, %v", info, err)
	}
	mustWrite(t, w, 0, data)
	must(t, w.Flush())
	must(t, errors.Join(v.Close(), w.Close(), p.Close()))
	s.removeAll()
	if info, err := s.open("p").Info(); err != nil || info.DataBlocks != 128 {
		t.Errorf("after a reboot: %+v, %v", info, err)
	}
}

// A data device that has shrunk is not taken for a smaller pool.
func TestKernelMapperFault28ShrunkDataDevice(t *testing.T) {
	s := newMapperSite(t)
	linear := func(bytes int64) dm.Target {
		return dm.Target{Length: uint64(bytes / dm.SectorBytes), Type: "linear", Params: s.data + " 0"}
	}
	_, err := start(s.control, "shrinking", "DECANT-test", linear(8*mib))
	must(t, err)
	t.Cleanup(func() { s.removeAll(); must(t, stop(s.control, "shrinking")) })
	p := s.keep(CreateMapper(s.registry, "p", MapperOptions{Data: "/dev/mapper/shrinking", Metadata: s.metadata}))
	must(t, p.Close())
	s.removeAll()
	must(t, stop(s.control, "shrinking"))
	_, err = start(s.control, "shrinking", "DECANT-test", linear(4*mib))
	must(t, err)
	_, err = s.registry.Open("p")
	expect(t, err, ErrForeign, "has 4194304 bytes")
}

// fault 42: a table that is shorter than the volume hides data, and is refused.
func TestKernelMapperFault42ShortTable(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "v", 4*mib)
	must(t, s.control.Load("p-v", []dm.Target{thinTargetOf(p.pool, 1, mib/dm.SectorBytes)}))
	must(t, s.control.Resume("p-v"))
	_, err := p.OpenVolume("v", true)
	expect(t, err, ErrForeign, "thinctl deactivate")
	must(t, p.Deactivate("v"))
	if v := mustOpenVolume(t, p, "v"); v.Bytes() != 4*mib {
		t.Errorf("it has %d bytes", v.Bytes())
	}
}

// fault 38: a pool that cannot be changed any more fails every flush, and can be read.
func TestKernelMapperFault38ReadOnlyPool(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "v", 4*mib)
	v := mustOpenVolume(t, p, "v")
	data := randomBytes(1, 64*kib)
	mustWrite(t, v, 0, data)
	must(t, v.Flush())

	targets, err := s.control.Table("p")
	must(t, err)
	table, err := ParsePoolTable(targets[0].Params)
	must(t, err)
	table.ReadOnly = true
	targets[0].Params = table.String()
	must(t, s.control.Load("p", targets))
	must(t, s.control.Resume("p"))

	err = v.Flush()
	if err == nil {
		t.Error("a flush of a pool that commits no more succeeded")
	}
	if again := v.Flush(); again == nil {
		t.Error("it was forgotten")
	}
	must(t, errors.Join(v.Close(), p.Close()))
	p = s.open("p")
	if info, err := p.Info(); err != nil || info.Mode != ReadOnly || info.Volumes != 1 {
		t.Errorf("%+v, %v", info, err)
	}
	if free, err := p.FreeBytes(); err != nil || free != 0 {
		t.Errorf("%d bytes are free, %v", free, err)
	}
	_, err = p.CreateVolume("w", mib, nil)
	errnoIs(t, err, unix.EROFS)
	errnoIs(t, p.DeleteVolume("v"), unix.EROFS)
	errnoIs(t, p.Destroy(), unix.EROFS)
	wantBytes(t, mustOpenVolume(t, p, "v"), 0, data)
}

// fault 19: on a data device with blocks of 4096 bytes, volumes have such blocks, and
// a record of the catalog is changed within one.
func TestKernelMapperFault19LargeSectors(t *testing.T) {
	s := newMapperSite(t)
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 64*mib))
	loop := run(t, "losetup", "--find", "--show", "--sector-size", "4096", image)
	t.Cleanup(func() { s.removeAll(); run(t, "losetup", "-d", loop) })
	p := s.keep(CreateMapper(s.registry, "p", MapperOptions{Data: loop, Metadata: s.metadata, BlockBytes: 128 * kib, LowWaterBlocks: 7}))
	for i := range 12 {
		mustCreateVolume(t, p, fmt.Sprintf("v%d", i), 10000)
	}
	for i := 0; i < 12; i += 2 {
		must(t, p.DeleteVolume(fmt.Sprintf("v%d", i)))
	}
	s.check(p)
	v := mustOpenVolume(t, p, "v1")
	if v.Bytes() != 12288 || v.Info().LogicalBlockBytes != 4096 {
		t.Errorf("%d bytes in blocks of %d", v.Bytes(), v.Info().LogicalBlockBytes)
	}
	mustWrite(t, v, 100, randomBytes(1, 1000))
	wantBytes(t, v, 100, randomBytes(1, 1000))
	if table, err := p.poolDevice().table(); err != nil || table.LowWaterBlocks != 7 || table.BlockBytes != 128*kib {
		t.Errorf("%+v, %v", table, err)
	}
}

// faults 30, 31, 32: devices that hold something, or are in use, are refused, and
// nothing is changed on them.
func TestKernelMapperFault30CreateRefuses(t *testing.T) {
	s := newMapperSite(t)
	create := func(data, metadata string) error {
		_, err := CreateMapper(s.registry, "p", MapperOptions{Data: data, Metadata: metadata})
		return err
	}
	expect(t, create(s.data, s.data), ErrInvalid, "is to be both")
	_, err := start(s.control, "alias", "TEST-alias", dm.Target{Length: 8 * mib / dm.SectorBytes, Type: "linear", Params: s.data + " 0"})
	must(t, err)
	expect(t, create(s.data, "/dev/mapper/alias"), ErrInUse)
	expect(t, create("/dev/mapper/alias", s.data), ErrInUse)
	expect(t, create(s.data, s.metadata), ErrInUse) // held by the alias
	must(t, stop(s.control, "alias"))
	_, err = start(s.control, "tiny", "TEST-tiny", dm.Target{Length: mib / dm.SectorBytes, Type: "linear", Params: s.otherMetadata + " 0"})
	must(t, err)
	expect(t, create(s.data, "/dev/mapper/tiny"), ErrInvalid, "metadata takes 2097152 bytes")
	must(t, stop(s.control, "tiny"))
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, make([]byte, mib), 0o600))
	expect(t, create(file, s.metadata), ErrInvalid, "regular file")
	expect(t, create(s.data, "/dev/null"), ErrInvalid)
	expect(t, create(s.data, "/dev/nothing"), ErrNotFound)

	run(t, "mkfs.ext4", "-q", s.otherDataDisk)
	expect(t, create(s.otherDataDisk, s.metadata), ErrNotEmpty, "holds data")
	expect(t, create(s.metadata, s.otherDataDisk), ErrNotEmpty)
	mounted := t.TempDir()
	must(t, unix.Mount(s.otherDataDisk, mounted, "ext4", 0, ""))
	expect(t, create(s.otherDataDisk, s.metadata), ErrInUse)
	must(t, unix.Unmount(mounted, 0))
	run(t, "e2fsck", "-fn", s.otherDataDisk)
	run(t, "mkswap", s.otherMetadata)
	expect(t, create(s.data, s.otherMetadata), ErrNotEmpty)

	p := s.newPool("p")
	expect(t, create(s.otherDataDisk, s.otherMetadata), ErrExists, "registered already")
	must(t, p.Close())
	must(t, s.registry.Forget("p"))
	expect(t, create(s.data, s.metadata), ErrExists, fmt.Sprintf("thinctl pool open --data %s --metadata %s", s.data, s.metadata))
	blank(t, s.otherDataDisk)
	expect(t, create(s.otherDataDisk, s.metadata), ErrExists)
	p = s.keep(s.registry.OpenMapper(s.data, s.metadata))
	s.check(p)
	_, err = CreateMapper(s.registry, "q", s.options())
	expect(t, err, ErrInUse)
}

// A thin pool of another program is not taken for one of ours, and not changed.
func TestKernelMapperOpenRefusesForeignPool(t *testing.T) {
	s := newMapperSite(t)
	_, err := s.registry.OpenMapper(s.data, s.metadata)
	expect(t, err, ErrForeign, "holds no metadata of a thin pool")
	data, metadata := backing{}, backing{}
	for path, b := range map[string]*backing{s.data: &data, s.metadata: &metadata} {
		d, described, err := openBacking("test", path, loopdev.Options{})
		must(t, errors.Join(err, d.Close()))
		*b = described
	}
	_, err = start(s.control, "foreign", "TEST-foreign", poolTargetOf(data, metadata, 64*kib, 0, 100))
	must(t, err)
	_, err = s.control.Message("foreign", 0, "create_thin 5")
	must(t, err)
	_, err = s.registry.OpenMapper(s.data, s.metadata)
	expect(t, err, ErrInUse)
	must(t, stop(s.control, "foreign"))
	_, err = s.registry.OpenMapper(s.data, s.metadata)
	expect(t, err, ErrForeign, "has no catalog")
	pool, err := start(s.control, "foreign", "TEST-foreign", poolTargetOf(data, metadata, 64*kib, 0, 100))
	must(t, err)
	if _, found, err := (mapperDevices{control: s.control, uuid: "test"}).peek(pool, 5, 8); err != nil || !found {
		t.Errorf("its thin device: %v, %v", found, err)
	}
	must(t, stop(s.control, "foreign"))
}
