package thin

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"decant/loopdev"
)

const mib = 1 << 20

// pattern is n bytes that are not zero.
func pattern(n int64) []byte {
	b := loopdev.AlignedBuffer(int(n))
	for i := range b {
		b[i] = byte(i) | 1
	}
	return b
}

func write(v *DirectoryVolume, off, n int64) error {
	_, err := v.WriteAt(pattern(n), off)
	return err
}

func TestVolumeReadsWhatWasWritten(t *testing.T) {
	p := newPool(t, mib)
	mustCreate(t, p, "v", 100_001)
	v := mustOpen(t, p, "v", true)
	data := pattern(50_000)
	if _, err := v.WriteAt(data, 50_001); err != nil { // up to the end, nothing aligned
		t.Fatal(err)
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100_001)
	if n, err := v.ReadAt(got, 0); n != len(got) || (err != nil && !errors.Is(err, io.EOF)) {
		t.Fatal(n, err)
	}
	if !bytes.Equal(got, append(make([]byte, 50_001), data...)) {
		t.Error("what was read differs")
	}
}

func TestVolumeRefusesWritesOutside(t *testing.T) {
	p := newPool(t, mib)
	mustCreate(t, p, "v", 8192)
	v := mustOpen(t, p, "v", true)
	for _, c := range [][2]int64{{8192, 1}, {0, 8193}, {-1, 1}, {1 << 62, 10}, {1<<63 - 1, 10}} {
		if err := write(v, c[0], c[1]); err == nil {
			t.Errorf("wrote %d bytes at %d", c[1], c[0])
		}
	}
	if v.pool.account.inFlight != 0 {
		t.Error("a refused write is still charged")
	}
}

// fault 36: a full pool answers at the write, and what was there stays whole.
func TestFault36PoolRefusesWhatDoesNotFit(t *testing.T) {
	p := newPool(t, mib)
	mustCreate(t, p, "v", 4*mib)
	v := mustOpen(t, p, "v", true)
	for off := int64(0); off < mib; off += 128 << 10 {
		if err := write(v, off, 128<<10); err != nil {
			t.Fatalf("at %d: %v", off, err)
		}
	}
	var full *NoSpaceError
	err := write(v, mib, 4096)
	expect(t, err, unix.ENOSPC, "p/v")
	if !errors.As(err, &full) || full.NeedBytes != 4096 || full.FreeBytes != 0 || full.SizeBytes != mib {
		t.Errorf("got %+v", full)
	}
	if zero, err := v.ReadsZero(mib, 3*mib); err != nil || !zero {
		t.Errorf("something was written beyond the limit: %v", err)
	}
	if free, err := v.FreeBytes(); err != nil || free != 0 {
		t.Errorf("%d bytes are free, %v", free, err)
	}
}

func TestFullPoolTakesOverwrites(t *testing.T) {
	p := newPool(t, mib)
	mustCreate(t, p, "v", 4*mib)
	v := mustOpen(t, p, "v", true)
	if err := write(v, 0, mib); err != nil {
		t.Fatal(err)
	}
	if err := write(v, 1000, mib-2000); err != nil {
		t.Error("overwriting what is allocated:", err)
	}
	expect(t, write(v, mib-4096, 8192), unix.ENOSPC) // half of it is
}

func TestDiscardAndZeroGiveSpaceBack(t *testing.T) {
	for name, free := range map[string]func(v *DirectoryVolume) error{
		"discard": func(v *DirectoryVolume) error { return v.Discard(0, mib/2) },
		"zero":    func(v *DirectoryVolume) error { return v.Zero(0, mib/2) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, mib)
			mustCreate(t, p, "v", 4*mib)
			v := mustOpen(t, p, "v", true)
			if err := write(v, 0, mib); err != nil {
				t.Fatal(err)
			}
			expect(t, write(v, 2*mib, mib/2), unix.ENOSPC)
			if err := free(v); err != nil {
				t.Fatal(err)
			}
			if err := write(v, 2*mib, mib/2); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestZeroTakesNoSpace(t *testing.T) {
	p := newPool(t, mib)
	mustCreate(t, p, "v", 4*mib)
	v := mustOpen(t, p, "v", true)
	for _, r := range [][2]int64{{0, 4 * mib}, {1, 4*mib - 2}, {4096, 4096}, {100, 10}} {
		if err := v.Zero(r[0], r[1]); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := p.Volume("v"); err != nil || info.MappedBytes != 0 {
		t.Errorf("%d bytes are mapped, %v", info.MappedBytes, err)
	}
}

func TestDeletingAVolumeGivesSpaceBack(t *testing.T) {
	p := newPool(t, mib)
	mustCreate(t, p, "v", mib)
	v := mustOpen(t, p, "v", true)
	if err := errors.Join(write(v, 0, mib), v.Close(), p.DeleteVolume("v")); err != nil {
		t.Fatal(err)
	}
	if free, err := p.FreeBytes(); err != nil || free != mib {
		t.Errorf("%d bytes are free, %v", free, err)
	}
}

// Many writers of one handle fill a pool that is exactly large enough: none of
// them may be told that it is full, and afterwards all are.
func TestPoolAsLargeAsItsVolumesTakesThemFull(t *testing.T) {
	const pieces, pieceBytes = 512, 32 << 10
	p := newPool(t, 2*pieces*pieceBytes)
	var volumes []*DirectoryVolume
	for _, name := range []string{"v", "w"} {
		mustCreate(t, p, name, pieces*pieceBytes)
		volumes = append(volumes, mustOpen(t, p, name, true))
	}
	var writers errgroup.Group
	writers.SetLimit(8)
	for _, i := range rand.Perm(2 * pieces) {
		writers.Go(func() error { return write(volumes[i%2], int64(i/2)*pieceBytes, pieceBytes) })
	}
	if err := writers.Wait(); err != nil {
		t.Error(err)
	}
	if free, err := p.FreeBytes(); err != nil || free != 0 {
		t.Errorf("%d bytes are free, %v", free, err)
	}
}

// Many writers of one handle want twice of what there is, in small pieces, while
// others discard. The limit holds at every moment.
func TestLimitHoldsAmongGoroutines(t *testing.T) {
	const limit, pieceBytes = 4 * mib, 16 << 10
	p := newPool(t, limit)
	mustCreate(t, p, "v", 2*limit)
	v := mustOpen(t, p, "v", true)
	var refused sync.Map
	var writers errgroup.Group
	writers.SetLimit(8)
	for _, i := range rand.Perm(2 * limit / pieceBytes) {
		writers.Go(func() error {
			off := int64(i) * pieceBytes
			err := write(v, off, pieceBytes)
			if errors.Is(err, unix.ENOSPC) {
				refused.Store(i, true)
				err = nil
			} else if err == nil && i%5 == 0 {
				err = v.Discard(off, pieceBytes)
			}
			used, countErr := allocatedBytes(p.dir, p.blockBytes)
			// A block of the file system's own may come with the last write.
			if used > limit+2*p.blockBytes {
				err = errors.Join(err, fmt.Errorf("%d bytes are allocated, the limit is %d", used, limit))
			}
			return errors.Join(err, countErr)
		})
	}
	if err := writers.Wait(); err != nil {
		t.Error(err)
	}
	if _, some := firstOf(&refused); !some {
		t.Error("nothing was refused")
	}
	if err := v.Discard(0, mib); err != nil { // makes room for the check at the end
		t.Fatal(err)
	}
}

func firstOf(m *sync.Map) (key any, some bool) {
	m.Range(func(k, _ any) bool {
		key, some = k, true
		return false
	})
	return key, some
}

// fault 43: what one handle was granted, another cannot take, however late it is
// spent.
func TestFault43GrantIsKeptFromOthers(t *testing.T) {
	const limit, piece = 16 * mib, 64 << 10
	p := newPool(t, limit)
	mustCreate(t, p, "v", limit)
	mustCreate(t, p, "w", limit)
	v, w := mustOpen(t, p, "v", true), mustOpen(t, openAgain(t, p), "w", true)
	if err := write(v, 0, piece); err != nil { // takes a grant for more
		t.Fatal(err)
	}
	var err error
	for off := int64(0); err == nil; off += piece {
		err = write(w, off, piece)
	}
	expect(t, err, unix.ENOSPC)
	for off := int64(piece); off < limit/grantDivisor; off += piece {
		if err := write(v, off, piece); err != nil {
			t.Fatalf("at %d: %v, but that much was granted", off, err)
		}
	}
	// The first piece of v counted twice for w: as allocated, and in the grant.
	if used, err := allocatedBytes(p.dir, p.blockBytes); err != nil || used != limit-piece {
		t.Errorf("%d bytes are allocated, %v; want %d", used, err, limit-piece)
	}
}

// fault 43: two processes fill one pool at once. Together they stay within the
// limit, and leave next to nothing of it.
func TestFault43TwoProcessesShareTheLimit(t *testing.T) {
	const limit = 48 * mib
	p := newPool(t, limit)
	var fillers []filler
	for _, name := range []string{"v", "w"} {
		mustCreate(t, p, name, 2*limit)
		fillers = append(fillers, startFiller(t, p, name))
	}
	for _, f := range fillers {
		if err := f.start.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var sum int64
	for _, f := range fillers {
		var written int64
		if _, err := fmt.Fscanln(f.out, &written); err != nil {
			t.Fatal(err)
		}
		if err := f.cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		sum += written
	}
	if sum > limit || sum < limit-limit/8 {
		t.Errorf("they have written %d bytes, the limit is %d", sum, limit)
	}
	used, err := allocatedBytes(p.dir, p.blockBytes)
	if err != nil || used > limit {
		t.Errorf("%d bytes are allocated, %v; the limit is %d", used, err, limit)
	}
	if free, err := p.FreeBytes(); err != nil || free != limit-used {
		t.Errorf("%d bytes are free, %v; want %d, because nobody holds a grant any more", free, err, limit-used)
	}
}

// filler is a process that fills a pool once start is closed.
type filler struct {
	cmd   *exec.Cmd
	start io.Closer
	out   *bufio.Reader
}

// startFiller returns when the process is ready.
func startFiller(t *testing.T, p *DirectoryPool, volume string) filler {
	t.Helper()
	f := filler{cmd: child(p, "fill", volume)}
	stdin, err := f.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.start, f.out = stdin, bufio.NewReader(stdout)
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := f.out.ReadString('\n'); line != "ready\n" {
		t.Fatal(line, err)
	}
	return f
}

// fault 63: a killed process takes its grant and its locks with it.
func TestFault63GrantOfAKilledProcessReturns(t *testing.T) {
	const limit = 64 * mib
	p := newPool(t, limit)
	mustCreate(t, p, "v", limit)
	holder := child(p, "hold", "v")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = holder.Process.Kill() // if the test has failed before it did
		_ = holder.Wait()         // says that it was killed
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatal(line, err)
	}
	if free, err := p.FreeBytes(); err != nil || free > limit-limit/grantDivisor {
		t.Errorf("%d bytes are free, %v; the other process should have been granted %d", free, err, limit/grantDivisor)
	}
	who := fmt.Sprintf("process %d", holder.Process.Pid)
	expect(t, p.DeleteVolume("v"), ErrInUse, who)
	_, err = p.OpenVolume("v", false)
	expect(t, err, ErrInUse, who)
	expect(t, p.registry.Forget("p"), ErrInUse)
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait() // says that it was killed
	if free, err := p.FreeBytes(); err != nil || free != limit-p.blockBytes {
		t.Errorf("%d bytes are free, %v; want all but a block", free, err)
	}
	if err := p.DeleteVolume("v"); err != nil {
		t.Error(err)
	}
}

func TestFlushGivesTheGrantBack(t *testing.T) {
	const limit = 64 * mib
	p := newPool(t, limit)
	mustCreate(t, p, "v", limit)
	v := mustOpen(t, p, "v", true)
	other := openAgain(t, p)
	if err := write(v, 0, 4096); err != nil {
		t.Fatal(err)
	}
	free, err := other.FreeBytes()
	if err != nil || free != limit-4096-limit/grantDivisor {
		t.Errorf("before the flush another handle finds %d bytes free, %v", free, err)
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	if free, err = other.FreeBytes(); err != nil || free != limit-4096 {
		t.Errorf("after the flush another handle finds %d bytes free, %v; want %d", free, err, limit-4096)
	}
}

func TestFreeBytesIsBoundedByTheFileSystem(t *testing.T) {
	p := newPool(t, 1<<60)
	var stat unix.Statfs_t
	if err := unix.Statfs(p.dir, &stat); err != nil {
		t.Fatal(err)
	}
	if free, err := p.FreeBytes(); err != nil || free <= 0 || free > int64(stat.Blocks)*stat.Frsize {
		t.Errorf("%d bytes are free, %v", free, err)
	}
}

func TestOpenVolumeExcludes(t *testing.T) {
	for name, c := range map[string]struct {
		first, second bool
		want          error
	}{
		"shared and shared":       {false, false, nil},
		"shared and exclusive":    {false, true, ErrInUse},
		"exclusive and shared":    {true, false, ErrInUse},
		"exclusive and exclusive": {true, true, ErrInUse},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, mib)
			mustCreate(t, p, "v", mib)
			first := mustOpen(t, p, "v", c.first)
			second, err := openAgain(t, p).OpenVolume("v", c.second)
			if c.want != nil {
				expect(t, err, c.want, "p/v", fmt.Sprintf("process %d", os.Getpid()))
			} else if err := errors.Join(err, second.Close()); err != nil {
				t.Error(err)
			}
			expect(t, openAgain(t, p).DeleteVolume("v"), ErrInUse, "p/v", fmt.Sprintf("process %d", os.Getpid()))
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			mustOpen(t, p, "v", true)
		})
	}
}

// fault 3 and fault 4: the file of a volume was replaced.
func TestOpenVolumeRefusesAnotherFile(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"a symbolic link": func(path string) error { return os.Symlink("/etc/passwd", path) },
		"a fifo":          func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a directory":     func(path string) error { return os.Mkdir(path, 0o700) },
		"another size":    func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			p := makeSpare(t)
			defer func() {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}()
			mustCreate(t, p, "v", mib)
			if err := errors.Join(os.Remove(p.volumePath("v")), replace(p.volumePath("v"))); err != nil {
				t.Fatal(err)
			}
			_, err := p.OpenVolume("v", true)
			expect(t, err, ErrForeign, "p/v", p.volumePath("v"))
			if !strings.Contains(name, "size") {
				expect(t, p.DeleteVolume("v"), ErrForeign)
			}
		})
	}
}

func TestDeleteVolumeSeesUsersThatTakeNoLock(t *testing.T) {
	p := newPool(t, mib)
	mustCreate(t, p, "v", mib)
	loop, err := exec.Command("losetup", "--find", "--show", p.volumePath("v")).Output()
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(string(loop))
	err = p.DeleteVolume("v")
	if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
		t.Fatal(string(out), err)
	}
	expect(t, err, ErrInUse, "p/v", device)

	reader := exec.Command("sleep", "60")
	if reader.Stdin, err = os.Open(p.volumePath("v")); err != nil {
		t.Fatal(err)
	}
	err = errors.Join(reader.Start(), reader.Stdin.(*os.File).Close())
	if err != nil {
		t.Fatal(err)
	}
	err = p.DeleteVolume("v")
	_ = reader.Process.Kill() // it runs, because nobody else knows it
	_ = reader.Wait()         // says that it was killed
	expect(t, err, ErrInUse, "p/v", fmt.Sprint(reader.Process.Pid))
	if err := p.DeleteVolume("v"); err != nil {
		t.Error(err)
	}
}

func TestCloseTwiceCountsOnce(t *testing.T) {
	p := newPool(t, mib)
	mustCreate(t, p, "v", mib)
	v := mustOpen(t, p, "v", true)
	if err := errors.Join(v.Close(), v.Close()); err != nil {
		t.Error(err)
	}
	if p.openVolumes != 0 {
		t.Errorf("%d volumes count as open", p.openVolumes)
	}
}
