package main

import (
	"runtime"
	"runtime/debug"
)

// The program works for seconds with a heap of a few MiB: it collects garbage less
// often than the runtime would by itself, as long as all of it stays small. Images of
// many TiB have bitmaps that are not.
const (
	garbagePercent   = 400
	smallMemoryBytes = 48 << 20
)

// suitRuntime makes Go's runtime suit a program that waits for devices most of the
// time. On a single processor the runtime has one slot for Go code, and hands it over
// to another thread and back at every read or write; with a spare one it need not.
// What the environment says goes first.
func suitRuntime(getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(smallMemoryBytes)
	}
	if getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(2)
	}
}
