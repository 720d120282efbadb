//go:build testkernel

package thin

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/loopdev"
)

const kib = 1 << 10

// mapperSite is a registry, and disks for two pools, which are blank.
type mapperSite struct {
	t                            *testing.T
	control                      *dm.Control
	registry                     Registry
	metadata, data               string
	otherMetadata, otherDataDisk string
}

// newMapperSite blanks the disks. After the test no device of a pool is left.
func newMapperSite(t *testing.T) *mapperSite {
	t.Helper()
	s := newMapperSiteAsFound(t)
	for _, disk := range []string{s.metadata, s.data, s.otherMetadata, s.otherDataDisk} {
		blank(t, disk)
	}
	return s
}

// newMapperSiteAsFound leaves the disks as they are.
func newMapperSiteAsFound(t *testing.T) *mapperSite {
	t.Helper()
	disks := strings.Fields(os.Getenv("DECANT_TEST_DISKS"))
	if len(disks) < 4 {
		t.Fatalf("four disks are needed, there are %v", disks)
	}
	control, err := dm.Open()
	must(t, err)
	s := &mapperSite{
		t: t, control: control, registry: NewRegistry(filepath.Join(t.TempDir(), "state")),
		metadata: disks[0], data: disks[1], otherMetadata: disks[2], otherDataDisk: disks[3],
	}
	t.Cleanup(func() {
		s.removeAll()
		must(t, control.Close())
	})
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// blank makes a disk of zeros.
func blank(t *testing.T, disk string) {
	t.Helper()
	d, err := loopdev.Open(disk, loopdev.Options{Write: true, Exclusive: true})
	must(t, err)
	must(t, errors.Join(d.Discard(0, d.Bytes()), d.Close())) // it punches the file behind
}

// removeAll takes all devices of this program away, as a reboot does.
func (s *mapperSite) removeAll() {
	s.t.Helper()
	for _, prefix := range []string{peekUUIDPrefix, volumeUUIDPrefix, catalogUUIDPrefix, probeUUIDPrefix + "catalog", poolUUIDPrefix, probeUUIDPrefix} {
		infos, err := ours(s.control, prefix)
		must(s.t, err)
		for _, info := range infos {
			if info.Suspended {
				must(s.t, s.control.Resume(info.Name))
			}
			must(s.t, stop(s.control, info.Name))
		}
	}
}

func (s *mapperSite) options() MapperOptions {
	return MapperOptions{Data: s.data, Metadata: s.metadata}
}

// newPool makes a pool. It is closed after the test.
func (s *mapperSite) newPool(name string) *MapperPool {
	s.t.Helper()
	return s.keep(CreateMapper(s.registry, name, s.options()))
}

func (s *mapperSite) newOtherPool(name string) *MapperPool {
	s.t.Helper()
	return s.keep(CreateMapper(s.registry, name, MapperOptions{Data: s.otherDataDisk, Metadata: s.otherMetadata}))
}

// open opens the pool once more, as another process would.
func (s *mapperSite) open(name string) *MapperPool {
	s.t.Helper()
	p, err := s.registry.Open(name)
	must(s.t, err)
	return s.keep(p.(*MapperPool), nil)
}

// keep closes the handle after the test, if the test has not.
func (s *mapperSite) keep(p *MapperPool, err error) *MapperPool {
	s.t.Helper()
	must(s.t, err)
	s.t.Cleanup(func() {
		if err := p.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			s.t.Error(err)
		}
	})
	return p
}

// send sends a message to the pool, as another program would.
func (s *mapperSite) send(p *MapperPool, format string, args ...any) {
	s.t.Helper()
	_, err := s.control.Message(p.pool.Name, 0, fmt.Sprintf(format, args...))
	must(s.t, err)
}

func (s *mapperSite) status(p *MapperPool) TargetStatus {
	s.t.Helper()
	status, err := p.poolDevice().status(true)
	must(s.t, err)
	return status
}

// thinIDs are those that the pool has, as far as the catalog was ever used and a bit
// beyond.
// The caller holds the pool's lock.
func (s *mapperSite) thinIDs(p *MapperPool) []uint32 {
	s.t.Helper()
	header, err := p.catalog.header()
	must(s.t, err)
	var ids []uint32
	for id := range uint32(header.records) + 3 {
		_, found, err := p.devices.peek(p.pool, id, p.sectors(1))
		must(s.t, err)
		if found {
			ids = append(ids, id)
		}
	}
	return ids
}

// check is what must hold of a settled pool: a thin device for each volume, and none
// besides but the catalog and those of others.
func (s *mapperSite) check(p *MapperPool, foreign ...uint32) {
	s.t.Helper()
	records, err := p.records()
	must(s.t, err)
	want := append([]uint32{0}, foreign...)
	for _, r := range records {
		if r.state != Active {
			s.t.Errorf("volume %s is in state %s", r.name, r.state)
		}
		want = append(want, r.thinID)
	}
	slices.Sort(want)
	must(s.t, p.lock.with(func() error {
		if got := s.thinIDs(p); !slices.Equal(got, want) {
			s.t.Errorf("the pool has the thin ids %d, the catalog says %d", got, want)
		}
		return nil
	}))
	infos, err := p.devices.volumes()
	must(s.t, err)
	if len(infos) > len(records) {
		s.t.Errorf("%d devices of %d volumes", len(infos), len(records))
	}
}

func mustCreateVolume(t *testing.T, p Pool, name string, size int64) VolumeInfo {
	t.Helper()
	info, err := p.CreateVolume(name, size, nil)
	must(t, err)
	return info
}

func mustOpenVolume(t *testing.T, p Pool, name string) *MapperVolume {
	t.Helper()
	v, err := p.OpenVolume(name, true)
	must(t, err)
	t.Cleanup(func() { must(t, v.Close()) })
	return v.(*MapperVolume)
}

// randomBytes is bytes that are not zero and differ from seed to seed.
func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := loopdev.AlignedBuffer(n)
	for i := range b {
		b[i] = byte(r.IntN(255)) + 1
	}
	return b
}

func mustWrite(t *testing.T, v Volume, off int64, b []byte) {
	t.Helper()
	if n, err := v.WriteAt(b, off); err != nil || n != len(b) {
		t.Fatalf("write of %d bytes at %d: %d, %v", len(b), off, n, err)
	}
}

func wantBytes(t *testing.T, v Volume, off int64, want []byte) {
	t.Helper()
	got := loopdev.AlignedBuffer(len(want))
	if _, err := v.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes at %d are not what was written: %v", len(want), off, err)
	}
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// errCrash ends a change at a crash point.
var errCrash = errors.New("crash")

// crashAt runs a change that ends at the step. What the change would undo is not
// undone, and what the process would hold is given back.
func crashAt(t *testing.T, p *MapperPool, step string, change func() error) {
	t.Helper()
	p.crashPoint = func(s string) {
		if s == step {
			panic(errCrash)
		}
	}
	crashed := func() (crashed bool) {
		defer func() {
			if r := recover(); r != nil {
				if r != errCrash { //nolint:errorlint // it is this very value
					panic(r)
				}
				crashed = true
			}
		}()
		if err := change(); err != nil {
			t.Errorf("before the step %q: %v", step, err)
		}
		return false
	}()
	if !crashed {
		t.Fatalf("there is no step %q", step)
	}
	p.crashPoint = func(string) {}
}

func errnoIs(t *testing.T, err error, want unix.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}
