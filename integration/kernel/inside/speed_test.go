//go:build testkernel

package inside

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"decant/dm"
)

// An image of the comparison has this size, and is moved this often by each way.
const (
	speedBytes  = 512 * mib
	speedRounds = 3
)

// way is one way of moving an image file into a new volume of a thin pool.
type way struct {
	name  string
	move  func(s *site, image string, p *pool)
	times []time.Duration
}

func (w *way) median() time.Duration {
	slices.Sort(w.times)
	return w.times[len(w.times)/2]
}

// BenchmarkSpeedBesideClone compares migrate, which empties the file as it goes, with
// the kernel's dm-clone over a loop device, which keeps it. dm-clone has the settings
// that were the best of those tried: regions of 1 MiB, a threshold of 16 and batches
// of 4. Both times run from the first command until the volume is durable, and both
// begin with none of the image in the page cache.
func BenchmarkSpeedBesideClone(b *testing.B) {
	for b.Loop() {
		compareSpeed(b, "random bytes, no holes", newImage(speedBytes, 1, solid))
		compareSpeed(b, "60% random bytes, 20% holes, 20% zeros that take space", newImage(speedBytes, 1, mixed))
	}
}

func compareSpeed(b *testing.B, about string, made image) {
	ways := []way{
		{name: "migrate --discard-src", move: func(s *site, path string, p *pool) {
			s.move(0, path, p.newVolume(1, speedBytes).path(), "--discard-src")
		}},
		{name: "dm-clone over a loop device", move: moveByClone("off")},
		{name: "dm-clone over a loop device with direct I/O", move: moveByClone("on")},
	}
	for round := range speedRounds {
		for i := range ways {
			w := &ways[(round+i)%len(ways)] // each round begins with another one
			b.Run(w.name, func(b *testing.B) { w.times = append(w.times, speedOf(b, made, w.move)) })
		}
	}
	fmt.Printf("SPEED image of %d MiB: %s; from a cold page cache until the volume is durable\n", speedBytes/mib, about)
	for i := range ways {
		median := ways[i].median()
		fmt.Printf("SPEED   %-44s %5.2f s  %4.0f MiB/s  %4.2f\n", ways[i].name, median.Seconds(),
			float64(speedBytes/mib)/median.Seconds(), median.Seconds()/ways[0].median().Seconds())
	}
}

// speedOf prepares one move with cold caches, and checks what came of it. What the
// move leaves is cleaned up at the end of b.
func speedOf(b *testing.B, made image, move func(*site, string, *pool)) time.Duration {
	s := newSite(b)
	p := s.newPool(poolOptions{data: s.slice(speedBytes + 64*mib), metadata: s.slice(8 * mib)})
	path := s.path("image")
	s.write(made, path)
	s.do("sync")
	s.must(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	begun := time.Now()
	move(s, path, p)
	took := time.Since(begun)
	s.wantWhole(p.volumes[1].path(), made)
	return took
}

// moveByClone waits until all regions are hydrated, and flushes. Its looks at the
// progress do not make dm-clone commit, as a plain question for the status would.
func moveByClone(direct string) func(s *site, path string, p *pool) {
	return func(s *site, path string, p *pool) {
		v := p.newVolume(1, speedBytes)
		metadata := s.slice(8 * mib)
		loop := strings.TrimSpace(s.do("losetup", "--find", "--show", "--read-only", "--direct-io="+direct, path))
		s.Cleanup(func() { s.do("losetup", "--detach", loop) })
		c := s.newDevice(dm.Target{
			Length: uint64(speedBytes / dm.SectorBytes), Type: "clone",
			Params: fmt.Sprintf("%s %s %s %d 0 4 hydration_threshold 16 hydration_batch_size 4", metadata.path(), v.path(), loop, mib/dm.SectorBytes),
		})
		for {
			var used, total, unit, regionSectors, hydrated, regions int64
			status, err := s.dm.StatusNoFlush(c.name)
			s.must(err)
			if _, err := fmt.Sscanf(status[0].Params, "%d %d/%d %d %d/%d", &unit, &used, &total, &regionSectors, &hydrated, &regions); err != nil {
				s.Fatalf("status %q: %v", status[0].Params, err)
			}
			if hydrated == regions {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		clone, err := os.Open(c.path())
		s.must(err)
		s.must(errors.Join(clone.Sync(), clone.Close())) // a flush, with which dm-clone commits
	}
}
