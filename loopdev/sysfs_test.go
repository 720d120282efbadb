package loopdev

import (
	"os"
	"path/filepath"
	"testing"
)

// fault 69: numbers of devices change with a reboot; what identifies a device does
// not, as far as it has something of its own.
func TestFault69KeyOfABlockDevice(t *testing.T) {
	for name, test := range map[string]struct {
		attributes map[string]string
		want       string
	}{
		"dm with UUID":    {map[string]string{"dm/uuid": "LVM-abc", "dm/name": "vg-lv"}, "block:dm-uuid:LVM-abc"},
		"dm without UUID": {map[string]string{"dm/uuid": "", "dm/name": "thin1"}, "block:dm-name:thin1:4096"},
		"with serial":     {map[string]string{"device/serial": " S42 "}, "block:device-serial:S42"},
		"nothing else":    {nil, "block:name:dm-3:4096"},
	} {
		t.Run(name, func(t *testing.T) {
			n := node{dir: t.TempDir(), name: "dm-3"}
			attributes := map[string]string{"size": "8"}
			for k, v := range test.attributes {
				attributes[k] = v
			}
			for k, v := range attributes {
				path := filepath.Join(n.dir, k)
				must(t, os.MkdirAll(filepath.Dir(path), 0o700))
				must(t, os.WriteFile(path, []byte(v+"\n"), 0o600))
			}
			if got, err := n.stableKey(); got != test.want || err != nil {
				t.Errorf("%q, %v, want %q", got, err, test.want)
			}
		})
	}
}
