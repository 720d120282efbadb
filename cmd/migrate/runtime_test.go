package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestRuntimeIsSuitedUnlessTheEnvironmentSaysHow(t *testing.T) {
	processors, percent := runtime.GOMAXPROCS(1), debug.SetGCPercent(100)
	t.Cleanup(func() {
		runtime.GOMAXPROCS(processors)
		debug.SetGCPercent(percent)
	})
	suitRuntime(func(string) string { return "1" })
	if n, p := runtime.GOMAXPROCS(0), debug.SetGCPercent(100); n != 1 || p != 100 {
		t.Errorf("changed to %d processors and %d %% of garbage, though the environment says how", n, p)
	}
	suitRuntime(func(string) string { return "" })
	if n, p := runtime.GOMAXPROCS(0), debug.SetGCPercent(100); n != 2 || p != garbagePercent {
		t.Errorf("%d processors and %d %% of garbage", n, p)
	}
	runtime.GOMAXPROCS(3)
	if suitRuntime(func(string) string { return "" }); runtime.GOMAXPROCS(0) != 3 {
		t.Errorf("%d processors, where there were several", runtime.GOMAXPROCS(0))
	}
}
