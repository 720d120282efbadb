package service

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/journal"
	"decant/loopdev"
	"decant/nbd"
)

// The engines: who copies while a live device is in use.
const (
	EngineAuto   = "auto"
	EngineUser   = "user"
	EngineKernel = "kernel"
)

// livePattern is what a live device may be called: what needs no quoting anywhere.
var livePattern = regexp.MustCompile(`^[A-Za-z0-9._][A-Za-z0-9._-]*$`)

// checkLiveOptions says what makes no sense.
func (o Options) checkLiveOptions() error {
	wrong := func(format string, args ...any) error {
		return &Error{Outcome: Usage, Problem: fmt.Sprintf(format, args...)}
	}
	switch o.Engine {
	case "", EngineAuto, EngineUser:
	case EngineKernel:
		if o.Live == "" {
			return wrong("--engine kernel needs --live")
		}
	default:
		return wrong("--engine %.100q is none of auto, user and kernel", o.Engine)
	}
	switch {
	case o.Live == "":
		return nil
	case !livePattern.MatchString(o.Live) || dm.CheckName(o.Live) != nil:
		return wrong("--live %.150q is no name for a device: it has up to %d letters, digits, dots, hyphens and underscores, and does not begin with a hyphen",
			o.Live, dm.MaxNameBytes)
	case o.Export != "":
		return wrong("--live and --export exclude one another: the kernel keeps in memory what a client of the socket would change")
	case o.LiveTimeout < 0 || o.LiveTimeout > maxLiveTimeout:
		return wrong("--live-timeout %s is not from 0s to %s", o.LiveTimeout, maxLiveTimeout)
	}
	return nil
}

// checkLive refuses what a live device could not be made for, or not end on.
func (a *attempt) checkLive() error {
	name := a.request.Options.Live
	if os.Geteuid() != 0 {
		return refuse(name, "only root can make a device", "run as root, or use the volume by a socket: --export", nil)
	}
	if err := a.checkLiveDestination(); err != nil {
		return err
	}
	d, err := openLiveDevice(name, a.plan.ID)
	if err != nil {
		return refuse(name, "the kernel has no device-mapper that can be used",
			"load it with: modprobe dm-mod; or use the volume by a socket: --export", err)
	}
	defer func() { _ = d.close() }() // it has only looked
	if _, err := d.control.TargetVersion("linear"); err != nil {
		return refuse(name, "the device-mapper has no linear target", "load it with: modprobe dm-mod", err)
	}
	if err := a.checkLiveName(d); err != nil {
		return err
	}
	return a.checkLivePlaces(d)
}

// checkLiveName refuses a name that is somebody else's, and another name for a device
// that is there.
func (a *attempt) checkLiveName(d *liveDevice) error {
	if a.known != nil {
		info, found, err := d.find()
		if err != nil {
			return refuse(d.name, "it cannot be seen whether the device is there", "", err)
		}
		if found && info.Name != d.name && info.Name != hiddenName(d.id) {
			return refuse(d.name, fmt.Sprintf("migration %s is in use as %s", d.id, dm.Path(info.Name)), "give --live "+info.Name, nil)
		}
		if found && info.Name == d.name {
			return nil
		}
	}
	info, err := d.control.Info(d.name)
	if err == nil {
		return refuse(dm.Path(d.name), fmt.Sprintf("there is a device of that name (UUID %q)", info.UUID),
			"take another name, or remove that device: dmsetup remove "+d.name, nil)
	}
	if !errors.Is(err, unix.ENXIO) {
		return refuse(d.name, "it cannot be seen whether the name is free", "", err)
	}
	if _, err := os.Lstat(dm.Path(d.name)); !errors.Is(err, fs.ErrNotExist) {
		return refuse(dm.Path(d.name), "something else is there", "take another name, or remove it", err)
	}
	return nil
}

// checkLiveDestination refuses a destination that no device can end on.
func (a *attempt) checkLiveDestination() error {
	e := a.destination
	if e == nil {
		return nil
	}
	if e.base.Info().Kind == loopdev.Loop {
		return refuse(e.name, "is a loop device of "+e.base.Info().BackingPath+", and its cache would show old bytes at the end",
			"detach it, and name the file as the destination; or use the volume by a socket: --export", nil)
	}
	return checkLiveSize(e, a.source.Bytes())
}

// checkLiveSize refuses a volume that has no whole number of the destination's blocks:
// its last bytes would be cut off.
func checkLiveSize(e *end, bytes int64) error {
	if unit := liveUnit(e); bytes/dm.SectorBytes*dm.SectorBytes%unit != 0 {
		return refuse(e.name, fmt.Sprintf("has blocks of %d bytes, and %d bytes are no multiple of that: a device could not show all of them", unit, bytes),
			"take a destination with smaller blocks", nil)
	}
	if bytes < liveUnit(e) {
		return refuse(e.name, fmt.Sprintf("%d bytes are no whole block", bytes), "leave off --live", nil)
	}
	return nil
}

// checkLivePlaces refuses to keep anything on the live device that this process needs in
// order to serve it (see doc.go, Deadlocks). There can only be something on it when it
// was in use before.
func (a *attempt) checkLivePlaces(d *liveDevice) error {
	info, found, err := d.find()
	if err != nil || !found || a.known == nil {
		return err
	}
	for _, p := range []struct{ path, what string }{
		{a.s.stateDir, "the journal of its migration"},
		{"/proc/self/exe", "this program"},
		{"/proc/self/fd/1", "its standard output"},
		{"/proc/self/fd/2", "its messages"},
		{"/proc/self/cwd", "its working directory"},
	} {
		var stat unix.Stat_t
		if err := unix.Stat(p.path, &stat); err != nil {
			continue // it is not there, or a pipe without a place
		}
		if stat.Dev == uint64(info.Device) || stat.Mode&unix.S_IFMT == unix.S_IFBLK && stat.Rdev == uint64(info.Device) {
			return refuse(dm.Path(info.Name), p.what+" is on it: who serves a device must not wait for it",
				"keep that on another device", nil)
		}
	}
	return nil
}

// checkLeftLive refuses to go on without the device that guests may still use. Without
// users it is taken away.
func (a *attempt) checkLeftLive() error {
	if a.known == nil || a.known.record.Live == "" || a.request.Options.Live != "" {
		return nil
	}
	info, found, err := leftLive(a.known.id)
	switch {
	case err != nil:
		return refuse(a.known.record.Live, "it cannot be seen whether the device is there", "", err)
	case !found || a.known.state.Phase == journal.Done:
		return nil
	}
	return refuse(a.source.name, "its migration "+a.known.id+" is in use as "+dm.Path(info.Name),
		"give --live "+info.Name+"; or end that use, and take the device away: dmsetup remove "+info.Name, nil)
}

// leftLive looks for the device of a migration.
func leftLive(id string) (info dm.Info, found bool, err error) {
	d, err := openLiveDevice("", id)
	if errors.Is(err, dm.ErrNoDeviceMapper) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return dm.Info{}, false, nil
	}
	if err != nil {
		return dm.Info{}, false, err
	}
	defer func() { _ = d.close() }() // it has only looked
	return d.find()
}

// checkKernelClient refuses the user engine where the kernel cannot be a client.
func checkKernelClient(name string) error {
	if _, err := nbd.KernelConnected(0); errors.Is(err, nbd.ErrNoKernel) {
		return refuse(name, "the kernel cannot use what this program serves: it has no network block devices",
			"load them with: modprobe nbd; or use the volume by a socket: --export", nil)
	}
	return nil
}
