package thin

import (
	"errors"
	"strings"
	"testing"
)

// fault 93: the rules of LVM, which allow more than those of this program's pools.
func TestFault93GroupNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"vg": true, "VG_0.1+x-y": true, "v+g": true, "_vg": true, ".vg": true, "+": true, strings.Repeat("a", 127): true,
		"": false, ".": false, "..": false, "-vg": false, "--force": false, "v g": false, "v/g": false, "v\x00g": false,
		"v\ng": false, "vé": false, "v@g": false, "v:g": false, "v#g": false, strings.Repeat("a", 128): false,
	} {
		if err := ValidateGroupName(name); (err == nil) != ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestFault93NewVolumeNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"vm": true, "my-snapshot": true, "v+m": true, "_t": true, "tdata": true,
		"snapshot": false, "snapshot1": false, "pvmove0": false, "x_tdata": false, "x_tmeta2": false, "a_mlog": false,
		"lvol0_pmspare": false, "x_rimage_0": false, "-v": false, "": false,
	} {
		if err := validateNewVolumeName(name); (err == nil) != ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSplitGroupVolume(t *testing.T) {
	for _, test := range []struct {
		text, group, volume string
		ok                  bool
	}{
		{"vg/lv", "vg", "lv", true},
		{"v+g/l.v", "v+g", "l.v", true},
		{"vg", "", "", false},
		{"vg/", "", "", false},
		{"/lv", "", "", false},
		{"a/b/c", "", "", false},
		{"vg/-f", "", "", false},
	} {
		group, volume, err := SplitGroupVolume(test.text)
		if (err == nil) != test.ok || group != test.group || volume != test.volume {
			t.Errorf("%q: %q, %q, %v", test.text, group, volume, err)
		}
	}
}
