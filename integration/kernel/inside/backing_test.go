//go:build testkernel

package inside

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/thin"
)

// attach makes a loop device that is detached after the test.
func (s *site) attach(path string) string {
	s.Helper()
	loop := strings.TrimSpace(s.do("losetup", "-f", "--show", path))
	s.Cleanup(func() { s.do("losetup", "-d", loop) })
	return loop
}

// blank makes a sparse file.
func (s *site) blank(path string, bytes int64) string {
	s.Helper()
	s.must(os.WriteFile(path, nil, 0o600))
	s.must(os.Truncate(path, bytes))
	return path
}

// stack is what lies below a device, or below the file system of a file.
func (s *site) stack(path string) []thin.Layer {
	s.Helper()
	var st unix.Stat_t
	s.must(unix.Stat(path, &st))
	dev := st.Rdev
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		dev = st.Dev
	}
	stack, err := thin.FindStack(dev)
	s.must(err)
	s.Cleanup(func() { s.must(stack.Close()) })
	return stack.Layers
}

// describe is the layers in short: pools by their names, files by their paths.
func describe(layers []thin.Layer) string {
	var words []string
	for _, l := range layers {
		var word string
		if l.Pool != nil {
			word = l.Pool.Volume + " in " + l.Pool.Pool
		} else {
			word = l.File.Path
		}
		if l.Exact {
			word += " (exact)"
		}
		if !l.Discards {
			word += " (no discards)"
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

func (s *site) wantStack(path, want string) []thin.Layer {
	s.Helper()
	layers := s.stack(path)
	if got := describe(layers); got != want {
		s.Errorf("below %s: %s; want %s", path, got, want)
	}
	return layers
}

func TestKernelSpaceStackBelowVolume(t *testing.T) {
	s := newSite(t)
	p := s.newPool(poolOptions{})
	v := p.newVolume(1, 48*mib)
	layers := s.wantStack(v.path(), v.path()+" in "+p.path()+" (exact)")
	b := layers[0].Pool
	if b.BlockBytes != 64*kib || b.PoolUUID != "TEST-"+p.name || b.KeepsFreed {
		t.Errorf("%+v", b)
	}
	if n, err := b.MappedBytes(); err != nil || n != 0 {
		t.Errorf("%d bytes mapped, %v", n, err)
	}
	s.write(newImage(mib, 1, solid), v.path())
	if n, err := b.MappedBytes(); err != nil || n != mib {
		t.Errorf("%d bytes mapped, %v", n, err)
	}
	if st, err := b.Status(true); err != nil || st.DataUsedBlocks != 16 || st.DataBlocks != 1024 || st.Mode != thin.ReadWrite {
		t.Errorf("%+v, %v", st, err)
	}
	// A file system on it, a linear device, and a file of that file system behind a
	// loop device: from each the pool is found.
	f := s.newFilesystem("ext4", v)
	s.wantStack(f.dir, v.path()+" in "+p.path()+" (exact)")
	file := s.blank(f.path("file"), 8*mib)
	loop := s.attach(file)
	s.wantStack(loop, file+", "+v.path()+" in "+p.path())
	linear := s.newDevice(dm.Target{Length: 8 << 11, Type: "linear", Params: loop + " 0"})
	s.wantStack(linear.path(), file+", "+v.path()+" in "+p.path())
}

func TestKernelSpaceStackThroughLinearAndPartly(t *testing.T) {
	s := newSite(t)
	p := s.newPool(poolOptions{features: "ignore_discard"})
	v := p.newVolume(1, 32*mib)
	over := s.newDevice(v.with(4*mib, 4*mib, broken)...)
	s.wantStack(over.path(), v.path()+" in "+p.path()+" (no discards)")
}

// fault 33: a pool that keeps its data in a file is found with what lies below it.
func TestKernelSpaceFault33StackBelowPool(t *testing.T) {
	s := newSite(t)
	f := s.newFilesystem("ext4", s.slice(64*mib))
	file := s.blank(f.path("pool data"), 32*mib)
	data := s.newDevice(dm.Target{Length: 32 << 11, Type: "linear", Params: s.attach(file) + " 0"})
	p := s.newPool(poolOptions{data: data})
	v := p.newVolume(1, 24*mib)
	layers := s.wantStack(v.path(), v.path()+" in "+p.path()+" (exact), "+file)
	if holes, err := layers[1].File.HoleBytes(); err != nil || holes < 31*mib {
		t.Errorf("%d bytes of holes, %v", holes, err)
	}
	stack, err := thin.FindPoolStack(p.name)
	s.must(err)
	defer stack.Close()
	if got, want := describe(stack.Layers), " in "+p.path()+" (exact), "+file; got != want {
		t.Errorf("below the pool: %s; want %s", got, want)
	}
}

func TestKernelSpaceStackOfLVM(t *testing.T) {
	s := newSite(t)
	g := s.newGroup(96 * mib)
	g.thinPool("pool", 64*mib)
	v := g.thinVolume("pool", "vol", 48*mib)
	b := s.wantStack(v, "/dev/mapper/"+g.name+"-vol in /dev/mapper/"+g.name+"-pool-tpool (exact)")[0].Pool
	if !strings.HasPrefix(b.PoolUUID, "LVM-") || b.BlockBytes != 64*kib {
		t.Errorf("%+v", b)
	}
	s.wantStack(g.linearVolume("plain", 8*mib), "")
}

// A pool that runs out of space wakes who waits for it, and so does its growth then.
func TestKernelSpaceBackingEvent(t *testing.T) {
	s := newSite(t)
	p := s.newPool(poolOptions{data: s.slice(16 * mib), features: "error_if_no_space"})
	v := p.newVolume(1, 32*mib)
	b := s.stack(v.path())[0].Pool
	wait := func() <-chan error {
		before, err := b.EventNumber()
		s.must(err)
		woken := make(chan error, 1)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		t.Cleanup(cancel)
		go func() { woken <- b.WaitEvent(ctx, before) }()
		return woken
	}
	woken := wait()
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+v.path(), "bs=1M", "count=20", "oflag=direct").CombinedOutput(); err == nil {
		t.Fatalf("20 MiB fit into a pool of 16 MiB: %s", out)
	}
	s.must(<-woken)
	if st, err := b.Status(false); err != nil || st.Mode != thin.OutOfDataSpace {
		t.Errorf("%+v, %v", st, err)
	}
}
