package clonetarget

import (
	"errors"
	"testing"
)

func TestTableGoesThereAndBack(t *testing.T) {
	for _, want := range []Table{
		{Metadata: "7:0", Destination: "253:1", Source: "7:1", RegionBytes: 64 << 10},
		{Metadata: "7:0", Destination: "253:1", Source: "7:1", RegionBytes: MaxRegionBytes, NoHydration: true},
		{Metadata: "a", Destination: "b", Source: "c", RegionBytes: MinRegionBytes, NoHydration: true, NoDiscardPassdown: true, Threshold: 16, Batch: 4},
	} {
		if got, err := ParseTable(want.String()); err != nil || got != want {
			t.Errorf("%q: %+v, %v", want.String(), got, err)
		}
	}
	if got, err := ParseTable("1:1 2:2 3:3 8"); err != nil || got.RegionBytes != 4096 {
		t.Errorf("a short one: %+v, %v", got, err)
	}
	for _, bad := range []string{
		"", "1:1 2:2 3:3", "1:1 2:2 3:3 x", "1:1 2:2 3:3 0", "1:1 2:2 3:3 9", "1:1 2:2 3:3 4194304", "1:1 2:2 3:3 8 1",
		"1:1 2:2 3:3 8 -1", "1:1 2:2 3:3 8 0 1 a", "1:1 2:2 3:3 8 0 2 hydration_threshold -1",
	} {
		if got, err := ParseTable(bad); !errors.Is(err, ErrForm) {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
}

func TestParseStatus(t *testing.T) {
	for status, want := range map[string]Status{
		"8 24/1024 128 10/160 3 1 no_hydration 4 hydration_threshold 5 hydration_batch_size 6 rw": {
			MetadataUsedBlocks: 24, MetadataBlocks: 1024, RegionBytes: 64 << 10, HydratedRegions: 10, Regions: 160,
			HydratingRegions: 3, HydrationDisabled: true, Threshold: 5, Batch: 6, Mode: ReadWrite,
		},
		"8 1/2 8 2/2 0 1 no_discard_passdown 4 hydration_threshold 1 hydration_batch_size 1 ro": {
			MetadataUsedBlocks: 1, MetadataBlocks: 2, RegionBytes: 4 << 10, HydratedRegions: 2, Regions: 2,
			NoDiscardPassdown: true, Threshold: 1, Batch: 1, Mode: ReadOnly,
		},
		"Fail": {Mode: Failed}, "Error": {Mode: Failed},
	} {
		if got, err := ParseStatus(status); err != nil || got != want {
			t.Errorf("%q: %+v, %v", status, got, err)
		}
	}
	for _, bad := range []string{
		"", "rw", "8 24/1024 128 10/160 3 0 0", "8 24/1024 128 10/160 3 0 0 fine", "8 24/23 128 10/160 3 0 0 rw",
		"8 24 128 10/160 3 0 0 rw", "4 24/1024 128 10/160 3 0 0 rw", "8 24/1024 128 11/10 3 0 0 rw", "8 24/1024 -1 10/160 3 0 0 rw",
		"8 24/1024 128 10/160 3 9 0 rw", "8 24/1024 128 10/160 3 0 3 a b c rw", "8 24/1024 128 10/160 -3 0 0 rw",
	} {
		if got, err := ParseStatus(bad); !errors.Is(err, ErrForm) {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("8 24/1024 128 10/160 3 1 no_hydration 4 hydration_threshold 5 hydration_batch_size 6 rw")
	f.Add("7:0 253:1 7:1 128 1 no_hydration 2 hydration_threshold 4")
	f.Fuzz(func(t *testing.T, line string) {
		if s, err := ParseStatus(line); err == nil && s.Mode != Failed && (s.HydratedRegions > s.Regions || s.MetadataUsedBlocks > s.MetadataBlocks) {
			t.Errorf("%q is %+v", line, s)
		}
		if table, err := ParseTable(line); err == nil {
			if again, err := ParseTable(table.String()); err != nil || again != table {
				t.Errorf("%q is %+v, and that is %+v, %v", line, table, again, err)
			}
		}
	})
}

func TestCheckKernel(t *testing.T) {
	for release, good := range map[string]bool{
		"5.4.0-150-generic": false, "5.6.19": false, "5.7.0": true, "5.10.0-28-amd64": true, "6.1.176": true, "10.0": true, "4.19.0": false, "x": false, "": false,
	} {
		if err := CheckKernel(release); (err == nil) != good {
			t.Errorf("%q: %v", release, err)
		}
	}
}
