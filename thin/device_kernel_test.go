//go:build testkernel

package thin

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"decant/dm"
	"decant/loopdev"
)

// rawPool is a pool that nobody manages, on the two disks of the test kernel.
type rawPool struct {
	t *testing.T
	poolDevice
}

const rawBlockBytes = 64 << 10

func newRawPool(t *testing.T) rawPool {
	t.Helper()
	control, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	disks := strings.Fields(os.Getenv("DECANT_TEST_DISKS"))
	p := rawPool{t, poolDevice{control, "raw"}}
	p.do("blkdiscard", "-f", disks[0])
	p.do("blkdiscard", "-f", disks[1])
	table := PoolTable{Metadata: disks[0], Data: disks[1], BlockBytes: rawBlockBytes, ErrorIfNoSpace: true}
	p.activate("raw", dm.Target{Length: 60 << 20 / dm.SectorBytes, Type: poolTarget, Params: table.String()})
	return p
}

func (p rawPool) do(program string, args ...string) {
	p.t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		p.t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
}

func (p rawPool) activate(name string, table dm.Target) {
	p.t.Helper()
	_, err := p.control.Create(name, "")
	if err := errors.Join(err, p.control.Load(name, []dm.Target{table}), p.control.Resume(name)); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := p.control.Remove(name); err != nil {
			p.t.Error(err)
		}
	})
}

func (p rawPool) message(format string, args ...any) {
	p.t.Helper()
	if _, err := p.control.Message(p.name, 0, fmt.Sprintf(format, args...)); err != nil {
		p.t.Fatal(err)
	}
}

// open makes the device of a thin id that exists, and opens it as a volume.
func (p rawPool) open(id int, bytes int64) *deviceVolume {
	p.t.Helper()
	name := fmt.Sprintf("raw%d", id)
	p.activate(name, dm.Target{Length: uint64(bytes / dm.SectorBytes), Type: thinTarget, Params: VolumeTable{Pool: dm.Path("raw"), ID: uint32(id)}.String()})
	device, err := loopdev.Open(dm.Path(name), loopdev.Options{Write: true, Exclusive: true})
	if err != nil {
		p.t.Fatal(err)
	}
	v, err := newDeviceVolume(device, p.poolDevice, name, name)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := v.Close(); err != nil {
			p.t.Error(err)
		}
	})
	return v
}

// NextData goes by the pool's metadata: it is the blocks that were written and not
// discarded, also before anything is flushed.
func TestKernelMappingIsWhatWasWritten(t *testing.T) {
	p := newRawPool(t)
	p.message("create_thin 1")
	const blocks = 400
	v := p.open(1, blocks*rawBlockBytes)
	written := [blocks]bool{}
	rng := rand.New(rand.NewPCG(1, 2))
	one := loopdev.AlignedBuffer(4096)
	one[0] = 1
	for step := range 60 {
		for range 10 {
			block := rng.Int64N(blocks)
			if step%3 == 2 {
				if err := v.Discard(block*rawBlockBytes, rawBlockBytes); err != nil {
					t.Fatal(err)
				}
				written[block] = false
				continue
			}
			if _, err := v.WriteAt(one, block*rawBlockBytes); err != nil {
				t.Fatal(err)
			}
			written[block] = true
		}
		if _, err := v.WriteAt(one, 0); err != nil { // a discard alone makes nothing look again
			t.Fatal(err)
		}
		written[0] = true
		for block := range int64(blocks) {
			start, end, err := v.NextData(block * rawBlockBytes)
			if err != nil {
				t.Fatal(err)
			}
			if starts := start == block*rawBlockBytes && end > start; starts != written[block] {
				t.Fatalf("step %d: NextData(block %d) = blocks [%d, %d), written: %t", step, block, start/rawBlockBytes, end/rawBlockBytes, written[block])
			}
		}
	}
}

// A window ends where its memory does, and the next one goes on from there.
func TestKernelMappingGoesOnBehindAWindow(t *testing.T) {
	p := newRawPool(t)
	p.message("create_thin 1")
	v := p.open(1, 8<<40)
	one := loopdev.AlignedBuffer(4096)
	var want []int64
	for i := range int64(300) {
		want = append(want, i*i*7*rawBlockBytes)
		if _, err := v.WriteAt(one, want[i]); err != nil {
			t.Fatal(err)
		}
	}
	found := 0
	for off := int64(0); off < v.Bytes(); {
		start, end, err := v.NextData(off)
		if err != nil {
			t.Fatal(err)
		}
		if start == v.Bytes() {
			break
		}
		if start != want[found] || end != start+rawBlockBytes {
			t.Fatalf("range %d is [%d, %d), want it at %d", found, start, end, want[found])
		}
		found++
		off = end
	}
	if found != len(want) {
		t.Errorf("%d ranges, want %d", found, len(want))
	}
}

// SharedBytes is what a snapshot has in common with its origin.
func TestKernelMappingTellsWhatIsShared(t *testing.T) {
	p := newRawPool(t)
	p.message("create_thin 1")
	v := p.open(1, 100*rawBlockBytes)
	data := loopdev.AlignedBuffer(40 * rawBlockBytes)
	if _, err := v.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := v.SharedBytes(); err != nil || n != 0 {
		t.Errorf("without a snapshot: %d, %v", n, err)
	}
	if err := errors.Join(v.Flush(), p.control.Suspend("raw1", dm.SuspendOptions{})); err != nil {
		t.Fatal(err)
	}
	p.message("create_snap 2 1")
	if err := p.control.Resume("raw1"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(data[:10*rawBlockBytes], 5*rawBlockBytes); err != nil {
		t.Fatal(err)
	}
	if n, err := v.SharedBytes(); err != nil || n != 30*rawBlockBytes {
		t.Errorf("with a snapshot and 10 of 40 blocks written since: %d bytes, %v", n, err)
	}
	if n, err := v.AllocatedBytes(); err != nil || n != 40*rawBlockBytes {
		t.Errorf("allocated %d, %v", n, err)
	}
	p.message("delete 2")
}

// The device of a number is found also where nobody makes links for it.
func TestKernelMappingOpensADeviceByItsNumber(t *testing.T) {
	p := newRawPool(t)
	info, err := p.control.Info("raw")
	if err != nil {
		t.Fatal(err)
	}
	f, number, err := openNumber(info.Device.String())
	if err != nil || number != info.Device {
		t.Fatalf("%v, %v", number, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "7", "x:y", "4095:1048575"} {
		if _, _, err := openNumber(bad); err == nil {
			t.Errorf("%q was opened", bad)
		}
	}
}
