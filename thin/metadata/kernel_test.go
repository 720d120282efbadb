//go:build testkernel

package metadata

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/dm/persistent"
	"decant/loopdev"
)

const (
	blockBytes = 64 << 10
	dataBlocks = 512
	thinBlocks = 1024
)

// livePool is a pool in the kernel. Its metadata device is a linear device, as LVM has
// it.
type livePool struct {
	t      *testing.T
	c      *dm.Control
	raw    *loopdev.Device // the metadata
	data   *loopdev.Device
	counts func() (IOCounts, error)
	thins  map[uint32]*liveThin
	stamp  uint64 // of the last block that was written
}

type liveThin struct {
	device *os.File
	blocks map[uint64]uint64 // virtual block to the stamp that it holds
}

func newLivePool(t *testing.T, metadataBytes uint64) *livePool {
	t.Helper()
	nodes := strings.Fields(os.Getenv("DECANT_TEST_DISKS"))
	if len(nodes) < 2 {
		t.Fatalf("two disks are needed, there are %v", nodes)
	}
	c, err := dm.Open()
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	p := &livePool{t: t, c: c, thins: map[uint32]*liveThin{}}
	p.activate("tmeta", metadataBytes, "linear", nodes[0]+" 0")
	blank, err := os.OpenFile(dm.Path("tmeta"), os.O_WRONLY|unix.O_DIRECT, 0)
	must(t, err)
	_, err = blank.WriteAt(persistent.AlignedBlock(), 0)
	must(t, errors.Join(err, blank.Close()))
	p.activate("pool", dataBlocks*blockBytes, "thin-pool",
		fmt.Sprintf("%s %s %d 0 1 error_if_no_space", dm.Path("tmeta"), nodes[1], blockBytes/dm.SectorBytes))
	info, err := c.Info("tmeta")
	must(t, err)
	p.counts = DeviceIOCounts(info.Device.Major(), info.Device.Minor())
	p.raw, p.data = p.open(dm.Path("tmeta")), p.open(nodes[1])
	return p
}

func (p *livePool) open(path string) *loopdev.Device {
	d, err := loopdev.Open(path, loopdev.Options{})
	must(p.t, err)
	p.t.Cleanup(func() { must(p.t, d.Close()) })
	return d
}

func (p *livePool) activate(name string, bytes uint64, target, params string) {
	_, err := p.c.Create(name, "")
	must(p.t, err)
	p.t.Cleanup(func() { must(p.t, p.c.Remove(name)) })
	must(p.t, p.c.Load(name, []dm.Target{{Start: 0, Length: bytes / dm.SectorBytes, Type: target, Params: params}}))
	must(p.t, p.c.Resume(name))
}

func (p *livePool) send(message string) {
	p.t.Helper()
	_, err := p.c.Message("pool", 0, message)
	must(p.t, err)
}

// thin activates a device that there is, and expects that in its blocks.
func (p *livePool) thin(id uint32, blocks map[uint64]uint64) *liveThin {
	name := fmt.Sprintf("thin%d", id)
	p.activate(name, thinBlocks*blockBytes, "thin", fmt.Sprintf("%s %d", dm.Path("pool"), id))
	f, err := os.OpenFile(dm.Path(name), os.O_RDWR|unix.O_DIRECT, 0)
	must(p.t, err)
	p.t.Cleanup(func() { must(p.t, f.Close()) })
	p.thins[id] = &liveThin{f, blocks}
	return p.thins[id]
}

func (p *livePool) create(id uint32) *liveThin {
	p.send(fmt.Sprintf("create_thin %d", id))
	return p.thin(id, map[uint64]uint64{})
}

func (p *livePool) snapshot(origin, id uint32) *liveThin {
	name := fmt.Sprintf("thin%d", origin)
	must(p.t, p.c.Suspend(name, dm.SuspendOptions{}))
	p.send(fmt.Sprintf("create_snap %d %d", id, origin))
	must(p.t, p.c.Resume(name))
	blocks := map[uint64]uint64{}
	for virtual, stamp := range p.thins[origin].blocks {
		blocks[virtual] = stamp
	}
	return p.thin(id, blocks)
}

func (p *livePool) write(d *liveThin, virtual ...uint64) {
	p.t.Helper()
	block := loopdev.AlignedBuffer(blockBytes)
	for _, v := range virtual {
		p.stamp++
		le.PutUint64(block, p.stamp)
		_, err := d.device.WriteAt(block, int64(v*blockBytes))
		must(p.t, err)
		d.blocks[v] = p.stamp
	}
}

func (p *livePool) discard(d *liveThin, first, count uint64) {
	p.t.Helper()
	where := [2]uint64{first * blockBytes, count * blockBytes}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.device.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&where))); errno != 0 {
		p.t.Fatalf("discard: %v", errno)
	}
	for v := range count {
		delete(d.blocks, first+v)
	}
}

// commit makes the pool commit what was done to this device.
func (p *livePool) commit(d *liveThin) {
	p.t.Helper()
	must(p.t, d.device.Sync())
}

// readLive is the last committed state, of a pool that commits at most now and then.
func (p *livePool) readLive() *pool {
	p.t.Helper()
	var got *pool
	must(p.t, Consistently(p.raw, p.counts, 100, func(m *Reader) (err error) {
		got, err = read(m)
		return err
	}))
	return got
}

// wantWritten says that exactly the blocks that were written are mapped, and each to
// the data block that holds what was written.
func (p *livePool) wantWritten(got *pool) {
	p.t.Helper()
	if len(got.Devices) != len(p.thins) {
		p.t.Errorf("%d devices, want %d", len(got.Devices), len(p.thins))
	}
	block := loopdev.AlignedBuffer(BlockBytes)
	for _, d := range got.Devices {
		stamps := map[uint64]uint64{}
		for _, run := range d.Mappings {
			for i := range run.Blocks {
				_, err := p.data.ReadAt(block, int64((run.DataBlock+i)*blockBytes))
				must(p.t, err)
				stamps[run.VirtualBlock+i] = le.Uint64(block)
			}
		}
		want := p.thins[d.ID].blocks
		if !maps.Equal(stamps, want) || int(d.MappedBlocks) != len(want) {
			p.t.Errorf("thin %d with %d blocks mapped:\n%v\nwant\n%v", d.ID, d.MappedBlocks, stamps, want)
		}
	}
}

func span(first, count, step uint64) (blocks []uint64) {
	for i := range count {
		blocks = append(blocks, first+i*step)
	}
	return blocks
}

// fill makes three devices that share some of their blocks, and returns the first.
func (p *livePool) fill() *liveThin {
	origin := p.create(0)
	p.write(origin, slices.Concat(span(0, 20, 1), span(100, 150, 2))...)
	second := p.snapshot(0, 1)
	p.write(second, span(10, 5, 1)...)
	p.write(origin, 500, 102)
	third := p.create(1 << 23)
	p.write(third, 1023)
	p.discard(origin, 4, 3)
	p.discard(second, 200, 100)
	for _, d := range p.thins {
		p.commit(d)
	}
	return origin
}

func TestKernelMetadataOfLivePool(t *testing.T) {
	p := newLivePool(t, 16*mib)
	wantPool(t, p.readLive(), &pool{DataBlockSectors: blockBytes / dm.SectorBytes, DataBlocks: dataBlocks})
	origin := p.fill()
	p.wantWritten(p.readLive())
	p.discard(origin, 0, thinBlocks)
	p.commit(origin)
	p.wantWritten(p.readLive())
}

// The superblock as the kernel wrote it says what the pool's status says.
func TestKernelMetadataSuperblock(t *testing.T) {
	p := newLivePool(t, 16*mib)
	p.fill()
	p.send("set_transaction_id 0 42")
	s, err := ReadSuperblock(p.raw)
	must(t, err)
	status, err := p.c.Status("pool")
	must(t, err)
	var transaction, metadataUsed, metadataBlocks, dataUsed, dataBlocks uint64
	_, err = fmt.Sscanf(status[0].Params, "%d %d/%d %d/%d ", &transaction, &metadataUsed, &metadataBlocks, &dataUsed, &dataBlocks)
	must(t, err)
	// What the status calls used of the metadata includes a reserve.
	if s.TransactionID != 42 || transaction != 42 || s.MetadataSpaceMap.Blocks != metadataBlocks ||
		s.DataSpaceMap.AllocatedBlocks != dataUsed || s.DataSpaceMap.Blocks != dataBlocks {
		t.Errorf("superblock %+v, status %q", s, status[0].Params)
	}
}

// A held metadata snapshot is what the tools read too, and stays when the pool goes on.
func TestKernelMetadataHeld(t *testing.T) {
	p := newLivePool(t, 16*mib)
	origin := p.fill()
	p.send("reserve_metadata_snap")
	before := p.readHeld()
	p.wantWritten(before)
	for range 3 {
		p.discard(origin, 100, 50)
		p.write(origin, span(0, 10, 1)...)
		p.commit(origin)
	}
	p.wantWritten(p.readLive())
	wantPool(t, p.readHeld(), before)
	dumped := dump(t, dm.Path("tmeta"), "-m")
	dumped.DataBlocks = dataBlocks // which the copy of the superblock does not know
	wantPool(t, dumped, before)

	m, err := Open(p.raw, Options{Held: true})
	must(t, err)
	wantExclusiveLikeThinLS(t, m, dm.Path("tmeta"), "-m")
	p.send("release_metadata_snap")
	if _, err := Open(p.raw, Options{Held: true}); !errors.Is(err, ErrNotHeld) {
		t.Errorf("got %v", err)
	}
}

func (p *livePool) readHeld() *pool {
	p.t.Helper()
	m, err := Open(p.raw, Options{Held: true})
	must(p.t, err)
	got, err := read(m)
	must(p.t, err)
	return got
}

// A pool with few metadata blocks comes round to the same superblock soon, byte for
// byte, with other trees behind it.
func TestKernelMetadataSuperblockRepeats(t *testing.T) {
	p := newLivePool(t, 256<<10)
	d := p.fill()
	moved := uint64(0)
	move := func() { // one block of the device to the next place of seven
		p.discard(d, moved%7, 1)
		moved++
		p.write(d, moved%7)
		p.commit(d)
	}
	move()
	p.commit(d)
	first, err := format.Read(p.raw, superblockNumber)
	must(t, err)
	old := p.readLive()

	var walked []*pool
	must(t, Consistently(p.raw, p.counts, 2, func(m *Reader) error {
		if _, err := m.Device(0); err != nil {
			return err
		}
		for commits := 0; len(walked) == 0; commits++ {
			now, err := format.Read(p.raw, superblockNumber)
			must(t, err)
			if commits > 0 && bytes.Equal(now, first) && !reflect.DeepEqual(p.readLive(), old) {
				t.Logf("the superblock is the same after %d commits", commits)
				break
			}
			if commits == 2000 {
				t.Fatal("the superblock does not come back")
			}
			move()
		}
		got, err := read(m)
		walked = append(walked, got)
		return err
	}))
	if len(walked) != 2 {
		t.Errorf("%d walks", len(walked))
	}
	p.wantWritten(walked[len(walked)-1])
}

// Whatever a writer does, a walk that counts sees one state: as many blocks mapped as
// the details say, and as many data blocks in use as are mapped.
func TestKernelMetadataConsistently(t *testing.T) {
	p := newLivePool(t, 16*mib)
	d := p.fill()
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := uint64(0); !stop.Load() && !t.Failed(); i++ {
			p.discard(d, i%64, 1)
			p.write(d, (i+8)%64, 600+i%100)
			p.commit(d)
		}
	}()
	walks, consistent := 0, 0
	for range 200 {
		var got *pool
		var used uint64
		err := Consistently(p.raw, p.counts, 5, func(m *Reader) (err error) {
			walks++
			runtime.Gosched() // so that something happens in the meantime
			used = m.Superblock().DataSpaceMap.AllocatedBlocks
			got, err = read(m)
			return err
		})
		if errors.Is(err, ErrChanging) {
			continue
		}
		must(t, err)
		consistent++
		wantCounts(t, got, used)
	}
	stop.Store(true)
	<-done
	t.Logf("%d of %d walks were consistent while a writer went on", consistent, walks)
	p.wantWritten(p.readLive())
}

func wantCounts(t *testing.T, p *pool, used uint64) {
	t.Helper()
	data := map[uint64]bool{}
	for _, d := range p.Devices {
		mapped := uint64(0)
		eachBlock(d, func(block uint64) { mapped++; data[block] = true })
		if mapped != d.MappedBlocks {
			t.Errorf("thin %d has %d blocks mapped, and says %d", d.ID, mapped, d.MappedBlocks)
		}
	}
	if uint64(len(data)) != used {
		t.Errorf("%d data blocks are mapped, and %d in use", len(data), used)
	}
}
