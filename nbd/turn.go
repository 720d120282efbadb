package nbd

import (
	"sync"
	"sync/atomic"
	"time"
)

// Who reads, and who works: a connection has up to Limits.Depth workers. Exactly one
// of them has the turn to read. Having read a request it can
//
//   - carry it out and keep the turn: no other goroutine has to wake up, which is what
//     requests of a few microseconds cost otherwise. If the request turns out to be
//     slow, the watch gives the turn to somebody else.
//   - or pass the turn first, if the request is expected to be slow.
//
// So a request that hangs never keeps others of its connection from being read.

// worker is a goroutine of a connection.
type worker struct {
	turn  chan struct{} // gets the turn; closed when there are no more turns
	reply reply
}

// crew is the workers of a connection.
type crew struct {
	depth int           // how many there may be
	work  func(*worker) // the life of one that begins with the turn

	mu     sync.Mutex
	idle   []*worker // the one that became idle last is at the end, and is woken first
	count  int
	vacant bool // everybody is at work: the first to be done gets the turn
	ended  bool

	all sync.WaitGroup
}

// start adds a worker that has the turn.
func (k *crew) start() {
	k.count++
	k.all.Go(func() { k.work(&worker{turn: make(chan struct{}, 1)}) })
}

// pass gives the turn to somebody else; who calls it has it, or acts for who has it.
func (k *crew) pass() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := len(k.idle); n > 0 {
		k.idle[n-1].turn <- struct{}{}
		k.idle = k.idle[:n-1]
	} else if k.count < k.depth {
		k.start()
	} else {
		k.vacant = true
	}
}

// wait waits for the turn. It is false if there are no more turns.
func (k *crew) wait(w *worker) bool {
	k.mu.Lock()
	if k.ended || k.vacant {
		got := !k.ended
		k.vacant = false
		k.mu.Unlock()
		return got
	}
	k.idle = append(k.idle, w)
	k.mu.Unlock()
	_, got := <-w.turn
	return got
}

// end is called by who has the turn, and there is none any more.
func (k *crew) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	for _, w := range k.idle {
		close(w.turn)
	}
	k.idle = nil
}

// watchPeriod is after which time a request is slow. It takes up to twice as long
// until that is noticed.
const watchPeriod = time.Millisecond

// watch looks after requests that are carried out by who has the turn. While there
// are any it looks once in each period; starting a timer for each request would cost
// more than many requests do.
type watch struct {
	// state is a number that each beginning and each end of such a request makes one
	// larger: odd while one is running.
	state   atomic.Uint64
	seen    atomic.Uint64 // at the last look
	ticking atomic.Bool
	timer   *time.Timer
	slow    func() // gets the turn
}

func newWatch(slow func()) *watch {
	w := &watch{slow: slow}
	w.timer = time.AfterFunc(time.Hour, w.look)
	w.timer.Stop()
	return w
}

// begin is called by who has the turn.
func (w *watch) begin() uint64 {
	n := w.state.Add(1)
	if !w.ticking.Load() && w.ticking.CompareAndSwap(false, true) {
		w.timer.Reset(watchPeriod)
	}
	return n
}

// end says whether the caller still has the turn.
func (w *watch) end(n uint64) bool { return w.state.CompareAndSwap(n, n+1) }

func (w *watch) look() {
	s := w.state.Load()
	if w.seen.Swap(s) != s {
		w.timer.Reset(watchPeriod)
		return
	}
	if s%2 == 1 { // the same request as a period ago
		if w.state.CompareAndSwap(s, s+1) {
			w.slow()
		}
		w.timer.Reset(watchPeriod)
		return
	}
	w.ticking.Store(false)
	if w.state.Load() != s && w.ticking.CompareAndSwap(false, true) {
		w.timer.Reset(watchPeriod)
	}
}

// pace is the average time that the last requests of a kind took.
type pace struct{ nanoseconds atomic.Int64 }

func (p *pace) note(d time.Duration) {
	// Two who note at once lose one of the values, which an average can bear.
	old := p.nanoseconds.Load()
	p.nanoseconds.Store(old + (min(d, time.Second).Nanoseconds()-old)/8)
}

func (p *pace) average() time.Duration { return time.Duration(p.nanoseconds.Load()) }
