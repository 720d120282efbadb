package thin

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakeLVM is LVM, played by a shell script.
func fakeLVM(t *testing.T, script string) lvm2 {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lvm"), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return lvm2{dirs: []string{filepath.Join(dir, "missing"), dir}, timeout: time.Minute}
}

// fault 93: nothing that an outsider could have put into the environment reaches LVM,
// but for what it needs to be the same LVM that the administrator has.
func TestFault93EnvironmentOfLVM(t *testing.T) {
	for name, value := range map[string]string{
		"LVM_SYSTEM_DIR": "/etc/otherlvm", "DM_DISABLE_UDEV": "1",
		"LVM_VG_NAME": "evil", "LVM_SUPPRESS_LOCKING_FAILURE_MESSAGES": "1", "DM_DEV_DIR": "/tmp/evil", "LD_PRELOAD": "", "LD_LIBRARY_PATH": "/tmp/evil",
		"PATH": os.Getenv("PATH") + ":/tmp/evil", "LANG": "de_DE.UTF-8", "IFS": "x", "HOME": "/tmp/evil",
	} {
		t.Setenv(name, value)
	}
	out, err := fakeLVM(t, "exec /usr/bin/env").run("lvs")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		got[name] = value
	}
	delete(got, "PWD") // of the shell
	delete(got, "_")
	want := map[string]string{
		"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1",
		"LVM_SYSTEM_DIR": "/etc/otherlvm", "DM_DISABLE_UDEV": "1",
	}
	if len(got) != len(want) {
		t.Errorf("the environment is %v", got)
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
}

func TestLVMIsNotInstalled(t *testing.T) {
	l := lvm2{dirs: []string{t.TempDir(), "/nowhere"}, timeout: time.Minute}
	_, err := l.volumes("vg")
	if !errors.Is(err, ErrNoLVM) || !strings.Contains(err.Error(), "install the package lvm2") {
		t.Error(err)
	}
}

// Its words are what tells people why.
func TestLVMFails(t *testing.T) {
	l := fakeLVM(t, `echo '{"report":[{"lv":[]}]}'; echo '  Volume group "vg" not found' >&2; echo '  Cannot process volume group vg' >&2; exit 5`)
	_, err := l.volumes("vg")
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), `lvm lvs: Volume group "vg" not found Cannot process volume group vg`) {
		t.Error(err)
	}
}

func TestLVMHangs(t *testing.T) {
	l := fakeLVM(t, "exec sleep 1000")
	l.timeout = 100 * time.Millisecond
	_, err := l.volumes("vg")
	if err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "did not end within 100ms") {
		t.Error(err)
	}
}

// fault 93: a name reaches LVM as one argument behind --, or not at all.
func TestFault93ArgumentsOfLVM(t *testing.T) {
	l := fakeLVM(t, `for a; do echo "$a" >&2; done; exit 3`)
	_, err := l.volumes("vg")
	if err == nil || !strings.HasSuffix(strings.Split(err.Error(), ";")[0], " -- vg") {
		t.Error(err)
	}
	if _, err := l.volumes("--config=x"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// fault 26: LVM looks at the group that it was asked about, and activates nothing to
// do so.
func TestFault26LooksAtOneGroup(t *testing.T) {
	l := fakeLVM(t, `for a; do last=$a; done; [ "$1 $last" = "lvs vg" ] || exit 9; cat <<'END'
`+reportOf(thinLine, poolLine)+`
END`)
	volumes, err := l.volumes("vg")
	if err != nil || len(volumes) != 2 {
		t.Errorf("%v, %v", volumes, err)
	}
}
