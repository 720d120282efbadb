//go:build testkernel

package dm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestKernelVersions(t *testing.T) {
	c := open(t)
	if v := c.Version(); !v.AtLeast(oldest) {
		t.Errorf("ioctl version %v", v)
	}
	list, err := c.TargetVersions()
	must(t, err)
	for _, want := range []string{"linear", "error", "striped", "zero", "thin", "thin-pool", "clone"} {
		at := slices.IndexFunc(list, func(v TargetVersion) bool { return v.Type == want })
		if at < 0 {
			t.Errorf("%s is not in %v", want, list)
			continue
		}
		if v, err := c.TargetVersion(want); err != nil || v != list[at].Version || v.Major == 0 {
			t.Errorf("%s: %v, %v, and %v in the list", want, v, err, list[at].Version)
		}
	}
	_, err = c.TargetVersion("nonesuch")
	wantErrno(t, err, unix.EINVAL)
}

func TestKernelLinear(t *testing.T) {
	disk, _ := disks(t)
	c := open(t)
	create(t, c, "lin", "DECANT-lin")
	want := []Target{linear(disk)}
	must(t, c.Load("lin", want))
	if info, err := c.Info("lin"); err != nil || info.ActiveTable || !info.InactiveTable {
		t.Errorf("loaded: %+v, %v", info, err)
	}
	must(t, c.Resume("lin"))

	must(t, pwrite(Path("lin"), mib, 0xa5))
	wantByte(t, disk, linearOffset+mib, 0xa5)
	wantByte(t, disk, mib, 0)

	info, err := c.Info("lin")
	must(t, err)
	if !info.ActiveTable || info.InactiveTable || info.Suspended || info.ReadOnly || info.TargetCount != 1 || info.OpenCount != 0 {
		t.Errorf("resumed: %+v", info)
	}
	if byUUID, err := c.InfoByUUID("DECANT-lin"); err != nil || byUUID != info {
		t.Errorf("by UUID: %+v, %v, want %+v", byUUID, err, info)
	}
	entry := Entry{Name: "lin", UUID: "DECANT-lin", Device: info.Device, EventNumber: info.EventNumber}
	if list, err := c.List(); err != nil || !slices.Contains(list, entry) {
		t.Errorf("%+v is not in %+v, %v", entry, list, err)
	}
	if !leadsTo(Path("lin"), info.Device) {
		t.Errorf("%s does not lead to %v", Path("lin"), info.Device)
	}
	var st unix.Stat_t
	must(t, unix.Stat(disk, &st))
	if deps, err := c.Deps("lin"); err != nil || !slices.Equal(deps, []DeviceNumber{DeviceNumber(st.Rdev)}) {
		t.Errorf("deps %v, %v, want %#x", deps, err, st.Rdev)
	}
	want[0].Params = fmt.Sprintf("%v %d", DeviceNumber(st.Rdev), linearOffset/SectorBytes) // as the kernel says it
	if table, err := c.Table("lin"); err != nil || !slices.Equal(table, want) {
		t.Errorf("table %v, %v, want %v", table, err, want)
	}
	must(t, c.Remove("lin"))
	wantGone(t, Path("lin"))
}

func TestKernelTargetsOfSeveralTypes(t *testing.T) {
	disk, _ := disks(t)
	c := open(t)
	path := activate(t, c, "mixed",
		Target{0, mibSectors, "zero", ""},
		Target{mibSectors, mibSectors, "error", ""},
		Target{2 * mibSectors, mibSectors, "linear", disk + " 0"},
	)
	wantByte(t, path, 0, 0)
	if _, err := pread(path, mib); !errors.Is(err, unix.EIO) {
		t.Errorf("reading the error target: %v", err)
	}
	must(t, pwrite(path, 2*mib, 0x77))
	wantByte(t, disk, 0, 0x77)

	status, err := c.Status("mixed")
	must(t, err)
	if len(status) != 3 || status[0] != zero(mib) || status[1].Type != "error" || status[2].Start != 2*mibSectors || status[2].Params != "" {
		t.Errorf("status %+v", status)
	}
	if quick, err := c.StatusNoFlush("mixed"); err != nil || !slices.Equal(quick, status) {
		t.Errorf("status without flush %+v, %v", quick, err)
	}
}

func TestKernelDeviceWithoutTable(t *testing.T) {
	c := open(t)
	create(t, c, "bare", "")
	if info, err := c.Info("bare"); err != nil || info.ActiveTable || info.InactiveTable || info.TargetCount != 0 {
		t.Errorf("info %+v, %v", info, err)
	}
	if table, err := c.Table("bare"); err != nil || len(table) != 0 {
		t.Errorf("table %v, %v", table, err)
	}
	if deps, err := c.Deps("bare"); err != nil || len(deps) != 0 {
		t.Errorf("deps %v, %v", deps, err)
	}
	wantErrno(t, c.Resume("bare"), unix.EINVAL)
	wantGone(t, Path("bare"))
}

// fault 50: I/O on a suspended device waits, a signal does not end it, Resume does.
// What a crash left suspended is found by its UUID.
func TestKernelFault50SuspendHoldsIO(t *testing.T) {
	disk, _ := disks(t)
	for name, o := range map[string]SuspendOptions{"flush": {}, "noflush": {NoFlush: true}, "nolockfs": {NoLockFS: true}} {
		t.Run(name, func(t *testing.T) {
			c := open(t)
			create(t, c, "held", "DECANT-held")
			must(t, c.Load("held", []Target{linear(disk)}))
			must(t, c.Resume("held"))
			must(t, pwrite(Path("held"), 0, 1))
			must(t, c.Suspend("held", o))
			must(t, c.Suspend("held", o))

			written := async(func() error { return pwrite(Path("held"), 0, 2) })
			select {
			case err := <-written:
				t.Errorf("a write to the suspended device returned: %v", err)
			case <-time.After(200 * time.Millisecond):
			}
			wantByte(t, disk, linearOffset, 1)

			again := open(t)
			info, err := again.InfoByUUID("DECANT-held")
			if err != nil || !info.Suspended {
				t.Fatalf("info %+v, %v", info, err)
			}
			must(t, again.Resume(info.Name))
			must(t, within(t, 5*time.Second, "write after resume", written))
			wantByte(t, disk, linearOffset, 2)
		})
	}
}

// A file system on the device is frozen by Suspend. With NoLockFS it is not: it goes
// on taking writes into its cache.
func TestKernelSuspendFreezesFileSystem(t *testing.T) {
	disk, _ := disks(t)
	for name, test := range map[string]struct {
		options SuspendOptions
		frozen  bool
	}{"lockfs": {SuspendOptions{}, true}, "no lockfs": {SuspendOptions{NoLockFS: true}, false}} {
		t.Run(name, func(t *testing.T) {
			c := open(t)
			path := activate(t, c, "fs", linear(disk))
			run(t, "mkfs.ext4", "-q", "-F", path)
			dir := t.TempDir()
			must(t, unix.Mount(path, dir, "ext4", 0, ""))
			defer func() { must(t, unix.Unmount(dir, 0)) }()
			f, err := os.Create(dir + "/x")
			must(t, err)
			defer f.Close()
			_, err = f.Write([]byte("x"))
			must(t, errors.Join(err, f.Sync())) // all that a further write needs is cached

			must(t, c.Suspend("fs", test.options))
			written := async(func() error { _, err := f.WriteAt([]byte("y"), 0); return err })
			frozen := false
			select {
			case err := <-written:
				must(t, err)
			case <-time.After(300 * time.Millisecond):
				frozen = true
			}
			must(t, c.Resume("fs"))
			if frozen {
				must(t, within(t, 5*time.Second, "write after resume", written))
			}
			if frozen != test.frozen {
				t.Errorf("frozen: %v", frozen)
			}
		})
	}
}

func TestKernelExchangeOfTables(t *testing.T) {
	first, second := disks(t)
	c := open(t)
	path := activate(t, c, "swap", linear(first))
	must(t, pwrite(path, 0, 1))
	must(t, c.Suspend("swap", SuspendOptions{}))
	must(t, c.Load("swap", []Target{linear(second)}))
	inactive, err := c.InactiveTable("swap")
	if err != nil || len(inactive) != 1 || inactive[0].Type != "linear" {
		t.Errorf("inactive table %v, %v", inactive, err)
	}
	if active, err := c.Table("swap"); err != nil || slices.Equal(active, inactive) {
		t.Errorf("active table %v, %v, inactive table %v", active, err, inactive)
	}
	must(t, c.Resume("swap"))
	must(t, pwrite(path, 0, 2))
	wantByte(t, first, linearOffset, 1)
	wantByte(t, second, linearOffset, 2)

	// Without a Suspend before it, Resume makes the exchange by itself.
	must(t, c.Load("swap", []Target{linear(first)}))
	must(t, c.ResumeNoFlush("swap"))
	wantByte(t, path, 0, 1)
}

func TestKernelClear(t *testing.T) {
	c := open(t)
	activate(t, c, "clear", zero(mib))
	must(t, c.Load("clear", []Target{zero(2 * mib)}))
	must(t, c.Clear("clear"))
	if info, err := c.Info("clear"); err != nil || info.InactiveTable || !info.ActiveTable {
		t.Errorf("info %+v, %v", info, err)
	}
	if table, err := c.InactiveTable("clear"); err != nil || len(table) != 0 {
		t.Errorf("inactive table %v, %v", table, err)
	}
}

func TestKernelReadOnly(t *testing.T) {
	disk, _ := disks(t)
	c := open(t)
	create(t, c, "ro", "")
	must(t, c.LoadReadOnly("ro", []Target{linear(disk)}))
	must(t, c.Resume("ro"))
	if info, err := c.Info("ro"); err != nil || !info.ReadOnly {
		t.Errorf("info %+v, %v", info, err)
	}
	if err := pwrite(Path("ro"), 0, 1); !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		t.Errorf("writing: %v", err)
	}
}

func TestKernelRename(t *testing.T) {
	c := open(t)
	create(t, c, "before", "DECANT-rename")
	create(t, c, "taken", "")
	must(t, c.Load("before", []Target{zero(mib)}))
	must(t, c.Resume("before"))
	wantErrno(t, c.Rename("before", "taken"), unix.EBUSY)
	t.Cleanup(func() { must(t, c.Remove("after")) })
	must(t, c.Rename("before", "after"))
	wantGone(t, Path("before"))
	wantByte(t, Path("after"), 0, 0)
	if info, err := c.InfoByUUID("DECANT-rename"); err != nil || info.Name != "after" {
		t.Errorf("info %+v, %v", info, err)
	}
	_, err := c.Info("before")
	wantErrno(t, err, unix.ENXIO)
}

// fault 98: who removes a device that somebody is looking at tries again, and never
// forces it.
func TestKernelFault98RemoveOfOpenDevice(t *testing.T) {
	c := open(t)
	path := activate(t, c, "busy", zero(mib))
	f, err := os.Open(path)
	must(t, err)
	wantErrno(t, c.Remove("busy"), unix.EBUSY)
	if info, err := c.Info("busy"); err != nil || info.OpenCount != 1 {
		t.Errorf("info %+v, %v", info, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	wantErrno(t, c.RemoveRetry(short, "busy"), unix.EBUSY)
	if !exists(path) {
		t.Error("the node is gone, the device is not")
	}
	time.AfterFunc(200*time.Millisecond, func() { f.Close() })
	must(t, c.RemoveRetry(t.Context(), "busy"))
	wantGone(t, path)
}

func TestKernelDeferredRemove(t *testing.T) {
	c := open(t)
	path := activate(t, c, "later", zero(mib))
	f, err := os.Open(path)
	must(t, err)
	if deferred, err := c.RemoveDeferred("later"); err != nil || !deferred {
		t.Errorf("deferred: %v, %v", deferred, err)
	}
	if info, err := c.Info("later"); err != nil || !info.DeferredRemove {
		t.Errorf("info %+v, %v", info, err)
	}
	if _, err := f.Read(make([]byte, 512)); err != nil {
		t.Errorf("who has it open can still read: %v", err)
	}
	must(t, f.Close())
	if !eventually(5*time.Second, func() bool { _, err := c.Info("later"); return errors.Is(err, unix.ENXIO) }) {
		t.Error("the device outlived its last user")
	}

	activate(t, c, "now", zero(mib))
	if deferred, err := c.RemoveDeferred("now"); err != nil || deferred {
		t.Errorf("nobody has it open; deferred: %v, %v", deferred, err)
	}
}

// fault 52: names and UUIDs are taken once.
func TestKernelFault52Collisions(t *testing.T) {
	c := open(t)
	create(t, c, "one", "DECANT-one")
	_, err := c.Create("one", "")
	wantErrno(t, err, unix.EBUSY)
	_, err = c.Create("two", "DECANT-one")
	wantErrno(t, err, unix.EBUSY)
	_, err = c.Info("two")
	wantErrno(t, err, unix.ENXIO)
}

func TestKernelLongestNames(t *testing.T) {
	c := open(t)
	name, uuid := strings.Repeat("n", MaxNameBytes), strings.Repeat("u", MaxUUIDBytes)
	create(t, c, name, uuid)
	must(t, c.Load(name, []Target{zero(mib)}))
	must(t, c.Resume(name))
	if info, err := c.InfoByUUID(uuid); err != nil || info.Name != name || info.UUID != uuid {
		t.Errorf("info %+v, %v", info, err)
	}
	wantByte(t, Path(name), 0, 0)
}

func TestKernelMissingDevice(t *testing.T) {
	c := open(t)
	calls := map[string]func() error{
		"Info":             func() error { _, err := c.Info("none"); return err },
		"InfoByUUID":       func() error { _, err := c.InfoByUUID("none"); return err },
		"Load":             func() error { return c.Load("none", []Target{zero(mib)}) },
		"Clear":            func() error { return c.Clear("none") },
		"Suspend":          func() error { return c.Suspend("none", SuspendOptions{}) },
		"Resume":           func() error { return c.Resume("none") },
		"Remove":           func() error { return c.Remove("none") },
		"RemoveDeferred":   func() error { _, err := c.RemoveDeferred("none"); return err },
		"Rename":           func() error { return c.Rename("none", "other") },
		"Table":            func() error { _, err := c.Table("none"); return err },
		"Status":           func() error { _, err := c.Status("none"); return err },
		"Deps":             func() error { _, err := c.Deps("none"); return err },
		"Message":          func() error { _, err := c.Message("none", 0, "x"); return err },
		"WaitEvent":        func() error { _, err := c.WaitEvent("none", 0); return err },
		"WaitEventContext": func() error { _, err := c.WaitEventContext(t.Context(), "none", 0); return err },
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { wantErrno(t, call(), unix.ENXIO) })
	}
}

func TestKernelRefusedTables(t *testing.T) {
	c := open(t)
	create(t, c, "refused", "")
	for name, target := range map[string]Target{
		"unknown type":       {0, 8, "nonesuch", ""},
		"missing parameters": {0, 8, "linear", ""},
	} {
		t.Run(name, func(t *testing.T) { wantErrno(t, c.Load("refused", []Target{target}), unix.EINVAL) })
	}
	// The kernel says ENODEV or EINVAL, depending on its version; both mean it.
	if err := c.Load("refused", []Target{{0, 8, "linear", "/dev/nonesuch 0"}}); !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("a table over a device that is not there: %v", err)
	}
}

// More than fits into the first buffer.
func TestKernelLongAnswers(t *testing.T) {
	c := open(t)
	const devices, targets = 100, 600
	for i := range devices {
		create(t, c, fmt.Sprintf("many-%s-%d", strings.Repeat("x", 100), i), fmt.Sprintf("many-%s-%d", strings.Repeat("y", 100), i))
	}
	list, err := c.List()
	must(t, err)
	found := 0
	for _, entry := range list {
		if strings.HasPrefix(entry.Name, "many-") && strings.HasPrefix(entry.UUID, "many-") {
			found++
		}
	}
	if found != devices {
		t.Errorf("%d devices in the list, want %d", found, devices)
	}
	disk, _ := disks(t)
	var table []Target
	for i := range uint64(targets) {
		table = append(table, Target{8 * i, 8, "linear", fmt.Sprintf("%s %d", disk, 8*(targets-i))})
	}
	activate(t, c, "long", table...)
	if got, err := c.Table("long"); err != nil || len(got) != targets || got[targets-1].Start != 8*(targets-1) || !strings.HasSuffix(got[targets-1].Params, " 8") {
		t.Errorf("%d targets, %v", len(got), err)
	}
}

// Calls from several goroutines do not mix up their buffers.
func TestKernelConcurrentCalls(t *testing.T) {
	c := open(t)
	var running []<-chan error
	for g := range 8 {
		running = append(running, async(func() error {
			for i := range 10 {
				name, bytes := fmt.Sprintf("g%d-%d", g, i), uint64((g+1)*mib)
				_, err := c.Create(name, "")
				err = errors.Join(err, c.Load(name, []Target{zero(bytes)}), c.Resume(name))
				table, tableErr := c.Table(name)
				if err = errors.Join(err, tableErr); err == nil && (len(table) != 1 || table[0] != zero(bytes)) {
					err = fmt.Errorf("%s has table %v", name, table)
				}
				if err = errors.Join(err, c.Remove(name)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	for _, done := range running {
		if err := within(t, time.Minute, "calls", done); err != nil {
			t.Error(err)
		}
	}
}

func TestKernelCloseEndsUse(t *testing.T) {
	c, err := Open()
	must(t, err)
	must(t, c.Close())
	if _, err := c.List(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// A system without devtmpfs and without udev has no control node.
func TestKernelControlNodeIsMade(t *testing.T) {
	control := mapperDir + "/" + unix.DM_CONTROL_NODE
	must(t, os.Remove(control))
	c := open(t)
	if _, err := c.List(); err != nil {
		t.Error(err)
	}
	if !exists(control) {
		t.Errorf("%s was not made", control)
	}
}
