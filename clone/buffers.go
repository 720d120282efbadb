package clone

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	pageBytes     = 4 << 10
	hugePageBytes = 2 << 20
)

// buffers lends memory for copies, as much as is in use at a time. Of 2 MiB and
// more it lies in huge pages, where the kernel has them: memory in one piece goes
// to and from a device in large requests, scattered pages in many small ones.
type buffers struct {
	bytes int64

	mu     sync.Mutex
	free   [][]byte
	mapped [][]byte // what close gives back
}

// get lends a buffer. Its content is arbitrary.
func (b *buffers) get() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if last := len(b.free) - 1; last >= 0 {
		p := b.free[last]
		b.free = b.free[:last]
		return p
	}
	if b.bytes%hugePageBytes != 0 {
		return aligned(make([]byte, b.bytes+pageBytes), pageBytes)[:b.bytes]
	}
	memory, err := unix.Mmap(-1, 0, int(b.bytes+hugePageBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil { // no worse than a heap that cannot grow, and less likely to be fatal
		return aligned(make([]byte, b.bytes+pageBytes), pageBytes)[:b.bytes]
	}
	b.mapped = append(b.mapped, memory)
	p := aligned(memory, hugePageBytes)[:b.bytes]
	_ = unix.Madvise(p, unix.MADV_HUGEPAGE) // small pages do as well, only slower
	return p
}

func (b *buffers) put(p []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = append(b.free, p)
}

// close gives mapped memory back. No buffer may be lent at that time.
func (b *buffers) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, memory := range b.mapped {
		_ = unix.Munmap(memory) // fails only for memory that is not mapped
	}
	b.free, b.mapped = nil, nil
}

// aligned is the part of p that begins at a multiple of unit. Go does not move it.
func aligned(p []byte, unit int) []byte {
	return p[-uintptr(unsafe.Pointer(unsafe.SliceData(p)))&uintptr(unit-1):]
}
