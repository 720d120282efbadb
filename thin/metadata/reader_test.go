package metadata

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const (
	mib           = 1 << 20
	exampleBytes  = 4 * mib
	exampleBlocks = 1000
)

// example has a device, a snapshot of it in which two blocks were written since, and
// an empty device.
func example() *pool {
	p := &pool{Time: 4, TransactionID: 9, DataBlockSectors: 128, DataBlocks: exampleBlocks, Devices: []thin{{
		Device:   Device{ID: 1, MappedBlocks: 15, TransactionID: 2},
		Mappings: []Mapping{{0, 10, 4, 0}, {4, 14, 2, 1}, {100, 500, 8, 2}, {1 << 30, 600, 1, 3}},
	}}}
	p.snapshot(0, 7)
	p.Devices[1].Mappings = []Mapping{{0, 10, 1, 0}, {1, 700, 2, 5}, {3, 13, 1, 0}, {4, 14, 2, 1}, {100, 500, 8, 2}, {1 << 30, 600, 1, 3}}
	p.Devices = append(p.Devices, thin{Device: Device{ID: 1 << 20, TransactionID: 8, CreationTime: 5, SnapshottedTime: 5}})
	return p
}

func openExample(t *testing.T) *Reader {
	t.Helper()
	m, err := Open(restore(t, example(), exampleBytes), Options{})
	must(t, err)
	return m
}

func wantPool(t testing.TB, got, want *pool) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

func TestReadsWhatWasRestored(t *testing.T) {
	for name, p := range map[string]*pool{
		"empty":   {DataBlockSectors: 2048, DataBlocks: 1},
		"example": example(),
	} {
		t.Run(name, func(t *testing.T) {
			image := restore(t, p, exampleBytes)
			wantPool(t, readImage(t, image), p)
		})
	}
}

func TestSuperblock(t *testing.T) {
	image := restore(t, example(), exampleBytes)
	s, err := ReadSuperblock(image)
	must(t, err)
	if s.Time != 5 || s.TransactionID != 9 || s.DataBlockBytes() != 64<<10 || s.Version != 2 || s.NeedsCheck || s.HeldRoot != 0 {
		t.Errorf("superblock %+v", s)
	}
	if s.DataSpaceMap.Blocks != exampleBlocks || s.DataSpaceMap.AllocatedBlocks != 17 || s.MetadataSpaceMap.Blocks != exampleBytes/BlockBytes {
		t.Errorf("space maps %+v %+v", s.DataSpaceMap, s.MetadataSpaceMap)
	}
}

func TestMappingsFromTheMiddle(t *testing.T) {
	m := openExample(t)
	for _, c := range []struct {
		from uint64
		want []Mapping
	}{
		{2, []Mapping{{2, 12, 2, 0}, {4, 14, 2, 1}, {100, 500, 8, 2}, {1 << 30, 600, 1, 3}}},
		{5, []Mapping{{5, 15, 1, 1}, {100, 500, 8, 2}, {1 << 30, 600, 1, 3}}},
		{6, []Mapping{{100, 500, 8, 2}, {1 << 30, 600, 1, 3}}},
		{1 << 30, []Mapping{{1 << 30, 600, 1, 3}}},
		{1<<30 + 1, nil},
		{1<<64 - 1, nil},
	} {
		var got []Mapping
		for run, err := range m.Mappings(1, c.from) {
			must(t, err)
			got = append(got, run)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("from %d: %v, want %v", c.from, got, c.want)
		}
		next, found, err := m.NextMapped(1, c.from)
		must(t, err)
		if found != (len(c.want) > 0) || found && next != c.want[0] {
			t.Errorf("next from %d: %v %v, want the first of %v", c.from, next, found, c.want)
		}
	}
}

func TestMappingsEndWhereTheCallerBreaks(t *testing.T) {
	for run, err := range openExample(t).Mappings(1, 0) {
		must(t, err)
		if run != (Mapping{0, 10, 4, 0}) {
			t.Fatalf("the loop went on to %v", run)
		}
		break
	}
}

func TestDevice(t *testing.T) {
	m := openExample(t)
	for _, want := range example().Devices {
		got, err := m.Device(want.ID)
		if err != nil || got != want.Device {
			t.Errorf("thin %d: %+v, %v, want %+v", want.ID, got, err, want.Device)
		}
	}
}

func TestUnknownDevice(t *testing.T) {
	m := openExample(t)
	_, device := m.Device(2)
	_, _, next := m.NextMapped(2, 0)
	var all error
	for _, all = range m.Mappings(2, 0) {
	}
	for _, err := range []error{device, next, all} {
		if !errors.Is(err, ErrNoDevice) || !strings.Contains(err.Error(), "thin 2") {
			t.Errorf("got %v", err)
		}
	}
}

func TestBreaksSharing(t *testing.T) {
	d := Device{SnapshottedTime: 3}
	if !d.BreaksSharing(Mapping{Time: 2}) || d.BreaksSharing(Mapping{Time: 3}) {
		t.Error("a block is shared if it was allocated before the last snapshot")
	}
}

func TestNoHeldSnapshot(t *testing.T) {
	if _, err := Open(restore(t, example(), exampleBytes), Options{Held: true}); !errors.Is(err, ErrNotHeld) {
		t.Errorf("got %v", err)
	}
}

func TestDeviceThatEndsTooEarly(t *testing.T) {
	image := restore(t, example(), exampleBytes)
	must(t, image.Truncate(2*BlockBytes+100))
	m, err := Open(image, Options{})
	must(t, err)
	if _, err := read(m); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

// Every third virtual block of a device, so that each mapping is a run, and so many that
// the tree has three levels.
func TestMillionBlocks(t *testing.T) {
	runs := uint64(1_000_000)
	if testing.Short() {
		runs = 100_000
	}
	p := &pool{DataBlockSectors: 128, DataBlocks: 2 * runs, Devices: []thin{{Device: Device{ID: 1, MappedBlocks: runs}}}}
	for i := range runs {
		p.Devices[0].Mappings = append(p.Devices[0].Mappings, Mapping{3 * i, 2 * (runs - 1 - i), 1, 0})
	}
	reads := &readCounter{r: restore(t, p, 64*mib)}
	m, err := Open(reads, Options{})
	must(t, err)
	i := uint64(0)
	for run, err := range m.Mappings(1, 0) {
		must(t, err)
		if want := p.Devices[0].Mappings[i]; run != want {
			t.Fatalf("run %d is %v, want %v", i, run, want)
		}
		i++
	}
	if i != runs {
		t.Errorf("%d runs of %d", i, runs)
	}

	reads.n = 0
	m, err = Open(reads, Options{})
	must(t, err)
	run, found, err := m.NextMapped(1, 3*runs/2+1)
	must(t, err)
	if want := p.Devices[0].Mappings[runs/2+1]; !found || run != want {
		t.Errorf("next mapped is %v %v, want %v", run, found, want)
	}
	if superblock, top, levels := 1, 1, 3; reads.n != superblock+top+levels {
		t.Errorf("%d reads for one look-up", reads.n)
	}
}

type readCounter struct {
	r io.ReaderAt
	n int
}

func (c *readCounter) ReadAt(b []byte, off int64) (int, error) {
	c.n++
	return c.r.ReadAt(b, off)
}

func TestRefCounts(t *testing.T) {
	p := example()
	for id := range uint32(5) { // so that one block has a count that is not in the bitmap
		p.Devices = append(p.Devices, thin{
			Device: Device{ID: 1<<20 + 1 + id, MappedBlocks: 1}, Mappings: []Mapping{{9, 10, 1, 0}},
		})
	}
	m, err := Open(restore(t, p, exampleBytes), Options{})
	must(t, err)
	want := map[uint64]uint32{}
	for _, d := range p.Devices {
		for _, run := range d.Mappings {
			for i := range run.Blocks {
				want[run.DataBlock+i]++
			}
		}
	}
	for block := range uint64(exampleBlocks) {
		if got, err := m.RefCount(block); err != nil || got != want[block] {
			t.Errorf("data block %d: %d, %v, want %d", block, got, err, want[block])
		}
	}
	if _, err := m.RefCount(exampleBlocks); err == nil {
		t.Error("a count for a block after the last")
	}
}

// Far apart, so that several bitmaps are needed.
func TestRefCountsOfLargePool(t *testing.T) {
	const last = 10 * countsPerBitmap
	p := &pool{DataBlockSectors: 128, DataBlocks: last + 1, Devices: []thin{{
		Device: Device{ID: 3, MappedBlocks: 3}, Mappings: []Mapping{{0, last, 1, 0}, {1, countsPerBitmap - 1, 2, 0}},
	}}}
	m, err := Open(restore(t, p, exampleBytes), Options{})
	must(t, err)
	for block, want := range map[uint64]uint32{
		0: 0, countsPerBitmap - 2: 0, countsPerBitmap - 1: 1, countsPerBitmap: 1, countsPerBitmap + 1: 0, last - 1: 0, last: 1,
	} {
		if got, err := m.RefCount(block); err != nil || got != want {
			t.Errorf("data block %d: %d, %v, want %d", block, got, err, want)
		}
	}
}

// kernelImage has three devices that share nodes and blocks, and a held metadata
// snapshot since which one block was written.
func TestReadsWhatAKernelMade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata")
	must(t, os.WriteFile(path, kernelImage(t), 0o600))
	image, err := os.Open(path)
	must(t, err)
	defer func() { _ = image.Close() }() // only read
	wantPool(t, readImage(t, image), dump(t, path))

	m, err := Open(image, Options{})
	must(t, err)
	wantExclusiveLikeThinLS(t, m, path)
	m, err = Open(image, Options{Held: true})
	must(t, err)
	got, err := read(m)
	must(t, err)
	want := dump(t, path, "-m")
	want.DataBlocks = 512 // which the copy of the superblock does not know
	wantPool(t, got, want)
	wantExclusiveLikeThinLS(t, m, path, "-m")
}

// anyPool has devices with runs that may be shared, adjoin, and lie anywhere.
func anyPool(t *rapid.T) *pool {
	p := &pool{
		Time:             uint32(rapid.IntRange(0, 1<<24-1).Draw(t, "time")),
		TransactionID:    rapid.Uint64().Draw(t, "transaction"),
		DataBlockSectors: 128 * rapid.Uint32Range(1, 16384).Draw(t, "data block / 64 KiB"),
		DataBlocks:       rapid.Uint64Range(1, 100_000).Draw(t, "data blocks"),
	}
	ids := rapid.SliceOfNDistinct(rapid.Uint32Range(0, maxThinID), 0, 12, rapid.ID[uint32]).Draw(t, "ids")
	slices.Sort(ids)
	for _, id := range ids {
		d := thin{Device: Device{
			ID: id, TransactionID: rapid.Uint64().Draw(t, "transaction"),
			CreationTime: rapid.Uint32().Draw(t, "created"), SnapshottedTime: rapid.Uint32().Draw(t, "snapshotted"),
		}}
		at := rapid.Uint64Range(0, 1<<32).Draw(t, "begin")
		for range rapid.IntRange(0, 40).Draw(t, "runs") {
			run := Mapping{VirtualBlock: at, DataBlock: rapid.Uint64Range(0, p.DataBlocks-1).Draw(t, "data block"), Time: rapid.Uint32Range(0, 3).Draw(t, "time")}
			run.Blocks = rapid.Uint64Range(1, min(600, p.DataBlocks-run.DataBlock)).Draw(t, "blocks")
			d.Mappings = join(d.Mappings, run)
			d.MappedBlocks += run.Blocks
			at += run.Blocks + rapid.SampledFrom([]uint64{0, 0, 1, 1000}).Draw(t, "gap")
		}
		p.Devices = append(p.Devices, d)
	}
	return p
}

func TestAnyPool(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := anyPool(rt)
		m, err := Open(restore(t, p, 16*mib), Options{})
		must(t, err)
		got, err := read(m)
		must(t, err)
		if !reflect.DeepEqual(got, p) {
			rt.Fatalf("got\n%+v\nwant\n%+v", got, p)
		}
		checkNextMapped(rt, m, p)
		checkSharing(rt, m, p)
	})
}

func checkNextMapped(t *rapid.T, m *Reader, p *pool) {
	for _, d := range p.Devices {
		for at := uint64(0); ; {
			run, found, err := m.NextMapped(d.ID, at)
			if err != nil {
				t.Fatal(err)
			}
			if !found {
				break
			}
			if !slices.ContainsFunc(d.Mappings, func(whole Mapping) bool { return holds(whole, run) }) || run.VirtualBlock < at {
				t.Fatalf("thin %d, next mapped from %d is %v", d.ID, at, run)
			}
			d.MappedBlocks -= run.Blocks
			at = run.VirtualBlock + run.Blocks
		}
		if d.MappedBlocks != 0 {
			t.Fatalf("thin %d: %d blocks were not found", d.ID, d.MappedBlocks)
		}
	}
}

func holds(whole, part Mapping) bool {
	into := part.VirtualBlock - whole.VirtualBlock
	return part.VirtualBlock >= whole.VirtualBlock && into+part.Blocks <= whole.Blocks &&
		part.DataBlock == whole.DataBlock+into && part.Time == whole.Time
}

// checkSharing counts who maps a block, one by one. Here a device can map a block
// twice, which the kernel does not do, and Sharing takes for shared.
func checkSharing(t *rapid.T, m *Reader, p *pool) {
	named := map[uint64]int{}
	for _, d := range p.Devices {
		eachBlock(d, func(data uint64) { named[data]++ })
	}
	s, err := m.Sharing()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range p.Devices {
		want, flagged := uint64(0), uint64(0)
		eachBlock(d, func(data uint64) {
			if named[data] == 1 {
				want++
			}
		})
		for run, err := range s.Mappings(d.ID, 0) {
			if err != nil {
				t.Fatal(err)
			}
			for i := range run.Blocks {
				if run.Shared != (named[run.DataBlock+i] > 1) {
					t.Fatalf("thin %d, %+v: %d devices map block %d of it", d.ID, run, named[run.DataBlock+i], i)
				}
			}
			if !run.Shared {
				flagged += run.Blocks
			}
		}
		if got, err := s.ExclusiveBlocks(d.ID); err != nil || got != want || flagged != want {
			t.Fatalf("thin %d: %d exclusive blocks, %v, by their runs %d, want %d", d.ID, got, err, flagged, want)
		}
	}
}

func eachBlock(d thin, f func(data uint64)) {
	for _, run := range d.Mappings {
		for i := range run.Blocks {
			f(run.DataBlock + i)
		}
	}
}

// thin_ls is told the same by the same metadata, also where devices share nodes.
func wantExclusiveLikeThinLS(t *testing.T, m *Reader, path string, options ...string) {
	t.Helper()
	s, err := m.Sharing()
	must(t, err)
	var got strings.Builder
	for d, err := range m.Devices() {
		must(t, err)
		exclusive, err := s.ExclusiveBlocks(d.ID)
		must(t, err)
		fmt.Fprintln(&got, d.ID, d.MappedBlocks, exclusive)
	}
	args := append([]string{"--no-headers", "-o", "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS"}, options...)
	out, err := exec.Command("thin_ls", append(args, path)...).CombinedOutput()
	must(t, err)
	var want strings.Builder
	for line := range strings.Lines(string(out)) {
		fmt.Fprintln(&want, strings.Join(strings.Fields(line), " "))
	}
	if got.String() != want.String() {
		t.Errorf("exclusive blocks:\n%swant:\n%s", got.String(), want.String())
	}
}
