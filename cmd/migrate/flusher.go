package main

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"decant/service"
)

// serveSafely starts this program anew as one that the kernel never makes wait for writes
// to a device that it serves. It returns if that has been done, or cannot be; the service
// then warns of it.
func serveSafely() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if news, err := service.BecomeFlusher(); !news || err != nil {
		return
	}
	path, err := os.Executable()
	if err != nil {
		return
	}
	// It returns only if it fails, and then nothing has changed.
	_ = unix.Exec(path, os.Args, os.Environ())
}
