//go:build testkernel

package inside

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// inPool makes a lower device that is a volume of a pool, whose metadata device is
// one of which the table can be exchanged.
func inPool(p **pool, metadataBelow **device) func(*site) *device {
	return func(s *site) *device {
		*metadataBelow = s.slice(4 * mib)
		*p = s.newPool(poolOptions{metadata: s.newDevice((*metadataBelow).whole((*metadataBelow).linear())...)})
		return (*p).newVolume(1, 16*mib)
	}
}

// The disk under the pool's data fails in the middle: the same as for a destination
// without a pool.
func TestKernelFaultsOfThePoolData(t *testing.T) {
	for name, test := range map[string]struct {
		kind   func(*device) kind
		flags  []string
		reason string
	}{
		"fault 46: writes fail":   {(*device).unwritable, nil, "input/output"},
		"fault 47: flushes fail":  {(*device).unflushable, nil, "flush"},
		"fault 48: writes vanish": {flakes("drop_writes"), []string{"--verify"}, "verification failed"},
	} {
		t.Run(name, func(t *testing.T) {
			var p *pool
			var below *device
			m := newMoving(t, 40, func(s *site) *device {
				below = s.slice(32 * mib)
				p = s.newPool(poolOptions{data: s.newDevice(below.whole(below.linear())...)})
				return p.newVolume(1, 16*mib)
			})
			m.flags = append(m.flags[:len(m.flags):len(m.flags)], test.flags...)
			id := m.halfway()
			p.data.exchange(below.whole(test.kind(below))...)
			m.wantReason(m.want(3, m.start().wait()), test.reason)
			m.to.remove()
			p.reopen(func() {
				p.data.exchange(below.whole(below.linear())...)
				m.do("thin_check", "--clear-needs-check-flag", p.metadata.path())
			})
			m.to.activate(m.lower.whole(m.lower.linear())...)
			m.finish(id)
		})
	}
}

// The metadata device of the pool fails in the middle: the pool takes back mappings
// of what it has acknowledged, and refuses to write. Nothing is discarded that is not
// whole on the destination once the pool is repaired.
func TestKernelFault38PoolMetadataFails(t *testing.T) {
	for name, fault := range map[string]func(*device) kind{
		"fault 38, fault 39: needs_check": flakes("error_writes"),
		"fault 38: fail":                  func(*device) kind { return broken },
	} {
		t.Run(name, func(t *testing.T) {
			var p *pool
			var below *device
			m := newMoving(t, 38, inPool(&p, &below))
			id := m.halfway()
			p.metadata.exchange(below.whole(fault(below))...)
			o := m.start().wait()
			if o.code != 3 && o.code != 4 {
				t.Fatalf("want code 3 or 4: %v", o)
			}
			if st := p.poolStatus(); st.mode == "rw" {
				t.Fatalf("the pool has not noticed: %+v", st)
			}
			m.to.remove()
			p.reopen(func() {
				p.metadata.exchange(below.whole(below.linear())...)
				m.do("thin_check", "--clear-needs-check-flag", p.metadata.path())
			})
			m.to.activate(m.lower.whole(m.lower.linear())...)
			m.finish(id)
			m.to.remove()
			p.check()
		})
	}
}

// fault 38: no metadata blocks are left.
func TestKernelFault38PoolMetadataFull(t *testing.T) {
	s := newSite(t)
	made := newImage(faultImageBytes, 39, mixed)
	s.write(made, s.path("image"))
	below := s.slice(4 * mib)
	metadata := s.newDevice(below.linear()(0, 256*kib))
	p := s.newPool(poolOptions{metadata: metadata})
	v := p.newVolume(1, 16*mib)
	others := 0
	for { // each takes a block
		if _, err := s.dm.Message(p.name, 0, fmt.Sprintf("create_thin %d", 100+others)); err != nil {
			break
		}
		others++
	}
	o := s.startMove(s.path("image"), v.path(), faultFlags...).wait()
	s.want(3, o)
	if st := p.poolStatus(); st.mode == "rw" {
		t.Fatalf("the pool has not noticed: %+v, after %v", st, o)
	}
	p.reopen(func() {
		s.do("thin_check", "--clear-needs-check-flag", metadata.path())
		metadata.exchange(below.whole(below.linear())...)
	})
	s.wantNothingLost(o.last().ID, made, s.path("image"), v.path())
	s.move(0, s.path("image"), v.path(), faultFlags...)
	s.wantWhole(v.path(), made)
	s.wantEmptied(s.path("image"))
	p.check()
}

// smallPool has room for part of the image only. grow gives it more.
func smallPool(s *site, features string) (p *pool, grow func()) {
	const smallBytes = 3 * mib
	below := s.slice(32 * mib)
	p = s.newPool(poolOptions{data: s.newDevice(below.linear()(0, smallBytes)), features: features})
	return p, func() {
		p.data.exchange(below.whole(below.linear())...)
		p.data.bytes = below.bytes
		p.s.must(p.s.dm.Load(p.name, []target{p.table()}))
		p.s.must(p.s.dm.ResumeNoFlush(p.name))
	}
}

// fault 36: the pool runs out of data blocks and says so at the write.
func TestKernelFault36PoolFull(t *testing.T) {
	var grow func()
	m := newMoving(t, 36, func(s *site) *device {
		p, more := smallPool(s, "error_if_no_space")
		grow = more
		return p.newVolume(1, 16*mib)
	})
	o := m.want(3, m.start().wait())
	m.wantReason(o, "out of space")
	m.wantNothingLost(o.last().ID, m.made, m.source, m.to.path())
	m.want(3, m.start().wait())
	grow()
	m.finish(o.last().ID)
}

// fault 35: the pool runs out of data blocks and lets writers wait. Once it has more,
// they go on, and so does the migration.
func TestKernelFault35PoolGrowsWhileWritersWait(t *testing.T) {
	s := newSite(t)
	made := newImage(faultImageBytes, 35, mixed)
	s.write(made, s.path("image"))
	p, grow := smallPool(s, "")
	v := p.newVolume(1, 16*mib)
	r := s.startMove(s.path("image"), v.path(), faultFlags...)
	p.awaitMode("out_of_data_space")
	grow()
	s.want(0, r.wait())
	s.wantWhole(v.path(), made)
	s.wantEmptied(s.path("image"))
	p.check()
}

// fault 35: nobody gives the pool more blocks. It fails the writes after a while.
func TestKernelFault35PoolStaysFull(t *testing.T) {
	const parameter = "/sys/module/dm_thin_pool/parameters/no_space_timeout"
	var grow func()
	m := newMoving(t, 34, func(s *site) *device {
		before, err := os.ReadFile(parameter)
		s.must(err)
		s.must(os.WriteFile(parameter, []byte("1"), 0))
		s.Cleanup(func() { s.must(os.WriteFile(parameter, before, 0)) })
		p, more := smallPool(s, "")
		grow = more
		return p.newVolume(1, 16*mib)
	})
	o := m.want(3, m.start().wait())
	m.wantReason(o, "out of space")
	grow()
	m.finish(o.last().ID)
}

// awaitMode waits until the pool is in a mode.
func (p *pool) awaitMode(mode string) {
	p.s.Helper()
	for deadline := time.Now().Add(patience); p.poolStatus().mode != mode; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.s.Fatalf("the pool stays in mode %s, want %s", p.poolStatus().mode, mode)
		}
	}
}
