package nbd

import (
	"math/bits"
	"sync"
	"unsafe"
)

// pageBytes is the alignment of every buffer, so that a device opened with O_DIRECT
// can use it without a copy.
const pageBytes = 4096

// Buffers come in powers of two, from 4 KiB to MaxPayloadBytes.
const (
	minBufferShift = 12
	maxBufferShift = 25
)

// buffer is memory from the pools. Whoever has it gives it back once.
type buffer struct {
	all   []byte
	class int
}

// bufferPools is one pool for each size. What lies in them goes with the next garbage
// collections, so that a burst of large requests costs no memory for ever.
type bufferPools [maxBufferShift - minBufferShift + 1]sync.Pool

var pools bufferPools

// bufferClass is the pool for n bytes, which are at most MaxPayloadBytes.
func bufferClass(n int) int {
	if n <= 1<<minBufferShift {
		return 0
	}
	return bits.Len(uint(n-1)) - minBufferShift
}

// bufferBytes is how much memory a buffer for n bytes takes.
func bufferBytes(n int) int64 { return 1 << (bufferClass(n) + minBufferShift) }

func (p *bufferPools) get(n int) *buffer {
	class := bufferClass(n)
	if b, ok := p[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{all: alignedBytes(1 << (class + minBufferShift)), class: class}
}

func (p *bufferPools) put(b *buffer) { p[b.class].Put(b) }

// alignedBytes makes n bytes that begin at a multiple of pageBytes.
func alignedBytes(n int) []byte {
	// The allocator aligns such sizes by itself, but nothing says that it has to.
	b := make([]byte, n)
	if uintptr(unsafe.Pointer(&b[0]))%pageBytes == 0 {
		return b
	}
	b = make([]byte, n+pageBytes)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (pageBytes - 1))
	return b[skip : skip+n : skip+n]
}

// budget is a number of bytes that may be in use at a time. Those who wait get theirs
// in the order in which they came, so that large requests are not starved.
type budget struct {
	mu      sync.Mutex
	free    int64
	waiting []budgetWaiter
}

type budgetWaiter struct {
	bytes int64
	given chan struct{}
}

func newBudget(bytes int64) *budget { return &budget{free: bytes} }

// tryTake takes n bytes if that needs no waiting.
func (b *budget) tryTake(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) > 0 || b.free < n {
		return false
	}
	b.free -= n
	return true
}

// take waits for n bytes. They are never more than the whole budget.
func (b *budget) take(n int64) {
	b.mu.Lock()
	if len(b.waiting) == 0 && b.free >= n {
		b.free -= n
		b.mu.Unlock()
		return
	}
	w := budgetWaiter{bytes: n, given: make(chan struct{})}
	b.waiting = append(b.waiting, w)
	b.mu.Unlock()
	<-w.given
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	for len(b.waiting) > 0 && b.waiting[0].bytes <= b.free {
		b.free -= b.waiting[0].bytes
		close(b.waiting[0].given)
		b.waiting = b.waiting[1:]
	}
}
