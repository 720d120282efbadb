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
		reason []string
	}{
		"fault 46: writes fail": {(*device).unwritable, nil, []string{"input/output"}},
		// The pool flushes its data as well, and whichever is noticed first ends the run.
		"fault 47: flushes fail":  {(*device).unflushable, nil, []string{"flush", "needs_check"}},
		"fault 48: writes vanish": {flakes("drop_writes"), []string{"--verify"}, []string{"verification failed"}},
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
			m.wantReason(m.want(3, m.start().wait()), test.reason...)
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

// held is a migration that stands still halfway: the reads of the second half of its
// source are held back. What is held was admitted, and finds a pool in which others
// have been at work meanwhile.
type held struct {
	*running
	made  image
	below *device // what the source leads to
	from  *device
	to    *device
}

// hold starts a migration into a new volume of the pool.
func (p *pool) hold(seed uint64) *held {
	s := p.s
	s.Helper()
	h := &held{made: newImage(faultImageBytes, seed, solid), below: s.slice(faultImageBytes), to: p.newVolume(1, faultImageBytes)}
	s.write(h.made, h.below.path())
	h.from = s.newDevice(h.below.with(faultAt, faultAt, h.below.heldReads())...)
	h.running = s.startMove(h.from.path(), h.to.path(), faultFlags...)
	h.await("the first half", func(e event) bool { return e.Event == "committed" && e.BytesCommitted >= faultAt })
	return h
}

// release lets the migration go on.
func (h *held) release() { h.from.exchange(h.below.whole(h.below.linear())...) }

// finish expects that every byte is whole on one side, spoils what the destination
// is not known to hold, and expects the same command to end well.
func (h *held) finish(id string) {
	s := h.s
	s.Helper()
	s.wantNothingLost(id, h.made, h.from.path(), h.to.path())
	s.scribble(id, h.to.path())
	s.move(0, h.from.path(), h.to.path(), faultFlags...)
	s.wantWhole(h.to.path(), h.made)
}

// fault 38: others take the last metadata blocks while a migration is at work.
func TestKernelFault38PoolMetadataFull(t *testing.T) {
	s := newSite(t)
	below := s.slice(4 * mib)
	metadata := s.newDevice(below.linear()(0, 256*kib))
	p := s.newPool(poolOptions{metadata: metadata})
	h := p.hold(39)
	for id := 100; ; id++ { // each takes a block
		if _, err := s.dm.Message(p.name, 0, fmt.Sprintf("create_thin %d", id)); err != nil {
			break
		}
	}
	h.release()
	o := s.want(3, h.wait())
	s.wantReason(o, "pool "+p.name+" must not be written to")
	if st := p.poolStatus(); st.mode == "rw" {
		t.Fatalf("the pool has not noticed: %+v, after %v", st, o)
	}
	s.wantText(s.move(4, h.from.path(), h.to.path(), faultFlags...), "pool "+p.name, "thin_check", "enlarge")
	p.reopen(func() {
		s.do("thin_check", "--clear-needs-check-flag", metadata.path())
		metadata.exchange(below.whole(below.linear())...)
	})
	h.finish(o.last().ID)
	p.check()
}

// tightPool has room for an image and little else. grow gives it more.
func tightPool(s *site, features string) (p *pool, grow func()) {
	s.Helper()
	const tightBytes = faultImageBytes + 4*mib
	below := s.slice(32 * mib)
	p = s.newPool(poolOptions{data: s.newDevice(below.linear()(0, tightBytes)), features: features})
	return p, func() {
		p.data.exchange(below.whole(below.linear())...)
		p.data.bytes = below.bytes
		s.must(s.dm.Load(p.name, []target{p.table()}))
		s.must(s.dm.ResumeNoFlush(p.name))
	}
}

// fill gives all free blocks of the pool to another volume.
func (p *pool) fill() {
	p.s.Helper()
	st := p.poolStatus()
	other := p.newVolume(2, p.data.bytes)
	p.s.do("dd", "if=/dev/zero", "of="+other.path(), "bs="+itoa(p.blockBytes), "count="+itoa(st.dataBlocks-st.dataUsedBlocks), "oflag=direct", "status=none")
}

// fault 35, fault 36: others take the last data blocks while a migration is at work,
// and nobody gives the pool more. It fails the writes at once or after a while, and
// then the migration gives up as well, and is refused until there is room.
func TestKernelFault36PoolStaysFull(t *testing.T) {
	for name, features := range map[string]string{
		"fault 36: the pool says so": "error_if_no_space", "fault 35: writers wait": "",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.setNoSpaceTimeout("1")
			p, grow := tightPool(s, features)
			h := p.hold(36)
			p.fill()
			h.release()
			o := s.want(3, h.wait())
			s.wantReason(o, "out of space")
			s.wantNothingLost(o.last().ID, h.made, h.from.path(), h.to.path())
			s.wantText(s.move(4, h.from.path(), h.to.path(), faultFlags...), "does not fit", "pool "+p.name)
			grow()
			h.finish(o.last().ID)
		})
	}
}

// fault 35, fault 36: the pool grows in time. Writers that wait go on, those that
// were sent away come back, and the migration ends well.
func TestKernelFault35PoolGrows(t *testing.T) {
	for name, features := range map[string]string{
		"fault 36: the pool says so": "error_if_no_space", "fault 35: writers wait": "",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			p, grow := tightPool(s, features)
			h := p.hold(35)
			p.fill()
			h.release()
			p.awaitMode("out_of_data_space")
			grow()
			s.want(0, h.wait())
			s.wantWhole(h.to.path(), h.made)
			p.check()
		})
	}
}

// setNoSpaceTimeout sets for how many seconds pools without space keep writers
// waiting.
func (s *site) setNoSpaceTimeout(seconds string) {
	s.Helper()
	const parameter = "/sys/module/dm_thin_pool/parameters/no_space_timeout"
	before, err := os.ReadFile(parameter)
	s.must(err)
	s.must(os.WriteFile(parameter, []byte(seconds), 0))
	s.Cleanup(func() { s.must(os.WriteFile(parameter, before, 0)) })
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
