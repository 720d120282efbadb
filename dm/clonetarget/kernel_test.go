//go:build testkernel

package clonetarget

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/dm/persistent"
)

const (
	mib         = 1 << 20
	regionBytes = 4 << 10
)

// liveClone is a clone in the kernel.
type liveClone struct {
	t       testing.TB
	c       *dm.Control
	device  *os.File
	raw     *os.File // the metadata
	counts  func() (persistent.IOCounts, error)
	regions uint64
}

// newLiveClone makes one over a source and a destination that hold nothing but zeros,
// whatever is written, with nothing hydrated.
func newLiveClone(t testing.TB, regions uint64) *liveClone {
	t.Helper()
	c, err := dm.Open()
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	l := &liveClone{t: t, c: c, regions: regions}
	bytes := regions * regionBytes
	l.activate("source", bytes, "zero", "")
	l.activate("destination", bytes, "zero", "")
	l.make("source", "destination")
	return l
}

// make makes the clone of devices that there are. The metadata is on the first disk.
func (l *liveClone) make(source, destination string) {
	l.t.Helper()
	disk := strings.Fields(os.Getenv("DECANT_TEST_DISKS"))[0]
	l.activate("metadata", uint64(MetadataBytes(int64(l.regions))), "linear", disk+" 0")
	var err error
	l.raw, err = os.OpenFile(dm.Path("metadata"), os.O_RDWR|unix.O_DIRECT, 0)
	must(l.t, err)
	l.t.Cleanup(func() { must(l.t, l.raw.Close()) })
	_, err = l.raw.WriteAt(persistent.AlignedBlock(), 0)
	must(l.t, err)
	info, err := l.c.Info("metadata")
	must(l.t, err)
	l.counts = persistent.DeviceIOCounts(info.Device.Major(), info.Device.Minor())
	_, err = Open(l.raw)
	if !errors.Is(err, ErrBlank) {
		l.t.Errorf("before the first use: %v", err)
	}
	table := Table{
		Metadata: dm.Path("metadata"), Destination: dm.Path(destination), Source: dm.Path(source),
		RegionBytes: regionBytes, NoHydration: true, NoDiscardPassdown: true, Threshold: 3, Batch: 2,
	}
	l.activate("clone", l.regions*regionBytes, Type, table.String())
	l.device, err = os.OpenFile(dm.Path("clone"), os.O_RDWR|unix.O_DIRECT, 0)
	must(l.t, err)
	l.t.Cleanup(func() { must(l.t, l.device.Close()) })
}

func (l *liveClone) activate(name string, bytes uint64, target, params string) {
	l.t.Helper()
	_, err := l.c.Create(name, "")
	must(l.t, err)
	l.t.Cleanup(func() { must(l.t, l.c.Remove(name)) })
	must(l.t, l.c.Load(name, []dm.Target{{Length: bytes / dm.SectorBytes, Type: target, Params: params}}))
	must(l.t, l.c.Resume(name))
}

// discard tells the clone that regions are not needed, which hydrates them.
func (l *liveClone) discard(first, n uint64) {
	l.t.Helper()
	r := [2]uint64{first * regionBytes, n * regionBytes}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, l.device.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r))); errno != 0 {
		l.t.Fatalf("discard %d regions from %d: %v", n, first, errno)
	}
}

func (l *liveClone) write(region uint64) {
	l.t.Helper()
	_, err := l.device.WriteAt(persistent.AlignedBlock()[:regionBytes], int64(region*regionBytes))
	must(l.t, err)
}

// commit makes the kernel commit.
func (l *liveClone) commit() Status {
	l.t.Helper()
	targets, err := l.c.Status("clone")
	must(l.t, err)
	s, err := ParseStatus(targets[0].Params)
	must(l.t, err)
	return s
}

func (l *liveClone) read() map[uint64]bool {
	l.t.Helper()
	var got map[uint64]bool
	must(l.t, Consistently(l.raw, l.counts, 20, func(m *Reader) (err error) {
		got, err = hydrated(m)
		return err
	}))
	return got
}

// What discards and writes hydrate is in the committed metadata, and nothing else.
func TestKernelReadsWhatACloneCommits(t *testing.T) {
	for _, regions := range []uint64{1, 63, 64, 65, 32576, 32577, 41_000} {
		t.Run(fmt.Sprint(regions), func(t *testing.T) {
			l := newLiveClone(t, regions)
			rng := rand.New(rand.NewPCG(regions, 0))
			want := map[uint64]bool{}
			for range 12 {
				for range 1 + rng.IntN(4) {
					first := rng.Uint64N(regions)
					n := 1 + rng.Uint64N(min(300, regions-first))
					if rng.IntN(2) == 0 {
						n = 1
						l.write(first)
					} else {
						l.discard(first, n)
					}
					for i := range n {
						want[first+i] = true
					}
				}
				s := l.commit()
				wantHydrated(t, l.read(), want)
				if s.HydratedRegions != int64(len(want)) || s.Regions != int64(regions) || s.Mode != ReadWrite {
					t.Errorf("status %+v, with %d regions hydrated", s, len(want))
				}
			}
		})
	}
}

func TestKernelTableAndStatus(t *testing.T) {
	l := newLiveClone(t, 100)
	table, err := l.c.Table("clone")
	must(t, err)
	got, err := ParseTable(table[0].Params)
	must(t, err)
	deps, err := l.c.Deps("clone")
	must(t, err)
	if len(deps) != 3 || got.RegionBytes != regionBytes || !got.NoHydration || !got.NoDiscardPassdown || got.Threshold != 3 || got.Batch != 2 {
		t.Errorf("table %q is %+v; it uses %v", table[0].Params, got, deps)
	}
	s := l.commit()
	want := Status{
		MetadataUsedBlocks: s.MetadataUsedBlocks, MetadataBlocks: MetadataBytes(100) / persistent.BlockBytes, RegionBytes: regionBytes,
		Regions: 100, HydrationDisabled: true, NoDiscardPassdown: true, Threshold: 3, Batch: 2, Mode: ReadWrite,
	}
	if s != want {
		t.Errorf("status %+v, want %+v", s, want)
	}
	for _, m := range []string{SetThreshold(10), SetBatch(5), Enable} {
		_, err := l.c.Message("clone", 0, m)
		must(t, err)
	}
	event, err := l.c.Info("clone")
	must(t, err)
	deadline := time.Now().Add(time.Minute)
	for s = l.commit(); !s.Done() && time.Now().Before(deadline); s = l.commit() {
		time.Sleep(10 * time.Millisecond) // a turn of a loop that waits for the kernel, with a deadline
	}
	if !s.Done() || s.Threshold != 10 || s.Batch != 5 || s.HydrationDisabled {
		t.Errorf("status %+v, and events began with %d", s, event.EventNumber)
	}
	if got := l.read(); len(got) != 100 {
		t.Errorf("%d regions are hydrated", len(got))
	}
}

// The bits of one discard are set in one transaction. A walk that counts sees all of
// them or none, whatever goes on, and what it has seen once stays.
func TestKernelConsistently(t *testing.T) {
	const regions, each = 41_000, 50
	l := newLiveClone(t, regions)
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		rng := rand.New(rand.NewPCG(1, 2))
		for _, i := range rng.Perm(regions / each) {
			if stop.Load() || t.Failed() {
				return
			}
			l.discard(uint64(i)*each, each)
			l.commit()
		}
	}()
	var before map[uint64]bool
	walks, consistent := 0, 0
	for range 200 {
		var got map[uint64]bool
		err := Consistently(l.raw, l.counts, 5, func(m *Reader) (err error) {
			walks++
			got, err = hydrated(m)
			return err
		})
		if errors.Is(err, persistent.ErrChanging) {
			continue
		}
		must(t, err)
		consistent++
		if len(got)%each != 0 {
			t.Errorf("%d regions are hydrated, which are no whole discards", len(got))
		}
		for r := range got {
			if !got[r/each*each] || !got[r/each*each+each-1] {
				t.Fatalf("region %d is hydrated, and not all of its discard", r)
			}
		}
		for r := range before {
			if !got[r] {
				t.Fatalf("region %d is no longer hydrated", r)
			}
		}
		before = got
	}
	stop.Store(true)
	<-done
	t.Logf("%d of %d walks were consistent, the last one saw %d regions", consistent, walks, len(before))
	if consistent == 0 || len(before) == 0 {
		t.Error("nothing was seen")
	}
}

// The size that MetadataBytes gives is enough for transactions that change every block,
// in a tree of three levels.
func TestKernelMetadataBytes(t *testing.T) {
	const regions = 300 * 32576
	l := newLiveClone(t, regions)
	want := uint64(0)
	var s Status
	for round := range uint64(6) {
		for first := round * 7; first < regions-5; first += 32576 {
			l.discard(first, 5)
			want += 5
		}
		if s = l.commit(); s.Mode != ReadWrite || s.HydratedRegions != int64(want) {
			t.Fatalf("status %+v", s)
		}
	}
	if got := uint64(len(l.read())); got != want {
		t.Errorf("%d regions are hydrated, and not %d", got, want)
	}
	t.Logf("%d of %d metadata blocks are in use", s.MetadataUsedBlocks, s.MetadataBlocks)
	if s.MetadataUsedBlocks*2 > s.MetadataBlocks {
		t.Error("the next transaction may not fit")
	}
}

// fault 82: a read of the source goes on while its region is hydrated and committed.
// Suspending the clone waits for it, so that the source may be discarded after that.
func TestKernelFault82SuspendWaitsForReadsOfTheSource(t *testing.T) {
	const regions, region = 64, 7
	delay := 2 * time.Second
	c, err := dm.Open()
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	l := &liveClone{t: t, c: c, regions: regions}
	l.activate("fast", regions*regionBytes, "zero", "")
	l.activate("destination", regions*regionBytes, "zero", "")
	l.activate("source", regions*regionBytes, "delay", fmt.Sprintf("%s 0 %d", dm.Path("fast"), delay.Milliseconds()))
	l.make("source", "destination")

	var ended atomic.Bool
	begun, read := time.Now(), make(chan error, 1)
	go func() {
		_, err := l.device.ReadAt(persistent.AlignedBlock(), region*regionBytes)
		ended.Store(true)
		read <- err
	}()
	inFlight(t, "clone")
	l.write(region)
	l.commit()
	if !l.read()[region] {
		t.Error("the region is not hydrated")
	}
	if ended.Load() {
		t.Fatal("the read is over before the test could begin")
	}
	must(t, c.Suspend("clone", dm.SuspendOptions{NoLockFS: true}))
	if took := time.Since(begun); took < delay {
		t.Errorf("the device was suspended after %v, while a read took %v", took, delay)
	}
	must(t, c.Resume("clone"))
	must(t, <-read)
}

// inFlight waits until the device has I/O that has not ended.
func inFlight(t *testing.T, name string) {
	t.Helper()
	c, err := dm.Open()
	must(t, err)
	defer c.Close()
	info, err := c.Info(name)
	must(t, err)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var reads, writes int
		stat, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%v/inflight", info.Device))
		must(t, err)
		_, err = fmt.Sscan(string(stat), &reads, &writes)
		must(t, err)
		if reads+writes > 0 {
			return
		}
	}
	t.Fatalf("no I/O reaches %s", name)
}
