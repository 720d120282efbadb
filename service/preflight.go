package service

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/loopdev"
	"decant/region"
)

// record is what the journal keeps of the command that started the migration.
type record struct {
	Options
	// DestinationCreated: the migration made the destination, and may delete it
	// when it is given up.
	DestinationCreated bool `json:"destination_created"`
	// SourceSamples are what the source holds, if it is an export of an NBD server. With
	// DiscardSource they say nothing of hydrated regions until the migration has ended.
	SourceSamples []sourceSample `json:"source_samples,omitempty"`
	// Used: guests were let in while it hydrated, so that the destination may hold what
	// the source never held.
	Used bool `json:"used,omitempty"`

	// What follows is the manager's. A command that goes on with a migration by itself
	// takes Paused and Reverse back.
	Paused         bool   `json:"paused,omitempty"`  // by a user; not to be gone on with unasked
	Reverse        bool   `json:"reverse,omitempty"` // is to be brought back, which may not have begun
	Priority       int    `json:"priority,omitempty"`
	IdempotencyKey string `json:"idempotency_key,omitempty"`
}

// recordIn reads the record of the newest command from a journal.
func recordIn(j *journal.Journal) (r record, err error) {
	options, err := j.Options()
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(options, &r); err != nil {
		return r, fmt.Errorf("options in the journal: %w", err)
	}
	return r, nil
}

// checkFresh refuses a new migration that cannot end well.
func (a *attempt) checkFresh() error {
	if err := a.checkSource(); err != nil {
		return err
	}
	if err := a.checkDestination(); err != nil {
		return err
	}
	if a.destination == nil {
		return a.checkParent()
	}
	why, err := overlap(a.source.base, a.destination.base)
	if err != nil {
		return refuse(a.target.name, "it cannot be seen how the two ends relate", "", err)
	}
	if why != "" {
		return refuse(a.target.name, "source and destination lie on one another: "+why, "take another destination", nil)
	}
	return nil
}

func (a *attempt) checkSource() error {
	e := a.source
	if e.Bytes() == 0 {
		return refuse(e.name, "is empty, there is nothing to move", "check the path", nil)
	}
	if _, err := region.NewGeometry(e.Bytes(), a.plan.RegionBytes); err != nil {
		return refuse(e.name, "does not fit", "give --region-size", err)
	}
	if err := checkUnused(e, a.request.Options.DiscardSource); err != nil {
		return err
	}
	if err := a.checkOwned(); err != nil || !a.request.Options.DiscardSource {
		return err
	}
	if err := checkPlace(e); err != nil {
		return err
	}
	return checkPunch(e)
}

// checkOwned refuses to empty a file that is not this user's alone.
func (a *attempt) checkOwned() error {
	e, info := a.source, a.source.Info()
	switch {
	case !a.request.Options.DiscardSource:
		return nil
	case onFile(info) && info.Links > 1:
		return refuse(e.name, fmt.Sprintf("has %d names (hard links); emptying it would empty it under all of them", info.Links),
			"remove the other names (find -samefile), or leave off --discard-src", nil)
	case onFile(info) && os.Geteuid() != 0 && int(info.UID) != os.Geteuid():
		return refuse(e.name, "belongs to another user", "run as its owner or as root, or leave off --discard-src", nil)
	}
	return nil
}

// checkPlace refuses an end that any user could take away from under its name, and
// put something else there for the next run, or for whoever uses the result.
func checkPlace(e *end) error {
	if !onFile(e.Info()) {
		return nil
	}
	return checkDirectory(e.name, filepath.Dir(e.Info().BackingPath))
}

func checkDirectory(name, dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = unix.ENOTDIR
	}
	if err != nil {
		return refuse(name, "its directory cannot be used", "make the directory first", err)
	}
	if mode := info.Mode(); mode.Perm()&0o002 != 0 && mode&os.ModeSticky == 0 {
		return refuse(name, "any user may replace it: its directory "+dir+" is writable for all",
			"take that right away (chmod o-w), or let only owners remove files there (chmod +t)", nil)
	}
	return nil
}

// checkUnused refuses an end that somebody else has open. Readers matter only if
// the bytes are going to be taken from under them.
func checkUnused(e *end, alsoReaders bool) error {
	// A process that has just closed it can have left it open for a moment longer in
	// a child that it was starting.
	const attempts, pause = 10, 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		users, err := e.base.UsedBy()
		if err != nil {
			return refuse(e.name, "it cannot be seen who uses it", "", err)
		}
		matters := func(u loopdev.Use) bool { return u.Kind != loopdev.Reader || alsoReaders }
		i := slices.IndexFunc(users, matters)
		if i < 0 {
			return nil
		}
		if attempt == attempts {
			return refuse(e.name, "is in use: "+users[i].String(), "end that use first; a copy of bytes that change is worth nothing", nil)
		}
		time.Sleep(pause)
	}
}

// checkPunch tries on a file beside the source whether its space can be freed, and asks
// a device whether it takes discards.
func checkPunch(e *end) error {
	const hint = "leave off --discard-src, and remove it afterwards"
	if onFile(e.Info()) {
		if err := loopdev.ProbePunch(filepath.Dir(e.Info().BackingPath)); err != nil {
			return refuse(e.name, "its space cannot be freed while it is read", hint, err)
		}
		return nil
	}
	if err := checkDiscards(e); err != nil {
		return err
	}
	if e.base.Info().Kind != loopdev.Block {
		return nil // it says so itself
	}
	d, err := loopdev.BlockDeviceAt(e.base.Info().Dev)
	if err == nil && d.DiscardBytes == 0 {
		err = fmt.Errorf("the device takes no discards, or something below it does not: %w", loopdev.ErrCannotPunch)
	}
	if err != nil {
		return refuse(e.name, "its space cannot be freed while it is read", hint, err)
	}
	return nil
}

func (a *attempt) checkDestination() error {
	e := a.destination
	if e == nil {
		return nil
	}
	if err := checkUnused(e, true); err != nil {
		return err
	}
	if err := checkPlace(e); err != nil {
		return err
	}
	holds, err := e.HoldsData()
	if err != nil {
		return refuse(e.name, "it cannot be seen whether it holds data", "", err)
	}
	if holds && !a.request.Options.Overwrite {
		return refuse(e.name, "already holds data", "take another destination, or give --overwrite to lose that data", nil)
	}
	if e.Bytes() < a.source.Bytes() && e.kind != "file" {
		return refuse(e.name, fmt.Sprintf("has %d bytes, the source has %d", e.Bytes(), a.source.Bytes()), "take a larger destination", nil)
	}
	return nil
}

// checkParent refuses a place where no destination can be made.
func (a *attempt) checkParent() error {
	if a.target.pool != "" {
		return nil
	}
	dir := filepath.Dir(a.target.path)
	if err := checkDirectory(a.target.name, dir); err != nil {
		return err
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return refuse(a.target.name, "no destination can be made in "+dir, "take another place", err)
	}
	return nil
}

// checkResume refuses ends that are not what they were when the migration stopped.
func (a *attempt) checkResume() error {
	k := a.known
	if k.state.Direction == journal.Backward {
		return refuse(a.source.name, "is being brought back by migration "+k.id, "finish that with: migrate reverse "+k.id, nil)
	}
	if err := checkUnused(a.destination, true); err != nil {
		return err
	}
	if have, want := a.destination.Bytes(), k.superblock.Geometry.DeviceBytes(); have < want {
		return refuse(a.destination.name, fmt.Sprintf("has shrunk to %d bytes, migration %s needs %d", have, k.id, want), "give it its size back", nil)
	}
	if k.state.Phase == journal.Done {
		return a.checkRepeat()
	}
	if err := checkUnused(a.source, a.request.Options.DiscardSource); err != nil {
		return err
	}
	if err := a.checkOwned(); err != nil {
		return err
	}
	if a.request.Options.DiscardSource {
		if err := checkDiscards(a.source); err != nil {
			return err
		}
	}
	return a.checkUnchanged()
}

// checkUnchanged refuses a source that was written since the migration began: some
// regions were copied from before it, others would be from after it.
func (a *attempt) checkUnchanged() error {
	sb, e := a.known.superblock, a.source
	if have, want := e.Bytes(), sb.Geometry.DeviceBytes(); have != want {
		return refuse(e.name, fmt.Sprintf("has %d bytes, and had %d when migration %s began", have, want, sb.ID),
			"give it its old size and modification time back if you are sure that nothing else changed", nil)
	}
	changed, err := e.changedSince(*a.known, a.request.Options.DiscardSource)
	if err != nil {
		return refuse(e.name, "it cannot be seen whether it changed", "", err)
	}
	if !changed {
		return nil
	}
	if !onFile(e.Info()) {
		return a.known.refuseOther(e)
	}
	kept := time.Unix(0, sb.Source.ModifiedNanoseconds)
	return refuse(e.name, fmt.Sprintf("was modified since migration %s began (at %s); nothing was changed",
		sb.ID, e.Info().Modified.Format(time.DateTime)),
		fmt.Sprintf("if you are sure that no byte of it changed: touch -d @%d.%09d %s; else give the migration up with: migrate reverse %s",
			kept.Unix(), kept.Nanosecond(), e.Info().BackingPath, sb.ID), nil)
}

// checkRepeat judges a request for a migration that has ended.
func (a *attempt) checkRepeat() error {
	if a.request.Options.DiscardSource && !a.known.record.DiscardSource {
		return refuse(a.source.name, fmt.Sprintf("was migrated to %s by %s, and kept", a.target.name, a.known.id),
			"check the destination (migrate verify "+a.known.id+") and remove the source yourself", nil)
	}
	return nil
}
