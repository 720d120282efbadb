package faultfs

import (
	"context"
	"path"
	"sync"
	"syscall"
	"time"
)

// Op names the operations that can be made to fail.
type Op string

// The operations.
const (
	Open            Op = "open"
	Create          Op = "create"
	Read            Op = "read"
	Write           Op = "write"
	Sync            Op = "sync" // of a file
	SyncDir         Op = "sync directory"
	Allocate        Op = "allocate" // fallocate, also to punch
	Seek            Op = "seek"     // for data or holes
	Truncate        Op = "truncate"
	SetTimes        Op = "set times"
	SetAttribute    Op = "set attribute"
	GetAttribute    Op = "get attribute"
	RemoveAttribute Op = "remove attribute"
	Rename          Op = "rename"
	Unlink          Op = "unlink"
	Statfs          Op = "statfs"
)

// Fault says which operations fail and how. The zero value of a field restricts
// nothing.
type Fault struct {
	Op   Op
	Name string // base name of the file, a pattern of path.Match
	// Only operations fail that touch a byte from FromByte up to, but not
	// including, ToByte. 0 as ToByte means any.
	FromByte, ToByte int64
	Skip             int // so many operations pass first
	Times            int // so many fail; 0 means all from then on

	Delay      time.Duration // waited first, unless the caller is interrupted
	Errno      syscall.Errno // what the caller gets, if not 0
	ShortBytes int           // of Read and Write: do so much only, if not 0
	LoseWrites bool          // of Write: say that it was done, and do nothing
}

// Injection is a fault in effect.
type Injection struct {
	fault    Fault
	parent   *faults
	seen     int
	hits     int
	released chan struct{}
	once     sync.Once
}

// Hits is how many operations it has hit.
func (i *Injection) Hits() int {
	i.parent.mu.Lock()
	defer i.parent.mu.Unlock()
	return i.hits
}

// Heal ends the fault, also for those who wait because of it.
func (i *Injection) Heal() {
	i.parent.mu.Lock()
	i.fault.Times = -1
	i.parent.mu.Unlock()
	i.once.Do(func() { close(i.released) })
}

type faults struct {
	mu  sync.Mutex
	all []*Injection
}

func (f *faults) add(fault Fault) *Injection {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := &Injection{fault: fault, parent: f, released: make(chan struct{})}
	f.all = append(f.all, i)
	return i
}

func (f *faults) release() {
	f.mu.Lock()
	all := f.all
	f.mu.Unlock()
	for _, i := range all {
		i.Heal()
	}
}

// operation is one that was asked for.
type operation struct {
	op       Op
	name     string
	off, len int64
}

// effect is what faults do to an operation.
type effect struct {
	errno     syscall.Errno
	mostBytes int // that may be done
	lose      bool
}

// strike carries out the faults that the operation meets, as far as that is to wait,
// and tells the rest.
func (f *faults) strike(ctx context.Context, o operation) effect {
	e := effect{mostBytes: int(o.len)}
	for _, i := range f.hit(o) {
		if i.fault.Delay > 0 {
			select {
			case <-time.After(i.fault.Delay):
			case <-i.released:
			case <-ctx.Done():
				return effect{errno: syscall.EINTR}
			}
		}
		if i.fault.Errno != 0 {
			return effect{errno: i.fault.Errno}
		}
		if i.fault.ShortBytes > 0 {
			e.mostBytes = min(e.mostBytes, i.fault.ShortBytes)
		}
		e.lose = e.lose || i.fault.LoseWrites
	}
	return e
}

func (f *faults) hit(o operation) (all []*Injection) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range f.all {
		if !i.fault.matches(o) || i.fault.Times < 0 {
			continue
		}
		i.seen++
		if n := i.seen - i.fault.Skip; n > 0 && (i.fault.Times == 0 || n <= i.fault.Times) {
			i.hits++
			all = append(all, i)
		}
	}
	return all
}

func (f *Fault) matches(o operation) bool {
	if f.Op != "" && f.Op != o.op {
		return false
	}
	if f.Name != "" {
		if ok, err := path.Match(f.Name, o.name); err != nil || !ok {
			return false
		}
	}
	return f.ToByte == 0 || o.off < f.ToByte && o.off+o.len > f.FromByte
}
