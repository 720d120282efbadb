package service

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// guardMemory keeps this process from waiting for a device that it serves (see doc.go,
// Deadlocks). What it cannot do it warns of.
func guardMemory(warn func(string)) {
	// What there is comes in now and stays, what comes later stays once it was used.
	err := unix.Mlockall(unix.MCL_CURRENT)
	if err == nil {
		err = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	}
	if err != nil {
		warn(fmt.Sprintf("the memory of this program cannot be locked (%v): on a host that is short of memory the device may hang", err))
	}
	if on, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil || on != 1 {
		warn("the kernel does not know that this program is in the path of its writes: on a host that is short of memory the device may hang")
	}
}

// BecomeFlusher tells the kernel that this thread, and every thread and program that it
// starts from then on, is in the path of writes to a device, so that their memory never
// has to wait for such writes. It says whether that is news: threads that are there
// already are not told, so a program does it first of all, and starts itself anew.
func BecomeFlusher() (news bool, err error) {
	on, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	if err != nil || on == 1 {
		return false, err
	}
	return true, unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
}
