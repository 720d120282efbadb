package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"decant/nbd"
)

const sectorBytes = 512

// disk is what a volume may hold, sector by sector: a disk with a volatile write cache.
// Each sector has the versions that it may show, the oldest first; what was flushed has
// one. Sectors are changed by one client at a time.
type disk struct {
	testing.TB
	original []byte

	mu      sync.Mutex
	sectors [][]version
	last    int64 // number of the newest version
}

// version is one content of a sector: 0 is what the image held at first, -1 zeros, any
// other number something that no other version has.
type version struct {
	number int64
	acked  bool
}

func newDisk(t testing.TB, path string) *disk {
	t.Helper()
	original, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{TB: t, original: original, sectors: make([][]version, len(original)/sectorBytes)}
	for i := range d.sectors {
		d.sectors[i] = []version{{0, true}}
	}
	return d
}

// fill makes the content of one sector in one version.
func (d *disk) fill(p []byte, sector int, number int64) {
	switch number {
	case 0:
		copy(p, d.original[sector*sectorBytes:])
	case -1:
		clear(p)
	default:
		seed := uint64(number)*0x9e3779b97f4a7c15 ^ uint64(sector)
		for i := 0; i < sectorBytes; i += 8 {
			seed ^= seed << 13
			seed ^= seed >> 7
			seed ^= seed << 17
			binary.LittleEndian.PutUint64(p[i:], seed)
		}
	}
}

// begin notes a change that is on its way, and gives the bytes of a write.
func (d *disk) begin(off, n int64, zero bool) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := make([]byte, n)
	for s := off / sectorBytes; s*sectorBytes < off+n; s++ {
		number := int64(-1)
		if !zero {
			d.last++
			number = d.last
			d.fill(p[s*sectorBytes-off:], int(s), number)
		}
		d.sectors[s] = append(d.sectors[s], version{number, false})
	}
	return p
}

// acknowledge notes that the last change of a range was answered.
func (d *disk) acknowledge(off, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := off / sectorBytes; s*sectorBytes < off+n; s++ {
		d.sectors[s][len(d.sectors[s])-1].acked = true
	}
}

// change makes a change through a client.
func (d *disk) change(c *nbd.Client, kind string, off, n int64) error {
	p := d.begin(off, n, kind != "write")
	var err error
	switch kind {
	case "write":
		_, err = c.WriteAt(p, off)
	case "zero":
		err = c.Zero(off, n)
	case "discard":
		err = c.Discard(off, n)
	}
	if err == nil {
		d.acknowledge(off, n)
	}
	return err
}

// flush flushes, by whichever client: it covers what was answered before on any of them.
func (d *disk) flush(c *nbd.Client) error {
	d.mu.Lock()
	promised := make([]int64, len(d.sectors)) // how many versions go
	for s, versions := range d.sectors {
		for i := range versions {
			if versions[i].acked {
				promised[s] = versions[i].number
			}
		}
	}
	d.mu.Unlock()
	if err := c.Flush(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for s, versions := range d.sectors {
		for i := len(versions) - 1; i > 0; i-- {
			if versions[i].acked && versions[i].number == promised[s] {
				d.sectors[s] = versions[i:]
				break
			}
		}
	}
	return nil
}

// newest is what a range shows to whoever has made its last change.
func (d *disk) newest(off, n int64) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := make([]byte, n)
	for s := off / sectorBytes; s*sectorBytes < off+n; s++ {
		versions := d.sectors[s]
		d.fill(p[s*sectorBytes-off:], int(s), versions[len(versions)-1].number)
	}
	return p
}

// settle reads everything after a crash. Every sector has to show one of its versions,
// and that is what it holds from then on.
func (d *disk) settle(r io.ReaderAt) {
	d.Helper()
	p, want := make([]byte, mib), make([]byte, sectorBytes)
	wrong := 0
	for off := int64(0); off < int64(len(d.original)); off += int64(len(p)) {
		p := p[:min(int64(len(p)), int64(len(d.original))-off)]
		if _, err := r.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			d.Fatalf("read %d bytes at %d: %v", len(p), off, err)
		}
		for at := 0; at < len(p); at += sectorBytes {
			s := (int(off) + at) / sectorBytes
			found := false
			for _, v := range d.sectors[s] {
				d.fill(want, s, v.number)
				if bytes.Equal(want, p[at:at+sectorBytes]) {
					d.sectors[s], found = []version{{v.number, true}}, true
					break
				}
			}
			if wrong++; !found && wrong < 10 {
				d.Errorf("sector %d shows %x.., which is none of its versions %v", s, p[at:at+16], d.sectors[s])
			} else if found {
				wrong--
			}
		}
	}
	if wrong > 0 {
		d.Fatalf("%d sectors are wrong", wrong)
	}
}

// wantFile fails the test unless a file or device holds what clients have seen last.
func (d *disk) wantFile(path string) {
	d.Helper()
	f, err := os.Open(path)
	if err != nil {
		d.Fatal(err)
	}
	defer f.Close()
	for s, versions := range d.sectors {
		d.sectors[s] = versions[len(versions)-1:]
	}
	d.settle(f)
}

// user is a client that changes its own sectors, and reads them back. The last quarter of
// the device is nobody's: what users touch is copied at once, and a run is to last.
type user struct {
	*disk
	client     *nbd.Client
	rng        *rand.Rand
	of, number int64 // it has every of-th run of 8 KiB
}

// work makes requests until one of them fails, or until is over.
func (u user) work(until context.Context) error {
	for until.Err() == nil {
		if err := u.one(); err != nil {
			return err
		}
	}
	return nil
}

func (u user) one() error {
	const runBytes = 8 * kib
	bytes, unit := int64(len(u.original))/4*3, max(sectorBytes, u.client.MinBlockBytes())
	half := runBytes / 2 / unit
	run := u.rng.Int64N(bytes/runBytes/u.of)*u.of + u.number
	off := run*runBytes + u.rng.Int64N(half)*unit
	n := min(unit*(1+u.rng.Int64N(half)), bytes-off)
	if u.of == 1 && u.rng.IntN(8) == 0 { // also whole regions
		off, n = run/32*32*runBytes, min(256*kib*(1+u.rng.Int64N(3)), bytes-run/32*32*runBytes)
	}
	switch u.rng.IntN(12) {
	case 0:
		return u.flush(u.client)
	case 1:
		return u.change(u.client, "zero", off, n)
	case 2, 3:
		return u.change(u.client, "discard", off, n)
	case 4, 5, 6:
		return u.check(off, n)
	}
	return u.change(u.client, "write", off, n)
}

// check reads back what is this user's.
func (u user) check(off, n int64) error {
	want, got := u.newest(off, n), make([]byte, n)
	if _, err := u.client.ReadAt(got, off); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: %d bytes at %d", errOtherBytes, n, off)
	}
	return nil
}

var errOtherBytes = errors.New("a read shows other bytes than were written")

// connect is a client that gives up when its server is gone.
func (s *site) connect(uri string) *nbd.Client {
	s.Helper()
	c, err := nbd.Dial(context.Background(), uri, nbd.Options{Connections: 1, TotalTime: 20e9})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = c.Close() }) // it may be closed already
	return c
}

// startExport begins a migration whose volume can be used, and gives the URI.
func (s *site) startExport(source, destination string, flags ...string) (*running, string) {
	s.Helper()
	r := s.startMove(source, destination, append([]string{"--export", s.exportSocket()}, flags...)...)
	return r, r.awaitExported()
}

// exportSocket is a path for the socket of this site, short enough for one.
func (s *site) exportSocket() string {
	s.Helper()
	if s.socketDir == "" {
		dir, err := os.MkdirTemp("", "s")
		if err != nil {
			s.Fatal(err)
		}
		s.Cleanup(func() { os.RemoveAll(dir) })
		s.socketDir = dir
	}
	return s.socketDir + "/s"
}

// awaitExported waits until the volume can be used.
func (r *running) awaitExported() string {
	r.site.Helper()
	return r.await("an export", func(e event) bool { return e.Event == "exported" }).Export
}
