package clonetest

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrPowerCut is what every operation answers once the power is cut.
var ErrPowerCut = errors.New("power cut")

// Op is one operation of the interfaces that a clone uses.
type Op uint8

// The operations.
const (
	SourceRead Op = iota + 1
	SourceNextData
	SourceDiscard
	DestinationRead
	DestinationWrite
	DestinationZero
	DestinationNextData
	DestinationFlush
	JournalLoad
	JournalCommit
	JournalMarkDiscarded
	SourceMark
)

func (o Op) String() string {
	return [...]string{
		"nothing", "source read", "source next data", "source discard", "destination read",
		"destination write", "destination zero", "destination reads zero", "destination flush", "journal load",
		"journal commit", "journal mark discarded", "source mark",
	}[o]
}

// Fault makes calls fail.
type Fault struct {
	Call    int   // number of the call that fails, counted from 1 since the machine was made
	Err     error // what it answers; nil is a short count, or EIO where there is no count
	Forever bool  // all later calls of the same operation fail as well
	// Effect says that the call had an effect although it failed: half of a write,
	// zero or discard, the whole of a journal commit or mark; for a flush, that
	// the unflushed data is not dropped.
	Effect bool
}

func (f Fault) String() string {
	return fmt.Sprintf("call %d: %v, forever %v, effect %v", f.Call, f.Err, f.Forever, f.Effect)
}

// errno is the error of a call that has no count to cut short.
func (f *Fault) errno() error {
	if f.Err == nil {
		return syscall.EIO
	}
	return f.Err
}

// CrashAfter cuts the power when step n, counted from 1 since the machine was made,
// has taken effect. Every step that changes a medium counts: a write, a zero, a
// discard, each write and sync of the journal and of the mark, the begin and the
// end of a flush.
func (m *Machine) CrashAfter(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cutAfter = n
}

// Inject makes calls fail from now on; the zero Fault ends it.
func (m *Machine) Inject(f Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault, m.faultOp = f, 0
}

// Steps is the number of steps that have taken effect.
func (m *Machine) Steps() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.steps
}

// Calls is the number of calls so far.
func (m *Machine) Calls() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

// FaultHit is the operation that the present Fault made fail; false if none yet.
func (m *Machine) FaultHit() (Op, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.faultOp, m.faultOp != 0
}

// flushFails says whether a flush has lost what it should have kept.
func (m *Machine) flushFails() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.contents.lost
}

// PowerIsCut says whether the machine is off.
func (m *Machine) PowerIsCut() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.off
}

// call begins an operation and says how it has to fail, if it has to.
func (m *Machine) call(op Op) (*Fault, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off {
		m.wake()
		return nil, ErrPowerCut
	}
	m.calls++
	f := m.fault
	switch {
	case f.Call == 0:
		return nil, nil
	case m.calls == f.Call:
		m.faultOp = op
	case m.calls < f.Call || !f.Forever || op != m.faultOp:
		return nil, nil
	}
	m.wake()
	return &f, nil
}

// step lets effect happen, as one step.
func (m *Machine) step(effect func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off {
		m.wake()
		return ErrPowerCut
	}
	effect()
	m.steps++
	m.off = m.steps == m.cutAfter
	return nil
}

// look runs f on the state without making a step.
func (m *Machine) look(f func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off {
		return ErrPowerCut
	}
	f()
	return nil
}

// meanwhile lets other things happen in the middle of an operation.
func (m *Machine) meanwhile(op Op) {
	if m.Meanwhile != nil {
		m.Meanwhile(op)
	}
}

// violate records that a rule was broken. The caller holds mu.
func (m *Machine) violate(format string, args ...any) {
	m.violations = append(m.violations, fmt.Errorf("%w: "+format, append([]any{ErrViolation}, args...)...))
}
