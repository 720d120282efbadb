package thin

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDeviceIn(t *testing.T) {
	for word, want := range map[string]uint64{"253:7": unix.Mkdev(253, 7), "0:0": 0, "259:1048575": unix.Mkdev(259, 1048575), "/dev/null": unix.Mkdev(1, 3)} {
		if got, err := deviceIn(word); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", word, got, err, want)
		}
	}
	for _, bad := range []string{"", "253", "253:", ":7", "253:7x", "253:7:1", "-1:7"} {
		if got, err := deviceIn(bad); !errors.Is(err, errStatus) {
			t.Errorf("%q: %d, %v", bad, got, err)
		}
	}
}

// Without a pool below, also on a kernel without device-mapper, what is found is the
// files behind loop devices.
func TestStackWithoutPool(t *testing.T) {
	medium := filepath.Join(t.TempDir(), "medium")
	if err := errors.Join(os.WriteFile(medium, nil, 0o600), os.Truncate(medium, 1<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", medium).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", loop).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	var st unix.Stat_t
	if err := unix.Stat(loop, &st); err != nil {
		t.Fatal(err)
	}
	s, err := FindStack(st.Rdev)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if len(s.Layers) == 0 || s.Layers[0].File == nil || s.Layers[0].File.Path != medium || !s.Layers[0].Discards {
		t.Errorf("%+v", s.Layers)
	}
	for _, l := range s.Layers {
		if l.Pool != nil {
			t.Errorf("a pool: %+v", l.Pool)
		}
	}
}

func TestStackOfNothing(t *testing.T) {
	for _, devices := range [][]uint64{nil, {unix.Mkdev(0, 12345)}} {
		s, err := FindStack(devices...)
		if err != nil || len(s.Layers) != 0 {
			t.Errorf("%v: %+v, %v", devices, s, err)
		}
	}
}
