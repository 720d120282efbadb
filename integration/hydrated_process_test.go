package integration

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fault 64: SIGTERM has every migration commit, ends the service within seconds, and the
// next one goes on from there.
func TestFault64ServiceIsToldToEnd(t *testing.T) {
	v := newHydratedSite(t, "--running-per-disk=3")
	made := map[string]image{}
	for i := range 3 {
		name := fmt.Sprintf("image%d", i)
		made[name] = makeImage(t, v.path(name), 16*mib, 80+uint64(i), solid)
		id := v.post(v.path(name), v.path(name+".moved"), "2MiB/s")
		v.until(id, "something was discarded", func(m migrationState) bool { return m.Discarded > 0 })
	}
	begun := time.Now()
	v.daemon.signal(syscall.SIGTERM)
	if o := v.daemon.wait(); o.code != 0 {
		t.Errorf("ended with %v", o)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %s to end", took)
	}
	// Whatever was copied is committed and discarded: nothing is on both ends.
	for name, was := range made {
		left, moved := allocated(t, v.path(name)), allocated(t, v.path(name+".moved"))
		if extra := left + moved - was.dataBytes; extra > mib {
			t.Errorf("%s: %d bytes are on both ends", name, extra)
		}
	}
	v.serve()
	list := v.list()
	if len(list) != 3 {
		t.Fatalf("%+v", list)
	}
	for _, m := range list {
		v.ask(200, "PATCH", "/v1/migrations/"+m.ID, `{"bwlimit":"unlimited"}`)
		v.until(m.ID, "it is done", func(m migrationState) bool { return m.State == "done" })
	}
	for name, was := range made {
		wantWhole(t, v.path(name+".moved"), was)
		wantEmptied(t, v.path(name), was)
	}
}

// fault 64: the second SIGTERM ends the service at once, also while a medium holds the
// first one up.
func TestFault64SecondSignalEndsTheServiceAtOnce(t *testing.T) {
	v := newHydratedSite(t)
	made := makeImage(t, v.path("image"), 16*mib, 84, solid)
	id := v.post(v.path("image"), v.path("moved"), "1MiB/s")
	v.until(id, "something was discarded", func(m migrationState) bool { return m.Discarded > 0 })
	v.daemon.signal(syscall.SIGTERM)
	v.daemon.signal(syscall.SIGTERM)
	if o := v.daemon.wait(); o.code != 3 && o.code != 0 { // it may have been quick enough
		t.Errorf("ended with %v", o)
	}
	v.serve()
	v.ask(200, "PATCH", "/v1/migrations/"+id, `{"bwlimit":"unlimited"}`)
	v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
	wantWhole(t, v.path("moved"), made)
}

// fault 60: a second service on the same directory says who has it, and ends.
func TestFault60SecondService(t *testing.T) {
	v := newHydratedSite(t)
	second := v.launch(exec.Command(hydratedPath, "--config", os.DevNull, "--state-dir", v.state, "--socket", v.socket+"2", "--group="))
	o := second.wait()
	if o.code != 4 || !strings.Contains(o.stderr, fmt.Sprintf("process %d", v.daemon.cmd.Process.Pid)) {
		t.Errorf("%v", o)
	}
	v.ask(200, "GET", "/healthz", "")
}

// Paused by a user, a migration stays paused, whatever becomes of the service; a command
// that is no longer there does not end it either.
func TestPauseIsKeptOverAKill(t *testing.T) {
	v := newHydratedSite(t)
	made := makeImage(t, v.path("image"), 16*mib, 85, solid)
	id := v.post(v.path("image"), v.path("moved"), "2MiB/s")
	v.until(id, "something was discarded", func(m migrationState) bool { return m.Discarded > 0 })
	v.ask(200, "POST", "/v1/migrations/"+id+"/pause", "")
	for range 2 {
		v.daemon.signal(syscall.SIGKILL)
		v.daemon.wait()
		v.serve()
		time.Sleep(500 * time.Millisecond)
		if m := v.migration(id); m.State != "paused" {
			t.Errorf("%+v", m)
		}
	}
	v.ask(200, "POST", "/v1/migrations/"+id+"/resume", "")
	v.ask(200, "PATCH", "/v1/migrations/"+id, `{"bwlimit":"unlimited"}`)
	v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
	wantWhole(t, v.path("moved"), made)
}

// A command that would stop the service along with its migration is refused.
func TestPauseByACommandDoesNotEndTheService(t *testing.T) {
	v := newHydratedSite(t)
	makeImage(t, v.path("image"), 16*mib, 86, solid)
	id := v.post(v.path("image"), v.path("moved"), "1MiB/s")
	v.until(id, "it runs", func(m migrationState) bool { return m.State == "running" })
	o := v.run("--service", v.socket+".none", "pause", id)
	if o.code == 0 {
		t.Errorf("%v", o)
	}
	if m := v.migration(id); m.State != "running" {
		t.Errorf("%+v", m)
	}
	if v.daemon.hasEnded() {
		t.Error("the service has ended")
	}
}

// Two migrations whose ends are on one disk take turns; one on another disk does not wait.
func TestMigrationsOnOneDiskTakeTurns(t *testing.T) {
	memory := t.TempDir()
	do(t, "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", memory)
	t.Cleanup(func() { unmount(t, memory) })
	v := newHydratedSite(t)
	var ids []string
	for i, dir := range []string{v.dir, v.dir, memory, memory} {
		source := filepath.Join(dir, fmt.Sprintf("image%d", i))
		makeImage(t, source, 12*mib, 90+uint64(i), solid)
		ids = append(ids, v.post(source, source+".moved", "3MiB/s"))
	}
	most, both := map[string]int{}, false
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		running, done := map[string]int{}, 0
		for _, m := range v.list() { // all at one moment
			disk := []string{"disk", "disk", "memory", "memory"}[slices.Index(ids, m.ID)]
			switch m.State {
			case "running":
				running[disk]++
			case "done":
				done++
			}
		}
		for disk, n := range running {
			most[disk] = max(most[disk], n)
		}
		both = both || running["disk"] > 0 && running["memory"] > 0
		if done == len(ids) {
			break
		}
		if time.Since(begun) > patience {
			t.Fatal("they do not end")
		}
	}
	if most["disk"] != 1 || most["memory"] != 1 || !both {
		t.Errorf("%v ran at a time, and on both at once: %t", most, both)
	}
}

// SIGKILL at random moments while migrations begin, pause, are tuned, brought back and
// end: in the end all of them are whole where they should be.
func TestServiceKilledAtRandomWhileItIsSteered(t *testing.T) {
	rounds := 5
	if nightly() {
		rounds = 100
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	v := newHydratedSite(t, "--running-per-disk=4")
	made, ids := map[string]image{}, map[string]string{}
	for i := range 4 {
		name := fmt.Sprintf("image%d", i)
		made[name] = makeImage(t, v.path(name), 12*mib, 100+uint64(i), mixed)
		ids[name] = v.post(v.path(name), v.path(name+".moved"), "2MiB/s")
	}
	for range rounds {
		for _, id := range ids {
			action := []string{"pause", "resume", "verify", "cancel"}[rng.IntN(4)]
			v.tryAsk("POST", "/v1/migrations/"+id+"/"+action)
		}
		time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
		v.daemon.signal(syscall.SIGKILL)
		v.daemon.wait()
		v.serve()
	}
	reversed := "image3"
	v.tryAsk("POST", "/v1/migrations/"+ids[reversed]+"/reverse")
	v.daemon.signal(syscall.SIGKILL)
	v.daemon.wait()
	v.serve()
	for name, id := range ids {
		v.tryAsk("PATCH", "/v1/migrations/"+id)
		v.tryAsk("POST", "/v1/migrations/"+id+"/resume")
		m := v.until(id, "it has ended", func(m migrationState) bool {
			return m.State == "done" || m.State == "cancelled" || m.State == "reversed"
		})
		switch m.State {
		case "done":
			wantWhole(t, v.path(name+".moved"), made[name])
			wantEmptied(t, v.path(name), made[name])
		default:
			wantWhole(t, v.path(name), made[name])
			if exists(v.path(name + ".moved")) {
				t.Errorf("%s is %s, and its destination is still there", name, m.State)
			}
		}
		if name == reversed && m.State == "done" {
			t.Error("it was to be brought back")
		}
	}
}

// list is all migrations at one moment.
func (v *hydratedSite) list() []migrationState {
	v.Helper()
	var list struct{ Migrations []migrationState }
	if err := json.Unmarshal(v.ask(200, "GET", "/v1/migrations", ""), &list); err != nil {
		v.Fatal(err)
	}
	return list.Migrations
}

// tryAsk makes a request that may be refused: others are made at random, too.
func (v *hydratedSite) tryAsk(method, path string) {
	v.Helper()
	body := ""
	if method == "PATCH" {
		body = `{"bwlimit":"unlimited"}`
	}
	status, answer := v.request(method, path, body)
	if status >= 500 {
		v.Errorf("%s %s: status %d: %s", method, path, status, answer)
	}
}

// fault 94: no image of the service's memory is left behind, and no descriptor of its
// parent is kept open; fault 66: neither a closed pipe nor a limit on the size of files
// ends it.
func TestFault94And66WhatTheServiceInherits(t *testing.T) {
	v := newHydratedSite(t)
	pid := v.daemon.cmd.Process.Pid
	var core unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &core); err != nil || core.Cur != 0 || core.Max != 0 {
		t.Errorf("core dumps of up to %d bytes (%v)", core.Max, err)
	}
	v.daemon.signal(unix.SIGPIPE)
	v.daemon.signal(unix.SIGXFSZ)
	v.daemon.signal(unix.SIGHUP)
	made := makeImage(t, v.path("image"), 8*mib, 87, solid)
	// Writing beyond 4 MiB fails now, on the destination: the migration stops, and the
	// service does not.
	limit := unix.Rlimit{Cur: 4 << 20, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	status, answer := v.request("POST", "/v1/migrations", fmt.Sprintf(`{"source":%q,"destination":%q,"options":{"discard_src":true}}`, v.path("image"), v.path("moved")))
	if status < 400 {
		var m migrationState
		if err := json.Unmarshal(answer, &m); err != nil {
			t.Fatal(err)
		}
		v.until(m.ID, "it stops", func(m migrationState) bool { return m.State == "stopped" && m.Reason != "" })
	}
	limit.Cur = unix.RLIM_INFINITY
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	id := v.post(v.path("image"), v.path("moved"), "unlimited")
	v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
	wantWhole(t, v.path("moved"), made)
	for _, dir := range []string{v.state, filepath.Dir(v.socket)} {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && path != v.socket && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("others can use %s: %s", path, info.Mode())
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// A volume that guests use over NBD is there again when the service is, and the migration
// ends when the last one has left.
func TestExportComesBackWithTheService(t *testing.T) {
	v := newHydratedSite(t)
	made := makeImage(t, v.path("image"), 16*mib, 88, solid)
	socket := v.socket + ".nbd"
	body := fmt.Sprintf(`{"source":%q,"destination":%q,"options":{"discard_src":true,"bwlimit":"1MiB/s","export":%q}}`, v.path("image"), v.path("moved"), socket)
	var m migrationState
	if err := json.Unmarshal(v.ask(202, "POST", "/v1/migrations", body), &m); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		awaitSocket(t, socket)
		do(t, "nbdinfo", "--size", "nbd+unix:///?socket="+socket)
		v.until(m.ID, "it runs", func(m migrationState) bool { return m.State == "running" })
		v.daemon.signal(syscall.SIGKILL)
		v.daemon.wait()
		v.serve()
	}
	v.ask(200, "PATCH", "/v1/migrations/"+m.ID, `{"bwlimit":"unlimited"}`)
	v.until(m.ID, "it is done", func(m migrationState) bool { return m.State == "done" })
	wantWhole(t, v.path("moved"), made)
}

func awaitSocket(t *testing.T, path string) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", path)
		if err == nil {
			_ = c.Close() // that it answers is all
			return
		}
		if time.Since(begun) > patience {
			t.Fatal(err)
		}
	}
}

// What a migration had open is closed when it has ended, however many there were.
func TestServiceLeavesNothingOpen(t *testing.T) {
	v := newHydratedSite(t, "--running-per-disk=4")
	descriptors := func() int {
		t.Helper()
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", v.daemon.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	v.ask(200, "GET", "/healthz", "")
	before := descriptors()
	var ids []string
	for i := range 20 {
		name := v.path(fmt.Sprintf("image%d", i))
		makeImage(t, name, 2*mib, 200+uint64(i), solid)
		ids = append(ids, v.post(name, name+".moved", "unlimited"))
	}
	for _, id := range ids {
		v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
	}
	if after := descriptors(); after > before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}
