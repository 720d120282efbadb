package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestRuntimeIsSuitedUnlessTheEnvironmentSaysHow(t *testing.T) {
	processors, percent, bytes := runtime.GOMAXPROCS(1), debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	t.Cleanup(func() {
		debug.SetMemoryLimit(bytes)
		runtime.GOMAXPROCS(processors)
		debug.SetGCPercent(percent)
	})
	suitRuntime(func(string) string { return "1" })
	if n, p := runtime.GOMAXPROCS(0), debug.SetGCPercent(100); n != 1 || p != 100 || debug.SetMemoryLimit(-1) != bytes {
		t.Errorf("changed to %d processors and %d %% of garbage, though the environment says how", n, p)
	}
	suitRuntime(func(string) string { return "" })
	if n, p := runtime.GOMAXPROCS(0), debug.SetGCPercent(100); n != 2 || p != garbagePercent || debug.SetMemoryLimit(-1) != smallMemoryBytes {
		t.Errorf("%d processors and %d %% of garbage", n, p)
	}
	runtime.GOMAXPROCS(3)
	if suitRuntime(func(string) string { return "" }); runtime.GOMAXPROCS(0) != 3 {
		t.Errorf("%d processors, where there were several", runtime.GOMAXPROCS(0))
	}
}
