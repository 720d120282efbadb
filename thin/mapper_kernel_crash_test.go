//go:build testkernel

package thin

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// fault 63: a change that ends at any step is settled when the pool is opened: there is
// the whole volume or none.
func TestKernelMapperFault63CrashInCreate(t *testing.T) {
	for step, created := range map[string]bool{
		"counted record": false, "recorded creating": false, "created thin device": false, "activated": false, "set transaction id": false,
	} {
		t.Run(strings.ReplaceAll(step, " ", "_"), func(t *testing.T) {
			s := newMapperSite(t)
			p := s.newPool("p")
			mustCreateVolume(t, p, "other", mib)
			crashAt(t, p, step, func() error {
				_, err := p.CreateVolume("v", mib, []byte("blob"))
				return err
			})
			s.checkSettled(p, created)
		})
	}
}

func TestKernelMapperFault63CrashInDelete(t *testing.T) {
	for _, step := range []string{"recorded deleting", "deleted thin device", "set transaction id"} {
		t.Run(strings.ReplaceAll(step, " ", "_"), func(t *testing.T) {
			s := newMapperSite(t)
			p := s.newPool("p")
			mustCreateVolume(t, p, "v", mib)
			mustCreateVolume(t, p, "other", mib)
			crashAt(t, p, step, func() error { return p.DeleteVolume("v") })
			s.checkSettled(p, false)
		})
	}
}

// What a crash left and somebody has opened does not keep the pool from being used; it
// goes when it can.
func TestKernelMapperLeftoverInUse(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "other", mib)
	crashAt(t, p, "activated", func() error { _, err := p.CreateVolume("v", mib, nil); return err })
	must(t, p.Close())
	f, err := os.Open("/dev/mapper/p-v")
	must(t, err)
	p = s.open("p")
	if _, err := p.OpenVolume("v", false); !errors.Is(err, ErrNotFound) {
		t.Errorf("half a volume was opened: %v", err)
	}
	_, err = p.CreateVolume("v", mib, nil)
	expect(t, err, ErrExists, "/dev/mapper/p-v")
	mustCreateVolume(t, p, "w", mib)
	must(t, errors.Join(f.Close(), p.Close()))
	p = s.open("p")
	s.check(p)
	mustCreateVolume(t, p, "v", mib)
	s.check(p)
}

// fault 67: a crash while a crash is settled.
func TestKernelMapperFault67CrashInSettle(t *testing.T) {
	for _, change := range []string{"create", "delete"} {
		t.Run(change, func(t *testing.T) {
			s := newMapperSite(t)
			p := s.newPool("p")
			mustCreateVolume(t, p, "other", mib)
			if change == "create" {
				crashAt(t, p, "created thin device", func() error { _, err := p.CreateVolume("v", mib, nil); return err })
			} else {
				mustCreateVolume(t, p, "v", mib)
				crashAt(t, p, "recorded deleting", func() error { return p.DeleteVolume("v") })
			}
			crashAt(t, p, "settled thin device", func() error { return p.DeleteVolume("other") })
			s.checkSettled(p, false)
		})
	}
}

// checkSettled opens the pool again, after a reboot and without one, and looks for the
// volume v.
func (s *mapperSite) checkSettled(p *MapperPool, there bool) {
	s.t.Helper()
	must(s.t, p.Close())
	for _, reboot := range []bool{false, true} {
		if reboot {
			s.removeAll()
		}
		p := s.open("p")
		s.check(p)
		if _, err := p.Volume("v"); (err == nil) != there || !there && !errors.Is(err, ErrNotFound) {
			s.t.Errorf("the volume: %v", err)
		}
		if _, err := p.Volume("other"); err != nil {
			s.t.Errorf("another volume: %v", err)
		}
		must(s.t, p.Close())
	}
	p = s.open("p")
	if info := mustCreateVolume(s.t, p, "v", mib); info.ID < 3 {
		s.t.Errorf("the id %d is used a second time", info.ID)
	}
	s.check(p)
}

// fault 63: a crash while a pool is made leaves one that can be opened, or none, and
// the same command makes it; with and without a reboot.
func TestKernelMapperFault63CrashInMakingAPool(t *testing.T) {
	for step, whole := range map[string]bool{
		"claimed devices": false, "formatted metadata": false, "created catalog device": false, "wrote catalog": true, "made pool": true,
	} {
		for _, reboot := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", strings.ReplaceAll(step, " ", "_"), reboot), func(t *testing.T) {
				s := newMapperSite(t)
				s.crashInMaking(step)
				if reboot {
					s.removeAll()
				}
				if !whole {
					s.check(s.newPool("p"))
					return
				}
				_, err := CreateMapper(s.registry, "p", s.options())
				if reboot || step == "wrote catalog" {
					expect(t, err, ErrExists, "thinctl pool open")
				} else {
					expect(t, err, ErrExists, "/dev/mapper/p") // it is active
				}
				p := s.keep(s.registry.OpenMapper(s.data, s.metadata))
				if got := s.status(p).TransactionID; got != 1 {
					t.Errorf("transaction %d", got)
				}
				s.check(p)
			})
		}
	}
}

func (s *mapperSite) crashInMaking(step string) {
	s.t.Helper()
	o := s.options()
	o.crashPoint = func(at string) {
		if at == step {
			panic(errCrash)
		}
	}
	defer func() {
		if recover() != errCrash { //nolint:errorlint // it is this very value
			s.t.Errorf("there is no step %q", step)
		}
	}()
	_, err := CreateMapper(s.registry, "p", o)
	s.t.Errorf("it ended with %v", err)
}

// fault 63: a pool whose destruction a crash has ended is gone when it is opened.
func TestKernelMapperFault63CrashInDestroy(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	crashAt(t, p, "recorded deleting pool", p.Destroy)
	must(t, p.Close())
	_, err := s.registry.Open("p")
	expect(t, err, ErrNotFound, "it is gone now")
	if names, err := s.registry.List(); err != nil || len(names) != 0 {
		t.Errorf("registered are %q, %v", names, err)
	}
	if left, err := ours(s.control, "DECANT-"); err != nil || len(left) != 0 {
		t.Errorf("devices are left: %+v, %v", left, err)
	}
	s.newPool("p")
}
