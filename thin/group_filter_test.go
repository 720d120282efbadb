package thin

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestUnservedAreLiveDevicesOverNetworkBlockDevices(t *testing.T) {
	dir := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, device := range map[string]struct{ name, uuid, slave string }{
		"dm-0": {"vg-lv", "LVM-abc", "sda"},
		"dm-1": {"vm.1", "DECANT-live-0011", "nbd3"},
		"dm-2": {"done", "DECANT-live-0022", "sdb"},
		"dm-3": {"other", "OTHER-1", "nbd4"},
	} {
		write(name+"/dm/name", device.name+"\n")
		write(name+"/dm/uuid", device.uuid+"\n")
		write(name+"/dev", "253:"+name[3:]+"\n")
		write(name+"/slaves/"+device.slave, "")
	}
	got, err := unserved(dir)
	want := []string{
		`^/dev/(mapper/vm\.1|dm-1|block/253:1|disk/by-id/dm-name-vm\.1|disk/by-id/dm-uuid-DECANT-live-0011)$`, `^/dev/nbd3$`,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestFilterKeepsWhatIsConfigured(t *testing.T) {
	for configured, want := range map[string]string{
		"":                                 `devices/global_filter=["r!^/dev/a\\.b$!"]`,
		"global_filter=[\"a|.*|\"]\n":      `devices/global_filter=["r!^/dev/a\\.b$!","a|.*|"]`,
		`global_filter=["r|x|", "a|y|"]`:   `devices/global_filter=["r!^/dev/a\\.b$!","r|x|", "a|y|"]`,
		"global_filter=\"a|/dev/sd.*|\"\n": `devices/global_filter=["r!^/dev/a\\.b$!","a|/dev/sd.*|"]`,
		"global_filter=[]":                 `devices/global_filter=["r!^/dev/a\\.b$!"]`,
	} {
		if got := filterConfig([]string{`^/dev/a\.b$`}, configured); got != want {
			t.Errorf("%q: %s, want %s", configured, got, want)
		}
	}
}

func TestConfigurationsOfACommandAreJoined(t *testing.T) {
	for _, c := range []struct {
		config     string
		args, want []string
	}{
		{"", []string{"-o", "name"}, []string{"-o", "name"}},
		{"a=1", []string{"-o", "name"}, []string{"--config", "a=1", "-o", "name"}},
		{"a=1", []string{"-o", "name", "--config", "b=2", "vg"}, []string{"-o", "name", "--config", "b=2 a=1", "vg"}},
	} {
		if got := withConfig(c.config, c.args); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
