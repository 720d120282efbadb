package service

import (
	"strings"
	"testing"
	"time"
)

func TestDefaultOptionsMakeSense(t *testing.T) {
	t.Parallel()
	if err := DefaultOptions().Check(); err != nil {
		t.Error(err)
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	for flag, change := range map[string][]func(*Options){
		"--remove-src": {func(o *Options) { o.RemoveSource = true }},
		"--region-size": { // fault 72
			func(o *Options) { o.RegionBytes = 0 },
			func(o *Options) { o.RegionBytes = -4096 },
			func(o *Options) { o.RegionBytes = 2048 },
			func(o *Options) { o.RegionBytes = 3 << 20 },
			func(o *Options) { o.RegionBytes = 2 << 30 },
		},
		"--threshold":     {func(o *Options) { o.ThresholdRegions = 0 }, func(o *Options) { o.ThresholdRegions = 1<<20 + 1 }},
		"--batch":         {func(o *Options) { o.BatchRegions = 0 }, func(o *Options) { o.BatchRegions = 1<<20 + 1 }},
		"--commit-period": {func(o *Options) { o.CommitPeriod = 0 }, func(o *Options) { o.CommitPeriod = -time.Second }, func(o *Options) { o.CommitPeriod = 2 * time.Hour }},
		"--commit-bytes":  {func(o *Options) { o.CommitBytes = 4095 }, func(o *Options) { o.CommitBytes = 1<<40 + 1 }},
		"--bwlimit":       {func(o *Options) { o.BytesPerSecond = -1 }},
	} {
		for i, change := range change {
			o := DefaultOptions()
			change(&o)
			if err := o.Check(); OutcomeOf(err) != Usage || !strings.Contains(err.Error(), flag) {
				t.Errorf("%s %d: %v", flag, i, err)
			}
		}
	}
}

func TestOptionsAtTheirLimits(t *testing.T) {
	t.Parallel()
	for i, change := range []func(*Options){
		func(o *Options) { o.DiscardSource, o.RemoveSource = true, true },
		func(o *Options) { o.RegionBytes = 4 << 10 },
		func(o *Options) { o.RegionBytes = 1 << 30 },
		func(o *Options) { o.ThresholdRegions, o.BatchRegions = 1, 1<<20 },
		func(o *Options) { o.CommitPeriod = time.Millisecond },
		func(o *Options) { o.CommitBytes = 4096 },
		func(o *Options) { o.BytesPerSecond = 1 },
	} {
		o := DefaultOptions()
		change(&o)
		if err := o.Check(); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestThinPoolIsAName(t *testing.T) {
	for name, ok := range map[string]bool{"": true, "pool": true, "po+ol": true, "-f": false, "vg/pool": false, "a b": false} {
		o := DefaultOptions()
		o.ThinPool = name
		if err := o.Check(); (err == nil) != ok || err != nil && OutcomeOf(err) != Usage {
			t.Errorf("%q: %v", name, err)
		}
	}
}
