package service

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/nbd"
)

const unitBytes = 4 * kib

// remoteDisk is what an NBD server serves: a disk with a volatile cache, in units that are
// allocated or holes.
type remoteDisk struct {
	mu            sync.Mutex
	data, durable []byte // what reads show, and what a restart leaves
	holes, kept   []bool // of the units, likewise
	bad           func(off int64) bool
	scrambles     bool            // what was discarded reads as something else than zeros
	before        func(op string) // called before each change
	flushed       func() error    // called by each flush, and an error is the result
	readBytes     int64
	changes       []string
}

// newRemoteDisk has the content, and holes where that is zeros.
func newRemoteDisk(content []byte) *remoteDisk {
	d := &remoteDisk{data: bytes.Clone(content), holes: make([]bool, (len(content)+unitBytes-1)/unitBytes)}
	for i := range d.holes {
		d.holes[i] = allZeros(d.unit(i))
	}
	d.persist()
	return d
}

func (d *remoteDisk) unit(i int) []byte {
	return d.data[i*unitBytes : min(len(d.data), (i+1)*unitBytes)]
}

func (d *remoteDisk) persist() { d.durable, d.kept = bytes.Clone(d.data), slices.Clone(d.holes) }

// lose is the power cut of the server.
func (d *remoteDisk) lose() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.data, d.holes = bytes.Clone(d.durable), slices.Clone(d.kept)
}

func (d *remoteDisk) Bytes() int64 { return int64(len(d.data)) }

func (d *remoteDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bad != nil && d.bad(off) {
		return 0, unix.EIO
	}
	d.readBytes += int64(len(p))
	return copy(p, d.data[off:]), nil
}

func (d *remoteDisk) change(op string, off int64, p []byte) error {
	if d.before != nil {
		d.before(op)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changes = append(d.changes, op)
	copy(d.data[off:], p)
	for i := off / unitBytes; i*unitBytes < off+int64(len(p)); i++ {
		d.holes[i] = op == "discard" && allZeros(d.unit(int(i)))
	}
	return nil
}

func (d *remoteDisk) WriteAt(p []byte, off int64) (int, error) {
	return len(p), d.change("write", off, p)
}
func (d *remoteDisk) Zero(off, n int64) error { return d.change("zero", off, make([]byte, n)) }
func (d *remoteDisk) Discard(off, n int64) error {
	p := make([]byte, n)
	for i := range p {
		if d.scrambles {
			p[i] = 0xa5
		}
	}
	return d.change("discard", off, p)
}

func (d *remoteDisk) Flush() error {
	if d.flushed != nil {
		if err := d.flushed(); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.persist()
	return nil
}

func (d *remoteDisk) Extents(off, n int64) ([]nbd.Extent, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []nbd.Extent
	for end := off + n; off < end; {
		i := off / unitBytes
		next := min(end, (i+1)*unitBytes)
		all = append(all, nbd.Extent{Bytes: next - off, Hole: d.holes[i], Zero: d.holes[i]})
		off = next
	}
	return all, nil
}

// allocated is how many bytes are no hole, now or after a restart.
func (d *remoteDisk) allocated() (now, durable int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.holes {
		if !d.holes[i] {
			now += unitBytes
		}
		if !d.kept[i] {
			durable += unitBytes
		}
	}
	return now, durable
}

func (d *remoteDisk) content() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.data)
}

// changed says whether the disk was changed in any way.
func (d *remoteDisk) changed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.changes) > 0
}

// remote is a server on a socket of the site.
type remote struct {
	*site
	stop  context.CancelFunc
	ended chan struct{}
}

// serve serves an export as "disk".
func (s *site) serve(e nbd.Export) *remote {
	s.Helper()
	e.Name = "disk"
	server, err := nbd.NewServer(nbd.Config{Exports: []nbd.Export{e}})
	s.must(err)
	socket, err := nbd.ListenUnix(s.path("socket"))
	s.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	r := &remote{s, cancel, make(chan struct{})}
	go func() {
		_ = server.Serve(ctx, socket) // an error concerns clients that were cut off
		close(r.ended)
	}()
	s.Cleanup(r.end)
	return r
}

func (r *remote) end() {
	r.stop()
	<-r.ended
}

func (s *site) uri() string { return "nbd+unix:///disk?socket=" + s.path("socket") }

// remoteSite is a site with a server that serves n bytes.
func remoteSite(t *testing.T, n int) (*site, *remoteDisk, []byte) {
	t.Helper()
	s := newSite(t)
	s.nbdOptions = nbd.Options{DialTime: 5 * time.Second, TotalTime: 5 * time.Second}
	content := randomBytes(n)
	clear(content[n/4 : n/2])
	return s, newRemoteDisk(content), content
}

func exportOf(d *remoteDisk) nbd.Export { return nbd.Export{Device: d} }
