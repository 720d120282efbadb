//go:build testkernel

package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"decant/dm"
)

func TestKernelMapperLife(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	info, err := p.Info()
	must(t, err)
	if info.Kind != KindMapper || info.BlockBytes != 64*kib || info.DataBlocks != 1024 || info.DataUsedBlocks != 1 || info.MetadataBlocks != 2048 ||
		info.Mode != ReadWrite || info.Volumes != 0 || info.TransactionID != 1 || info.Data != s.data || info.Metadata != s.metadata || info.SizeBytes != 64*mib {
		t.Errorf("a new pool has %+v", info)
	}
	table, err := p.poolDevice().table()
	must(t, err)
	if !table.ErrorIfNoSpace || table.SkipBlockZeroing || table.IgnoreDiscard || table.LowWaterBlocks != 64 {
		t.Errorf("its table is %+v", table)
	}
	created, err := p.CreateVolume("v", 1000001, []byte("blob"))
	must(t, err)
	if created.ID != 1 || created.ThinID != 1 || created.SizeBytes != 1000001 || created.MappedBytes != 0 || string(created.Blob) != "blob" ||
		created.State != Active || created.Path != "/dev/mapper/p-v" {
		t.Errorf("a new volume is %+v", created)
	}
	v := mustOpenVolume(t, p, "v")
	if v.Bytes() != 1000448 {
		t.Errorf("its device has %d bytes", v.Bytes())
	}
	if want := fmt.Sprintf("DECANT-vol-%s-1", info.UUID); !strings.Contains(v.Info().Key, want) || v.Info().Path != "/dev/mapper/p-v" {
		t.Errorf("its identity is %q, %q", v.Info().Key, v.Info().Path)
	}
	expect(t, p.Close(), ErrInUse)
	expect(t, p.DeleteVolume("v"), ErrInUse, fmt.Sprintf("process %d", os.Getpid()))
	expect(t, p.Deactivate("v"), ErrInUse)
	must(t, v.Close())
	must(t, p.DeleteVolume("v"))
	if again := mustCreateVolume(t, p, "v", 1); again.ID != 2 || again.ThinID != 1 {
		t.Errorf("the next volume has id %d and thin id %d", again.ID, again.ThinID)
	}
	expect(t, p.Destroy(), ErrNotEmpty)
	must(t, p.DeleteVolume("v"))
	s.check(p)
	must(t, p.Destroy())
	if _, err := s.registry.Open("p"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after destroying it: %v", err)
	}
	s.newPool("p") // its devices are free again
}

// fault 40: ids are never used again, also after the pool was closed and opened.
func TestKernelMapperFault40IDsAreNeverReused(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	for want := uint64(1); want <= 3; want++ {
		if info := mustCreateVolume(t, p, "v", mib); info.ID != want || info.ThinID != 1 {
			t.Errorf("volume %d has id %d and thin id %d", want, info.ID, info.ThinID)
		}
		must(t, p.DeleteVolume("v"))
		must(t, p.Close())
		must(t, s.registry.Forget("p"))
		p = s.keep(s.registry.OpenMapper(s.data, s.metadata))
	}
}

// fault 40: thin devices of others are left alone, and their ids are not taken.
func TestKernelMapperFault40ForeignThinDevices(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	s.send(p, "create_thin 1")
	s.send(p, "create_thin 3")
	for i, want := range []uint64{2, 4} {
		if info := mustCreateVolume(t, p, fmt.Sprintf("v%d", i), mib); info.ThinID != want {
			t.Errorf("thin id %d, want %d", info.ThinID, want)
		}
	}
	// Somebody makes one at the last moment.
	p.crashPoint = func(step string) {
		if step == "recorded creating" && !slices.Contains(s.thinIDs(p), 5) {
			s.send(p, "create_thin 5")
		}
	}
	if info := mustCreateVolume(t, p, "v2", mib); info.ThinID != 6 {
		t.Errorf("thin id %d, want 6", info.ThinID)
	}
	p.crashPoint = func(string) {}
	for i := range 3 {
		must(t, p.DeleteVolume(fmt.Sprintf("v%d", i)))
	}
	must(t, p.Close())
	s.check(s.open("p"), 1, 3, 5)
}

// fault 40: a transaction id that somebody else has changed stops the change.
func TestKernelMapperFault40TransactionOfSomebodyElse(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "kept", mib)
	p.crashPoint = func(step string) {
		if step == "created thin device" {
			s.send(p, "set_transaction_id 2 77")
		}
	}
	_, err := p.CreateVolume("v", mib, nil)
	expect(t, err, ErrForeign, "transaction id is no longer 2")
	p.crashPoint = func(string) {}
	s.check(p)
	if _, err := p.Volume("v"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the volume: %v", err)
	}
	mustCreateVolume(t, p, "v", mib)
	if got := s.status(p).TransactionID; got < 78 {
		t.Errorf("transaction %d", got)
	}
}

// fault 54: metadata from before the newest change of the catalog is refused.
func TestKernelMapperFault54OlderMetadata(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "v", mib)
	s.send(p, "set_transaction_id 2 1")
	_, err := p.CreateVolume("w", mib, nil)
	expect(t, err, ErrForeign, "older state")
	must(t, p.Close())
	_, err = s.registry.Open("p")
	expect(t, err, ErrForeign, "older state")
}

// fault 41: a metadata snapshot that nobody can be reading is let go at the opening.
func TestKernelMapperFault41HeldMetadataRoot(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	s.send(p, "reserve_metadata_snap")
	again := s.open("p")
	if !s.status(p).Held {
		t.Error("it was let go while another handle was open")
	}
	must(t, errors.Join(p.Close(), again.Close()))
	if s.status(s.open("p")).Held {
		t.Error("it is still held")
	}
}

// fault 50: what a process left suspended that died between two steps goes on when
// the pool is opened, and what it had loaded does not take effect.
func TestKernelMapperFault50SuspendedDevices(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "v", mib)
	device, _, err := find(s.control, p.devices.volumeUUID(1))
	must(t, err)
	table, err := s.control.Table(device.Name)
	must(t, err)
	other := table[0]
	other.Length *= 2
	must(t, s.control.Load(device.Name, []dm.Target{other}))
	for _, name := range []string{device.Name, catalogDeviceName("p"), "p"} {
		must(t, s.control.Suspend(name, dm.SuspendOptions{}))
	}
	_, err = s.control.Create("p-halfmade", p.devices.volumeUUID(7))
	must(t, err)

	again := s.open("p")
	for _, name := range []string{device.Name, catalogDeviceName("p"), "p"} {
		if info, err := s.control.Info(name); err != nil || info.Suspended || info.InactiveTable {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
	if now, err := s.control.Table(device.Name); err != nil || now[0] != table[0] {
		t.Errorf("the table is %+v, %v", now, err)
	}
	if _, err := s.control.Info("p-halfmade"); !errors.Is(err, unix.ENXIO) {
		t.Errorf("the device without a table: %v", err)
	}
	s.check(again)
}

// fault 52: a name that leads to another device is refused, and devices are known by
// their UUIDs.
func TestKernelMapperFault52Names(t *testing.T) {
	s := newMapperSite(t)
	a := s.newPool("a")
	ab := s.newOtherPool("a-b")
	mustCreateVolume(t, ab, "c", mib)
	_, err := a.CreateVolume("b-c", mib, nil)
	expect(t, err, ErrExists, "/dev/mapper/a-b-c", "there is another device of that name")
	_, err = a.CreateVolume("b", mib, nil) // the pool a-b
	expect(t, err, ErrExists)
	must(t, ab.Deactivate("c"))
	mustCreateVolume(t, a, "b-c", mib)
	_, err = ab.Activate("c")
	expect(t, err, ErrExists, "/dev/mapper/a-b-c")
	_, err = ab.OpenVolume("c", true)
	expect(t, err, ErrExists)
	if info, err := ab.Volume("c"); err != nil || info.MappedBytes != 0 {
		t.Errorf("%+v, %v", info, err) // shown all the same
	}
	for _, name := range []string{"", "a/b", "new\nline", "../x", ".x", "-x", strings.Repeat("x", 101), "a b"} {
		_, err := a.CreateVolume(name, mib, nil)
		expect(t, err, ErrInvalid)
		_, err = a.OpenVolume(name, false)
		expect(t, err, ErrInvalid)
		expect(t, errors.Join(a.DeleteVolume(name)), ErrInvalid)
	}
	// Somebody renames a device: it is still the volume's.
	must(t, s.control.Rename("a-b-c", "renamed"))
	v := mustOpenVolume(t, a, "b-c")
	if v.Info().Path != "/dev/mapper/renamed" {
		t.Errorf("opened at %s", v.Info().Path)
	}
	must(t, v.Close())
	must(t, a.DeleteVolume("b-c"))
	s.check(a)
}

// fault 52: together, the names of pool and volume have to fit into a device's name.
func TestKernelMapperFault52LongNames(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool(strings.Repeat("p", 100))
	mustCreateVolume(t, p, strings.Repeat("v", 26), mib)
	_, err := p.CreateVolume(strings.Repeat("v", 27), mib, nil)
	expect(t, err, ErrInvalid, "together at most")
	_, err = CreateMapper(s.registry, "control", MapperOptions{Data: s.otherDataDisk, Metadata: s.otherMetadata})
	expect(t, err, ErrInvalid)
	s.check(p)
}

// fault 69: after a reboot nothing is active, and opening the pool makes it so.
func TestKernelMapperFault69Reboot(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "v", mib)
	v := mustOpenVolume(t, p, "v")
	data := randomBytes(1, 128*kib)
	mustWrite(t, v, 64*kib, data)
	must(t, v.Flush())
	key := v.Info().Key
	must(t, errors.Join(v.Close(), p.Close()))
	s.removeAll()

	p = s.open("p")
	if info, err := p.Volume("v"); err != nil || info.MappedBytes != 128*kib {
		t.Errorf("an inactive volume: %+v, %v", info, err)
	}
	if devices, err := p.devices.volumes(); err != nil || len(devices) != 0 {
		t.Errorf("looking has activated %+v, %v", devices, err)
	}
	info, err := p.Activate("v")
	must(t, err)
	if _, err := os.Stat(info.Path); err != nil {
		t.Error(err)
	}
	v = mustOpenVolume(t, p, "v")
	wantBytes(t, v, 64*kib, data)
	if v.Info().Key != key {
		t.Errorf("the key is %q, and was %q", v.Info().Key, key)
	}
}

// A pool closed here is opened on another machine, and goes on there.
func TestKernelMapperIsCarriedElsewhere(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "v", mib)
	v := mustOpenVolume(t, p, "v")
	data := randomBytes(2, 64*kib)
	mustWrite(t, v, 0, data)
	must(t, v.Flush())
	expect(t, s.registry.Forget("p"), ErrInUse)
	must(t, v.Close())
	expect(t, s.registry.Forget("p"), ErrInUse, fmt.Sprintf("process %d", os.Getpid()))
	must(t, p.Close())
	used, err := os.Open("/dev/mapper/p-v")
	must(t, err)
	expect(t, s.registry.Forget("p"), ErrInUse, "/dev/mapper/p-v")
	if _, err := s.control.Info("p"); err != nil {
		t.Errorf("a refused close has changed something: %v", err)
	}
	must(t, used.Close())
	must(t, s.registry.Forget("p"))
	if left, err := ours(s.control, "DECANT-"); err != nil || len(left) != 0 {
		t.Errorf("devices are left: %+v, %v", left, err)
	}
	expect(t, s.registry.Forget("p"), ErrNotFound)

	s.registry = NewRegistry(filepath.Join(t.TempDir(), "elsewhere"))
	p = s.keep(s.registry.OpenMapper(s.data, s.metadata))
	if p.Name() != "p" {
		t.Errorf("its name is %q", p.Name())
	}
	wantBytes(t, mustOpenVolume(t, p, "v"), 0, data)
	if info := mustCreateVolume(t, p, "w", 1); info.ID != 2 {
		t.Errorf("the next id is %d", info.ID)
	}
	// Opening it again, while it is active, changes nothing.
	if again := s.keep(s.registry.OpenMapper(s.data, s.metadata)); again.Name() != "p" {
		t.Errorf("its name is %q", again.Name())
	}
	if names, err := s.registry.List(); err != nil || !slices.Equal(names, []string{"p"}) {
		t.Errorf("registered are %q, %v", names, err)
	}
}

// fault 3: other devices under the registered names are refused.
func TestKernelMapperFault3OtherDevices(t *testing.T) {
	s := newMapperSite(t)
	links := t.TempDir()
	data, metadata := filepath.Join(links, "data"), filepath.Join(links, "metadata")
	must(t, errors.Join(os.Symlink(s.data, data), os.Symlink(s.metadata, metadata)))
	p, err := CreateMapper(s.registry, "p", MapperOptions{Data: data, Metadata: metadata})
	must(t, errors.Join(err, p.Close()))
	must(t, s.newOtherPool("q").Close())
	s.removeAll()
	must(t, errors.Join(os.Remove(data), os.Remove(metadata), os.Symlink(s.otherDataDisk, data), os.Symlink(s.otherMetadata, metadata)))
	_, err = s.registry.Open("p")
	expect(t, err, ErrForeign, "not the devices that were registered")
	must(t, errors.Join(os.Remove(data), os.Symlink(s.data, data)))
	_, err = s.registry.Open("p") // the metadata of the other pool, with the data of this one
	expect(t, err, ErrForeign)
	_, err = s.registry.OpenMapper(s.data, s.otherMetadata)
	expect(t, err, ErrForeign)
	if left, err := ours(s.control, "DECANT-"); err != nil || len(left) != 0 {
		t.Errorf("devices are left: %+v, %v", left, err)
	}
	// Named anew, it is found again.
	s.keep(s.registry.OpenMapper(s.data, s.metadata))
	s.keep(s.registry.OpenMapper(s.otherDataDisk, s.otherMetadata))
}

// fault 60: changes of several handles exclude one another.
func TestKernelMapperFault60ManyHandles(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	const handles, each = 4, 6
	var group sync.WaitGroup
	for h := range handles {
		handle := s.open("p")
		group.Go(func() {
			for i := range each {
				name := fmt.Sprintf("v%d-%d", h, i)
				if _, err := handle.CreateVolume(name, mib, nil); err != nil {
					t.Errorf("create %s: %v", name, err)
				}
				if i%2 == 1 {
					if err := handle.DeleteVolume(name); err != nil {
						t.Errorf("delete %s: %v", name, err)
					}
				}
			}
		})
	}
	group.Wait()
	volumes, err := p.Volumes()
	must(t, err)
	ids := map[uint64]bool{}
	for _, v := range volumes {
		ids[v.ID] = true
	}
	if len(volumes) != handles*each/2 || len(ids) != len(volumes) {
		t.Errorf("%d volumes with %d ids", len(volumes), len(ids))
	}
	if got := s.status(p).TransactionID; got != 1+handles*each*3/2 {
		t.Errorf("transaction %d", got)
	}
	s.check(p)
}

// Blocks of somebody else keep a pool from being destroyed.
func TestKernelMapperDestroyLeavesForeignDataAlone(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	s.send(p, "create_thin 9")
	foreign, err := start(s.control, "foreign", "TEST-foreign", thinTargetOf(p.pool, 9, mib/dm.SectorBytes))
	must(t, err)
	f, err := os.OpenFile(dm.Path(foreign.Name), os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	_, err = f.Write(randomBytes(1, 4096))
	must(t, errors.Join(err, f.Close()))
	must(t, stop(s.control, foreign.Name))
	s.status(p) // commits
	expect(t, p.Destroy(), ErrNotEmpty, "does not know")
	s.send(p, "delete 9")
	s.status(p)
	again := s.open("p")
	expect(t, p.Destroy(), ErrInUse)
	must(t, again.Close())
	must(t, p.Destroy())
}
