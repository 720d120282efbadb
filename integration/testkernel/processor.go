package testkernel

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The kernel and each program inside are processes of the host that take turns: at every
// system call and page fault one stops and the other goes on. On two processors that wakes
// up the other one each time, which on a virtual machine that is idle takes ten times as
// long as all the rest. So they share one. The helpers that carry out the disks' I/O and
// wait for input do not take part in that, and may run anywhere.

// machines counts those of this process, so that they spread over the processors.
var machines atomic.Uint64

// holdOnOneProcessor lets the calling thread, and what it starts, run on one processor
// only. It returns those that were allowed before.
func holdOnOneProcessor() (unix.CPUSet, error) {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return all, fmt.Errorf("ask for the processors of a thread: %w", err)
	}
	nth := int((uint64(os.Getpid()) + machines.Add(1)) % uint64(all.Count()))
	for cpu := 0; ; cpu++ {
		if !all.IsSet(cpu) {
			continue
		}
		if nth == 0 {
			one.Set(cpu)
			break
		}
		nth--
	}
	return all, unix.SchedSetaffinity(0, &one)
}

var initRuns = regexp.MustCompile("as init process")

// freeHelpers lets the helpers of the kernel run on all these processors once they are
// there. Where that fails the machine is slower, and nothing else.
func (m *Machine) freeHelpers(all unix.CPUSet) {
	if _, ok := m.console.wait(initRuns); !ok {
		return // it has ended
	}
	pid := m.cmd.Process.Pid
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)) // see above
	for child := range strings.FieldsSeq(string(children)) {
		status, _ := os.ReadFile("/proc/" + child + "/status") // see above
		var helper int
		// Programs inside are traced by the kernel.
		if !bytes.Contains(status, []byte("\nTracerPid:\t0\n")) {
			continue
		}
		if _, err := fmt.Sscan(child, &helper); err == nil {
			_ = unix.SchedSetaffinity(helper, &all) // see above
		}
	}
}
