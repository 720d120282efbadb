package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"decant/integration/faultfs"
)

// awaitReason waits until the service says why a migration does not move, and how long
// that has taken.
func (v *hydratedSite) awaitReason(id, words string) time.Duration {
	v.Helper()
	begun := time.Now()
	v.until(id, "it says "+words, func(m migrationState) bool { return strings.Contains(m.Reason, words) })
	return time.Since(begun)
}

// R13, fault 36: a file system without space is named within seconds, and the migration
// goes on by itself when there is some again.
func TestR13ServiceWaitsForSpace(t *testing.T) {
	v := newHydratedSite(t)
	dir := newFileSystem(t, "ext4", 320*mib)
	made := makeImage(t, v.path("image"), 48*mib, 171, solid)
	id := v.post(v.path("image"), dir+"/moved", "16MiB/s")
	v.until(id, "something was discarded", func(m migrationState) bool { return m.Discarded > 0 })
	release := fillUp(t, dir, 0)
	if took := v.awaitReason(id, "space"); took > 5*time.Second {
		t.Errorf("the reason took %s", took)
	}
	m := v.until(id, "it stops", func(m migrationState) bool { return m.State == "stopped" })
	if m.Reason == "" || m.Hint == "" || m.RetryAt == "" {
		t.Errorf("%+v", m)
	}
	v.awaitReason(id, "space")
	release()
	v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
	wantWhole(t, dir+"/moved", made)
	wantEmptied(t, v.path("image"), made)
}

// R13, fault 25: an operation that does not return holds up its own migration only, and
// the service says so within seconds; another SIGTERM ends it at once.
func TestR13HangingMedium(t *testing.T) {
	for op, name := range map[faultfs.Op]string{faultfs.Read: "image", faultfs.Write: "moved", faultfs.Sync: "moved"} {
		t.Run(fmt.Sprintf("%s of %s", op, name), func(t *testing.T) {
			v := newHydratedSite(t)
			f, dir, backing := faulty(t)
			made := makeImage(t, backing+"/image", 24*mib, 172, solid)
			other := makeImage(t, v.path("other"), 8*mib, 173, mixed)
			injection := f.Inject(faultfs.Fault{Op: op, Name: name, Skip: 4, Delay: time.Hour})
			id := v.post(dir+"/image", dir+"/moved", "unlimited")
			for begun := time.Now(); injection.Hits() == 0; time.Sleep(10 * time.Millisecond) {
				if time.Since(begun) > patience {
					t.Fatal("the fault was never met")
				}
			}
			if took := v.awaitReason(id, "nothing has moved"); took > 5*time.Second {
				t.Errorf("the reason took %s", took)
			}
			whole := v.post(v.path("other"), v.path("other.moved"), "unlimited")
			v.until(whole, "it is done", func(m migrationState) bool { return m.State == "done" })
			wantWhole(t, v.path("other.moved"), other)
			begun := time.Now()
			v.daemon.signal(syscall.SIGTERM)
			time.Sleep(200 * time.Millisecond)
			for !v.daemon.hasEnded() && time.Since(begun) < 10*time.Second {
				_ = v.daemon.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
				time.Sleep(50 * time.Millisecond)
			}
			if o := v.daemon.wait(); o.code != 3 && o.code != 0 {
				t.Errorf("%v", o)
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("it took %s to end", took)
			}
			injection.Heal()
			v.serve()
			v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
			wantWhole(t, backing+"/moved", made)
			wantEmptied(t, backing+"/image", made)
		})
	}
}

// Errors that can pass are tried again, and do no harm; the source that changes is not.
func TestR13ServiceTriesAgain(t *testing.T) {
	v := newHydratedSite(t)
	f, dir, backing := faulty(t)
	made := makeImage(t, backing+"/image", 16*mib, 174, solid)
	injection := f.Inject(faultfs.Fault{Op: faultfs.Write, Name: "moved", Skip: 8, Errno: syscall.EIO})
	id := v.post(dir+"/image", dir+"/moved", "unlimited")
	m := v.until(id, "it stops", func(m migrationState) bool { return m.State == "stopped" })
	if m.Reason == "" || m.Hint == "" || m.RetryAt == "" {
		t.Errorf("%+v", m)
	}
	injection.Heal()
	v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
	wantWhole(t, backing+"/moved", made)

	makeImage(t, v.path("changing"), 16*mib, 175, solid)
	id = v.post(v.path("changing"), v.path("changed"), "2MiB/s")
	v.until(id, "something was discarded", func(m migrationState) bool { return m.Discarded > 0 })
	overwrite(t, v.path("changing"), 15*mib, []byte("somebody else"))
	m = v.until(id, "it stops", func(m migrationState) bool { return m.State == "stopped" })
	if m.RetryAt != "" || m.Reason == "" {
		t.Errorf("%+v", m)
	}
}
