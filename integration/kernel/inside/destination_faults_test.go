//go:build testkernel

package inside

import "testing"

// Regions and transactions of the tests with faults are small, so that a fault in
// the middle has some of each on either side.
var faultFlags = []string{"--discard-src", "--region-size=256KiB", "--commit-bytes=1MiB"}

const (
	faultImageBytes = 8 * mib
	faultAt         = 4 * mib // a fault begins here
)

// moving is a migration from a file that is out of harm's way onto a device whose
// table a test exchanges.
type moving struct {
	*site
	made   image
	source string
	lower  *device // what the destination is made of
	to     *device
	flags  []string
}

func newMoving(t *testing.T, seed uint64, lower func(*site) *device) *moving {
	t.Helper()
	m := &moving{site: newSite(t), made: newImage(faultImageBytes, seed, mixed), flags: faultFlags}
	m.source = m.path("image")
	m.write(m.made, m.source)
	m.lower = lower(m.site)
	m.to = m.newDevice(m.lower.whole(m.lower.linear())...)
	return m
}

func plain(s *site) *device { return s.slice(16 * mib) }

func (m *moving) start() *running {
	m.Helper()
	return m.startMove(m.source, m.to.path(), m.flags...)
}

// halfway migrates up to where the destination breaks, and mends it.
func (m *moving) halfway() (id string) {
	m.Helper()
	m.to.exchange(m.lower.with(faultAt, faultAt, m.lower.unwritable())...)
	o := m.want(3, m.start().wait())
	m.to.exchange(m.lower.whole(m.lower.linear())...)
	if hydrated, _ := m.owned(o.last().ID); hydrated.Count() == 0 {
		m.Fatalf("nothing was committed: %v", o)
	}
	return o.last().ID
}

// finish expects that every byte is whole on one side, spoils what the destination
// is not known to hold, and expects the same command to end well.
func (m *moving) finish(id string) {
	m.Helper()
	m.wantNothingLost(id, m.made, m.source, m.to.path())
	m.scribble(id, m.to.path())
	m.want(0, m.start().wait())
	m.wantWhole(m.to.path(), m.made)
	m.wantEmptied(m.source)
}

// A part of the destination fails: the program stops with code 3, every byte is whole
// on one side, and the same command ends well once the fault is lifted.
func TestKernelFaultsOfTheDestination(t *testing.T) {
	for name, test := range map[string]struct {
		kind   func(below *device) kind
		flags  []string
		reason string
	}{
		"fault 46: writes fail":                 {(*device).unwritable, nil, "input/output"},
		"fault 46: writes and flushes fail":     {flakes("error_writes"), nil, "input/output"},
		"fault 48: writes are lost":             {flakes("drop_writes"), []string{"--verify"}, "verification failed"},
		"fault 49: reads return other bytes":    {flakes("corrupt_bio_byte 77 r 165 0"), []string{"--verify", "--overwrite"}, "verification failed"},
		"fault 49: writes arrive as other ones": {flakes("corrupt_bio_byte 77 w 165 0"), []string{"--verify"}, "verification failed"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMoving(t, 46, plain)
			m.flags = append(m.flags[:len(m.flags):len(m.flags)], test.flags...)
			m.to.exchange(m.lower.with(faultAt, mib, test.kind(m.lower))...)
			o := m.want(3, m.start().wait())
			m.wantReason(o, test.reason)
			m.to.exchange(m.lower.whole(m.lower.linear())...)
			m.finish(o.last().ID)
		})
	}
}

func flakes(features string) func(*device) kind {
	return func(below *device) kind { return below.flakey(features) }
}

// fault 47: a flush fails. What was written since the last good one is not believed,
// whatever later flushes say: it is copied again.
func TestKernelFault47FlushFails(t *testing.T) {
	m := newMoving(t, 47, plain)
	id := m.halfway()
	before, _ := m.owned(id)
	m.to.exchange(m.lower.whole(m.lower.unflushable())...)
	o := m.want(3, m.start().wait())
	m.wantReason(o, "flush")
	m.to.exchange(m.lower.whole(m.lower.linear())...)
	if after, _ := m.owned(id); after.Count() != before.Count() {
		t.Errorf("%d regions count as hydrated, and %d did before the flushes failed", after.Count(), before.Count())
	}
	m.finish(id)
}

// fault 48: without a look at the medium a lying disk cannot be told from a good one;
// verify finds it afterwards.
func TestKernelFault48VerifyFindsLostWrites(t *testing.T) {
	m := newMoving(t, 48, plain)
	m.flags = m.flags[1:] // keep the source
	m.to.exchange(m.lower.with(faultAt, mib, m.lower.flakey("drop_writes"))...)
	o := m.want(0, m.start().wait())
	m.to.exchange(m.lower.whole(m.lower.linear())...)
	m.want(1, m.site.start("migrate", "verify", o.last().ID).wait())
}

// fault 51: the destination goes away in the middle.
func TestKernelFault51DestinationGone(t *testing.T) {
	m := newMoving(t, 51, plain)
	m.to.exchange(m.lower.with(faultAt, faultAt, m.lower.held())...)
	r := m.start()
	r.awaitCommitted(2)
	m.to.exchange(m.lower.whole(broken)...)
	o := m.want(3, r.wait())
	m.wantReason(o, "input/output")
	m.to.exchange(m.lower.whole(m.lower.linear())...)
	m.finish(o.last().ID)
}
