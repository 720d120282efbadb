package thin

import (
	"errors"
	"testing"
)

func TestParseTargetStatus(t *testing.T) {
	for text, want := range map[string]TargetStatus{
		"0 11/1024 0/1000 - rw discard_passdown queue_if_no_space - 1024 ": {
			MetadataUsedBlocks: 11, MetadataBlocks: 1024, DataBlocks: 1000, Mode: ReadWrite, DiscardPassdown: true, MetadataLowWaterBlocks: 1024,
		},
		"7 11/1024 9/1000 33 out_of_data_space ignore_discard error_if_no_space needs_check 256": {
			TransactionID: 7, MetadataUsedBlocks: 11, MetadataBlocks: 1024, DataUsedBlocks: 9, DataBlocks: 1000, HeldMetadataRoot: 33, Held: true,
			Mode: OutOfDataSpace, IgnoreDiscard: true, ErrorIfNoSpace: true, NeedsCheck: true, MetadataLowWaterBlocks: 256,
		},
		"0 1/2 3/4 - ro no_discard_passdown queue_if_no_space": {
			MetadataUsedBlocks: 1, MetadataBlocks: 2, DataUsedBlocks: 3, DataBlocks: 4, Mode: ReadOnly,
		},
		"Fail":  {Mode: Failed},
		"Error": {Mode: Failed},
	} {
		got, err := ParseTargetStatus(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestParseTargetStatusRefuses(t *testing.T) {
	for _, text := range []string{
		"", "0", "0 1/2 3/4 -", "x 1/2 3/4 - rw", "0 12 3/4 - rw", "0 3/2 3/4 - rw", "0 1/2 -1/4 - rw", "0 1/2 3/4 y rw",
		"0 1/2 3/4 - discard_passdown",
	} {
		if got, err := ParseTargetStatus(text); !errors.Is(err, errStatus) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestParseVolumeStatus(t *testing.T) {
	for text, want := range map[string]VolumeStatus{
		"0 -":      {},
		"256 2047": {MappedBytes: 131072},
		"Fail":     {Failed: true},
	} {
		if got, err := ParseVolumeStatus(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x 1", "-5 1"} {
		if got, err := ParseVolumeStatus(text); !errors.Is(err, errStatus) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestTablesReadWhatTheyWrite(t *testing.T) {
	for _, want := range []PoolTable{
		{Metadata: "254:0", Data: "254:1", BlockBytes: 65536},
		{Metadata: "/dev/a", Data: "/dev/b", BlockBytes: 1 << 20, LowWaterBlocks: 17, SkipBlockZeroing: true, IgnoreDiscard: true, ErrorIfNoSpace: true},
		{Metadata: "/dev/a", Data: "/dev/b", BlockBytes: 1 << 30, NoPassdown: true},
	} {
		if got, err := ParsePoolTable(want.String()); err != nil || got != want {
			t.Errorf("%s: %+v, %v", want, got, err)
		}
	}
	for _, want := range []VolumeTable{{Pool: "254:2", ID: 0}, {Pool: "/dev/mapper/p", ID: 1<<24 - 1, ExternalOrigin: "7:0"}} {
		if got, err := ParseVolumeTable(want.String()); err != nil || got != want {
			t.Errorf("%s: %+v, %v", want, got, err)
		}
	}
	for _, text := range []string{"", "a b", "a b c d", "a b 0 1", "a b -8 1", "a b 128 -1", "a b 99999999999 1"} {
		if got, err := ParsePoolTable(text); !errors.Is(err, errStatus) {
			t.Errorf("pool %q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "p", "p 16777216", "p -1", "p 1 2 3"} {
		if got, err := ParseVolumeTable(text); !errors.Is(err, errStatus) {
			t.Errorf("thin %q: %+v, %v", text, got, err)
		}
	}
}

func FuzzTarget(f *testing.F) {
	f.Add("0 11/1024 0/1000 - rw discard_passdown queue_if_no_space - 1024 ")
	f.Add("254:0 254:1 128 0 1 skip_block_zeroing")
	f.Add("254:2 5 7:0")
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := ParseTargetStatus(s); err == nil && (got.DataUsedBlocks > got.DataBlocks || got.MetadataUsedBlocks > got.MetadataBlocks) {
			t.Errorf("%q: %+v", s, got)
		}
		if got, err := ParsePoolTable(s); err == nil {
			if again, err := ParsePoolTable(got.String()); err != nil || again != got {
				t.Errorf("%q: %+v, then %+v, %v", s, got, again, err)
			}
		}
		if got, err := ParseVolumeTable(s); err == nil {
			if again, err := ParseVolumeTable(got.String()); err != nil || again != got {
				t.Errorf("%q: %+v, then %+v, %v", s, got, again, err)
			}
		}
		_, _ = ParseVolumeStatus(s) // must not panic
	})
}

func TestFreeBytesOfAPool(t *testing.T) {
	for name, c := range map[string]struct {
		status TargetStatus
		want   int64
	}{
		"data":        {TargetStatus{Mode: ReadWrite, DataBlocks: 100, DataUsedBlocks: 40, MetadataBlocks: 100}, 60 * 65536},
		"metadata":    {TargetStatus{Mode: ReadWrite, DataBlocks: 1000, MetadataBlocks: 10, MetadataUsedBlocks: 7}, 3 * 126 * 65536},
		"full":        {TargetStatus{Mode: ReadWrite, DataBlocks: 10, DataUsedBlocks: 10, MetadataBlocks: 10}, 0},
		"read-only":   {TargetStatus{Mode: ReadOnly, DataBlocks: 10, MetadataBlocks: 10}, 0},
		"needs check": {TargetStatus{Mode: ReadWrite, NeedsCheck: true, DataBlocks: 10, MetadataBlocks: 10}, 0},
	} {
		if got := c.status.FreeBytes(65536); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
