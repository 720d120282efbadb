package testkernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const diskBytes = 64 << 20

// One boot answers several questions about the inside: a line of output for each.
func TestInside(t *testing.T) {
	t.Parallel()
	const script = `
		echo "job $DECANT_TEST_KERNEL $EXTRA"
		echo "disks $DECANT_TEST_DISKS"
		for d in $DECANT_TEST_DISKS; do echo "$d $(blockdev --getsize64 $d)"; done
		touch /usr/written 2>/dev/null || echo "usr read-only"
		touch "$TMPDIR/x" /run/x /mnt/x /var/lib/x ./x && echo "scratch writable"
		awk '$2 == ENVIRON["TMPDIR"] { print "temporary", $3 }' /proc/mounts
		ls /sys/module | grep -x -e dm_thin_pool -e dm_clone -e nbd -e loop | xargs echo modules
		ls /dev/mapper | xargs echo mapper
		vgs --noheadings && echo "lvm runs"
		seq 100000 | tail -1
		echo "to standard error" >&2
		exit 7
	`
	m := Boot(t, Config{
		Script: script, Env: []string{"EXTRA=it's set"},
		Disks: []string{NewDisk(t, diskBytes), NewDisk(t, 2*diskBytes)},
	})
	v := m.Wait()
	if v.ExitCode != 7 {
		t.Errorf("exit code %d, want 7", v.ExitCode)
	}
	for _, want := range []string{
		"job 1 it's set",
		"disks /dev/ubda /dev/ubdb",
		fmt.Sprintf("/dev/ubda %d", diskBytes),
		fmt.Sprintf("/dev/ubdb %d", 2*diskBytes),
		"usr read-only",
		"scratch writable",
		"temporary tmpfs",
		"modules dm_clone dm_thin_pool loop nbd",
		"mapper control",
		"lvm runs",
		"100000",
		"to standard error",
	} {
		if !strings.Contains("\n"+v.Output, "\n"+want+"\n") {
			t.Errorf("no line %q inside", want)
		}
	}
	if t.Failed() {
		t.Logf("output:\n%s", v.Output)
	}
	t.Logf("booted in %v, powered off after %v", v.Boot, v.Total)
}

// What was synced survives a power cut; what was only written is lost, because the
// machine's memory is.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	disk := NewDisk(t, diskBytes)
	m := Boot(t, Config{Disks: []string{disk}, Script: `
		mkfs.ext4 -q /dev/ubda && mount /dev/ubda /mnt && echo kept >/mnt/synced && sync /mnt/synced /mnt
		echo lost >/mnt/written
		echo "ready to die"
		while :; do sleep 1; done
	`})
	m.WaitOutput(`ready to die`)
	m.PowerCut()
	if code, err := m.verdict(); err == nil {
		t.Errorf("a machine without power ended with code %d", code)
	}

	again := Boot(t, Config{Disks: []string{disk}, Script: `
		mount /dev/ubda /mnt && cd /mnt && cat synced && { cat written 2>/dev/null || echo gone; }
	`})
	if v := again.Wait(); v.ExitCode != 0 || v.Output != "kept\ngone\n" && v.Output != "kept\n" {
		t.Errorf("after the power cut: code %d, output %q", v.ExitCode, v.Output)
	}
}

// A machine that goes away before its job has ended has no verdict, however much of
// the output looks well.
func TestNoVerdict(t *testing.T) {
	t.Parallel()
	m := Boot(t, Config{Script: `echo "all is well"; echo o >/proc/sysrq-trigger; sleep 60`, Modules: []string{}})
	<-m.ended
	if m.Output() != "all is well\n" {
		t.Errorf("output %q", m.Output())
	}
	if v, err := m.wait(); err == nil {
		t.Errorf("verdict %d", v.ExitCode)
	}
}

func TestTimeoutCutsThePower(t *testing.T) {
	t.Parallel()
	m := Boot(t, Config{Script: `echo up; sleep 60`, Modules: []string{}})
	m.WaitOutput("up")
	m.kill(true)
	if _, err := m.wait(); err == nil || !strings.Contains(err.Error(), "did not end within") {
		t.Errorf("verdict %v", err)
	}
	if err := m.cmd.Process.Signal(os.Signal(os.Kill)); err == nil {
		t.Error("the kernel's process is still there")
	}
}

func TestPrepareRefuses(t *testing.T) {
	file := NewDisk(t, 1)
	tests := map[string]struct {
		config Config
		want   string
	}{
		"no job":         {Config{}, "one of Command and Script"},
		"two jobs":       {Config{Command: []string{"true"}, Script: "true"}, "one of Command and Script"},
		"too many disks": {Config{Script: "true", Disks: make([]string, 17)}, "at most 16"},
		"disk missing":   {Config{Script: "true", Disks: []string{file + "x"}}, "no such file"},
		"no disk":        {Config{Script: "true", Disks: []string{t.TempDir()}}, "no regular file"},
		"unknown module": {Config{Script: "true", Modules: []string{"dm-nothing"}}, "no module dm-nothing"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := &Machine{t: t, dir: exchangeDir(t)}
			if err := m.prepare(test.config); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestModulesComeInOrderOfNeed(t *testing.T) {
	paths, err := findModules(kernelProgram, []string{"dm-thin-pool", "ext4", "dm-clone"})
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for i, path := range paths {
		at[strings.TrimSuffix(filepath.Base(path), ".ko")] = i + 1
	}
	if len(at) != len(paths) {
		t.Errorf("a module comes twice: %v", paths)
	}
	if at["ext4"] != 0 {
		t.Errorf("ext4 is part of the kernel: %v", paths)
	}
	for _, pair := range [][2]string{
		{"dm-mod", "dm-bufio"},
		{"dm-bufio", "dm-persistent-data"},
		{"dm-persistent-data", "dm-thin-pool"},
		{"dm-bio-prison", "dm-thin-pool"},
		{"dm-persistent-data", "dm-clone"},
	} {
		if at[pair[0]] == 0 || at[pair[0]] > at[pair[1]] {
			t.Errorf("%s must come before %s: %v", pair[0], pair[1], paths)
		}
	}
}
