package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// one and other are numbers of block devices; nobody opens them here.
const (
	one   DeviceNumber = 0xfd01
	other DeviceNumber = 0xfd02
)

// testNodes is a directory of nodes, without udev unless withUdev is called.
func testNodes(t *testing.T) nodes {
	dir := t.TempDir()
	return nodes{
		dir: filepath.Join(dir, "mapper"), misc: filepath.Join(dir, "misc"), socket: filepath.Join(dir, "control"),
		rules: []string{filepath.Join(dir, "rules.d", "*-dm.rules")}, patience: 50 * time.Millisecond,
	}
}

func (n nodes) withUdev(t *testing.T) nodes {
	t.Helper()
	rules := filepath.Join(filepath.Dir(n.socket), "rules.d")
	for _, err := range []error{os.WriteFile(n.socket, nil, 0o600), os.MkdirAll(rules, 0o700), os.WriteFile(filepath.Join(rules, "55-dm.rules"), nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !n.udev() {
		t.Fatal("udev was not found")
	}
	n.patience = 10 * time.Second
	return n
}

func (n nodes) mknod(t *testing.T, name string, device DeviceNumber) {
	t.Helper()
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(n.dir, name), unix.S_IFBLK|0o600, int(device)); err != nil {
		t.Fatal(err)
	}
}

func (n nodes) want(t *testing.T, names map[string]DeviceNumber) {
	t.Helper()
	entries, err := os.ReadDir(n.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		device, wanted := names[e.Name()]
		if !wanted || !leadsTo(filepath.Join(n.dir, e.Name()), device) {
			t.Errorf("%s is there, it should lead to %v (wanted: %v)", e.Name(), device, wanted)
		}
	}
	if len(entries) < len(names) {
		t.Errorf("%d nodes, want %v", len(entries), names)
	}
}

func TestNodeIsMadeWithoutUdev(t *testing.T) {
	n := testNodes(t)
	if err := n.appear("vol", one, true); err != nil {
		t.Fatal(err)
	}
	n.want(t, map[string]DeviceNumber{"vol": one})
}

func TestNodeOfAnotherDeviceIsReplaced(t *testing.T) {
	n := testNodes(t)
	n.mknod(t, "vol", other)
	if err := n.appear("vol", one, false); err != nil {
		t.Fatal(err)
	}
	n.want(t, map[string]DeviceNumber{"vol": one})
}

func TestNodeIsAwaitedFromUdev(t *testing.T) {
	n := testNodes(t).withUdev(t)
	made := make(chan error)
	go func() {
		time.Sleep(30 * time.Millisecond)
		made <- errors.Join(
			os.MkdirAll(n.dir, 0o700),
			unix.Mknod(filepath.Join(n.dir, "../dm-1"), unix.S_IFBLK|0o600, int(one)),
			os.Symlink("../dm-1", filepath.Join(n.dir, "vol")),
		)
	}()
	if err := n.appear("vol", one, true); err != nil {
		t.Fatal(err)
	}
	if err := <-made; err != nil {
		t.Fatalf("the node was not awaited: %v", err)
	}
	if link, err := os.Readlink(filepath.Join(n.dir, "vol")); err != nil || link != "../dm-1" {
		t.Errorf("udev's link became %q, %v", link, err)
	}
}

func TestNodeIsMadeIfUdevDoesNot(t *testing.T) {
	n := testNodes(t).withUdev(t)
	n.patience = 10 * time.Millisecond
	if err := n.appear("vol", one, true); err != nil {
		t.Fatal(err)
	}
	n.want(t, map[string]DeviceNumber{"vol": one})
}

// The socket alone is udev without the rules that make the links.
func TestUdevWithoutRulesIsNoUdev(t *testing.T) {
	n := testNodes(t)
	if err := os.WriteFile(n.socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n.udev() {
		t.Error("links were expected of rules that are not there")
	}
}

func TestNodeVanishes(t *testing.T) {
	n := testNodes(t)
	n.mknod(t, "vol", one)
	n.mknod(t, "other", other)
	if err := n.vanish("vol", one, true); err != nil {
		t.Fatal(err)
	}
	n.want(t, map[string]DeviceNumber{"other": other})
	if err := n.vanish("vol", one, true); err != nil {
		t.Errorf("a node that is gone already: %v", err)
	}
}

func TestDanglingLinkVanishes(t *testing.T) {
	n := testNodes(t)
	n.mknod(t, "other", other)
	if err := os.Symlink("../dm-1", filepath.Join(n.dir, "vol")); err != nil {
		t.Fatal(err)
	}
	if err := n.vanish("vol", one, true); err != nil {
		t.Fatal(err)
	}
	n.want(t, map[string]DeviceNumber{"other": other})
}

func TestNodeOfAnotherDeviceStays(t *testing.T) {
	n := testNodes(t)
	n.mknod(t, "vol", other)
	if err := n.vanish("vol", one, true); err != nil {
		t.Fatal(err)
	}
	n.want(t, map[string]DeviceNumber{"vol": other})
}

func TestControlNodeIsMade(t *testing.T) {
	n := testNodes(t)
	if err := os.WriteFile(n.misc, []byte("234 btrfs-control\n236 device-mapper\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.dir, unix.DM_CONTROL_NODE)
	if err := n.makeControl(path); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(10, 236) {
		t.Errorf("mode %o, number %#x, %v", st.Mode, st.Rdev, err)
	}
}

func TestMissingDeviceMapper(t *testing.T) {
	n := testNodes(t)
	for name, misc := range map[string]string{"none": "", "others": "234 btrfs-control\nnonsense\n"} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(n.misc, []byte(misc), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := n.openControl(); !errors.Is(err, ErrNoDeviceMapper) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A node that leads nowhere is what a system without the driver has.
func TestControlNodeWithoutDriver(t *testing.T) {
	n := testNodes(t)
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const unusedMinor = 254
	if err := unix.Mknod(filepath.Join(n.dir, unix.DM_CONTROL_NODE), unix.S_IFCHR|0o600, int(unix.Mkdev(10, unusedMinor))); err != nil {
		t.Fatal(err)
	}
	if _, err := n.openControl(); !errors.Is(err, ErrNoDeviceMapper) {
		t.Errorf("got %v", err)
	}
}

func ExampleDeviceNumber() {
	fmt.Println(DeviceNumber(0xfd03), Path("pool-vol"))
	// Output: 253:3 /dev/mapper/pool-vol
}
