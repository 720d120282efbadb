package testkernel

import (
	"syscall"
	"time"
)

// The kernel's clock is a timer of the host that it sets for each next event. If the timer
// goes off while the kernel still handles the event before, and that handler lets
// interrupts in, then Linux 6.1 throws the signal away (unblock_signals in
// arch/um/os-Linux/signal.c takes SIGALRM out of those that are pending, and does not
// handle it within itself). No event is set after that: nothing that waits for time goes
// on, until somebody sends the signal once more. So it is sent now and then; one too many
// finds nothing to do.
const alarmPeriod = 250 * time.Millisecond

// keepTime sends the signal until the machine ends. It begins when the kernel surely
// handles it.
func (m *Machine) keepTime() {
	if _, ok := m.console.wait(initRuns); !ok {
		return // it has ended
	}
	alarm := time.NewTicker(alarmPeriod)
	defer alarm.Stop()
	for {
		select {
		case <-m.ended:
			return
		case <-alarm.C:
			_ = m.cmd.Process.Signal(syscall.SIGALRM) // fails if it has just ended
		}
	}
}
