//go:build testkernel

package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const kernelDeviceBytes = 32 << 20

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func wantSame(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%.100v, want %.100v", got, want)
	}
}

// attach makes a device a block device of the kernel until the test ends.
func attach(t *testing.T, d Device, k KernelDevice) (index int, stop func()) {
	t.Helper()
	s := kernelServer(t, d)
	k.Index, k.Bytes = -1, d.Bytes()
	ctx, cancel := context.WithCancel(context.Background())
	l, err := s.AttachKernel(ctx, k, "")
	must(t, err)
	t.Cleanup(func() {
		DisconnectKernel(l.Index) //nolint:errcheck // the test may have done it
		cancel()
		<-l.Ended()
	})
	return l.Index, func() { cancel(); <-l.Ended() }
}

func kernelServer(t *testing.T, d Device) *Server {
	t.Helper()
	s, err := NewServer(Config{Exports: []Export{{Device: d, MinBlockBytes: 512}}})
	must(t, err)
	return s
}

func openDirect(t *testing.T, index int) *os.File {
	t.Helper()
	f, err := os.OpenFile(KernelDevicePath(index), os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() }) //nolint:errcheck // the test may have done it
	return f
}

// alignedBlock is memory for direct I/O.
func alignedBlock(t *testing.T, n int, fill byte) []byte {
	t.Helper()
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Munmap(p)) })
	for i := range p {
		p[i] = fill
	}
	return p
}

func discard(f *os.File, off, n uint64) error {
	trim := [2]uint64{off, n}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&trim))); errno != 0 {
		return errno
	}
	return nil
}

func TestKernelClientReadsWritesFlushesAndTrims(t *testing.T) {
	d := randomMemory(kernelDeviceBytes)
	index, _ := attach(t, d, KernelDevice{BlockBytes: 4096, Backend: "decant-test", DeadTime: time.Minute})
	f := openDirect(t, index)

	got := alignedBlock(t, 1<<20, 0)
	_, err := f.ReadAt(got, 5<<20)
	must(t, err)
	wantSame(t, got, d.content(5<<20, 1<<20))

	_, err = f.WriteAt(alignedBlock(t, 8192, 0x5a), 4096)
	must(t, err)
	wantSame(t, d.content(4096, 8192), bytes.Repeat([]byte{0x5a}, 8192))
	must(t, f.Sync())
	wantSame(t, d.seen()[len(d.seen())-1].op, "flush")

	must(t, discard(f, 1<<20, 4<<20))
	last := d.seen()[len(d.seen())-1]
	wantSame(t, last, access{"discard", 1 << 20, 4 << 20})

	sector, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	must(t, err)
	wantSame(t, sector, 4096)
	size, err := f.Seek(0, 2)
	must(t, err)
	wantSame(t, size, int64(kernelDeviceBytes))
}

func TestKernelUsesTellWhoseDeviceItIs(t *testing.T) {
	runtime.LockOSThread() // the kernel notes the thread
	defer runtime.UnlockOSThread()
	index, _ := attach(t, newMemory(kernelDeviceBytes), KernelDevice{BlockBytes: 512, Backend: "decant-whose"})
	uses, err := KernelUses()
	must(t, err)
	if want := (KernelUse{Index: index, PID: unix.Gettid(), Backend: "decant-whose"}); !slices.Contains(uses, want) {
		t.Errorf("%+v lacks %+v", uses, want)
	}
	connected, err := KernelConnected(index)
	must(t, err)
	wantSame(t, connected, true)

	must(t, DisconnectKernel(index))
	connected, err = KernelConnected(index)
	must(t, err)
	wantSame(t, connected, false)
	uses, err = KernelUses()
	must(t, err)
	for _, u := range uses {
		if u.Backend == "decant-whose" {
			t.Errorf("%+v is still there", u)
		}
	}
}

func TestKernelRefusalsKeepTheErrno(t *testing.T) {
	index, _ := attach(t, newMemory(kernelDeviceBytes), KernelDevice{BlockBytes: 512, Backend: "decant-a"})
	s := kernelServer(t, newMemory(kernelDeviceBytes))
	_, err := s.AttachKernel(t.Context(), KernelDevice{Index: index, Bytes: kernelDeviceBytes, BlockBytes: 512}, "")
	var refused *KernelError
	if !errors.As(err, &refused) {
		t.Fatalf("%v is no KernelError", err)
	}
	wantError(t, err, unix.EBUSY)
	wantSame(t, refused.Index, index)

	_, err = HoldKernel(t.Context(), KernelDevice{Index: index, Backend: "decant-b"})
	wantError(t, err, unix.EINVAL) // somebody else's
	wantError(t, DisconnectKernel(4711), unix.EINVAL)
	_, err = s.AttachKernel(t.Context(), KernelDevice{Index: -1, Bytes: kernelDeviceBytes, BlockBytes: 1000}, "")
	wantError(t, err, unix.EINVAL)
}

func TestKernelDoesNotTakeASecondConnection(t *testing.T) {
	d := newMemory(kernelDeviceBytes)
	index, _ := attach(t, d, KernelDevice{BlockBytes: 512, Backend: "decant-c"})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := HoldKernel(ctx, KernelDevice{Index: index, Backend: "decant-c"})
	wantError(t, err, ErrNotTaken)
}

// A server that stops leaves the device, whose I/O waits for the next server.
func TestKernelWaitsForTheNextServer(t *testing.T) {
	d := newMemory(kernelDeviceBytes)
	k := KernelDevice{BlockBytes: 512, Backend: "decant-d", DeadTime: time.Minute, AskTime: time.Second}
	index, stop := attach(t, d, k)
	f := openDirect(t, index)
	stop()
	ended := make(chan error, 1)
	block := alignedBlock(t, 4096, 0x77)
	go func() {
		_, err := f.WriteAt(block, 8192)
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("a write ended without a server: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	// A connection that nobody serves yet is enough to make it wait on.
	k.Index = index
	held, err := HoldKernel(t.Context(), k)
	must(t, err)
	held.Close()
	serving, cancel := context.WithCancel(context.Background())
	l, err := HoldKernel(t.Context(), k)
	must(t, err)
	l.Serve(serving, kernelServer(t, d), "")
	t.Cleanup(func() { cancel(); <-l.Ended() })
	must(t, <-ended)
	wantSame(t, d.content(8192, 4096), bytes.Repeat([]byte{0x77}, 4096))
}

// Without anybody who comes back, I/O fails after DeadTime; somebody may still come.
func TestKernelGivesUpAfterDeadTime(t *testing.T) {
	d := newMemory(kernelDeviceBytes)
	k := KernelDevice{BlockBytes: 512, Backend: "decant-e", DeadTime: time.Second}
	index, stop := attach(t, d, k)
	f := openDirect(t, index)
	stop()
	block := alignedBlock(t, 4096, 1)
	_, err := f.WriteAt(block, 0)
	wantError(t, err, unix.EIO)

	serving, cancel := context.WithCancel(context.Background())
	k.Index = index
	l, err := HoldKernel(t.Context(), k)
	must(t, err)
	l.Serve(serving, kernelServer(t, d), "")
	t.Cleanup(func() { cancel(); <-l.Ended() })
	_, err = f.WriteAt(block, 0)
	must(t, err)
}

// stuckVariable makes this program a server whose device never answers a write.
const stuckVariable = "DECANT_TEST_STUCK_SERVER"

type stuck struct{ *memory }

func (s stuck) WriteAt(p []byte, off int64) (int, error) {
	fmt.Println("write")
	select {}
}

func TestKernelStuckServer(t *testing.T) {
	if os.Getenv(stuckVariable) == "" {
		return // it is a part of the next test
	}
	d := stuck{newMemory(kernelDeviceBytes)}
	l, err := kernelServer(t, d).AttachKernel(context.Background(), KernelDevice{
		Index: -1, Bytes: d.Bytes(), BlockBytes: 512, Backend: "decant-stuck", DeadTime: time.Minute, AskTime: time.Second,
	}, "")
	must(t, err)
	fmt.Printf("index %d\n", l.Index)
	<-l.Ended()
}

// fault 84: what a server that was killed has received and not answered is sent to the
// next one.
func TestKernelFault84SendsUnansweredWritesAgain(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestKernelStuckServer$")
	cmd.Env = append(os.Environ(), stuckVariable+"=1")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() }) //nolint:errcheck // it is dead by then unless the test failed
	var index int
	_, err = fmt.Fscanf(out, "index %d\n", &index)
	must(t, err)
	t.Cleanup(func() { DisconnectKernel(index) }) //nolint:errcheck // the next line of the test may not have come

	f := openDirect(t, index)
	ended := make(chan error, 1)
	block := alignedBlock(t, 4096, 0x33)
	go func() {
		_, err := f.WriteAt(block, 4096)
		ended <- err
	}()
	var word string
	_, err = fmt.Fscanln(out, &word)
	must(t, err)
	wantSame(t, strings.TrimSpace(word), "write")
	must(t, cmd.Process.Kill())
	cmd.Wait() //nolint:errcheck // killed

	d := newMemory(kernelDeviceBytes)
	serving, cancel := context.WithCancel(context.Background())
	start := time.Now()
	l, err := HoldKernel(t.Context(), KernelDevice{
		Index: index, Backend: "decant-stuck", DeadTime: time.Minute,
	})
	must(t, err)
	l.Serve(serving, kernelServer(t, d), "")
	t.Cleanup(func() { cancel(); <-l.Ended() })
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("the write was not sent again")
	}
	t.Logf("sent again after %v", time.Since(start))
	wantSame(t, d.content(4096, 4096), bytes.Repeat([]byte{0x33}, 4096))
	if err := DisconnectKernel(index); err != nil && !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
}
