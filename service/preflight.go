package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"

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
	why, err := loopdev.Overlap(a.source.base, a.destination.base)
	if err != nil {
		return refuse(a.target.name, "it cannot be seen how the two ends relate", "", err)
	}
	if why != "" {
		return refuse(a.target.name, "source and destination lie on one another: "+why, "take another destination", nil)
	}
	return nil
}

func (a *attempt) checkSource() error {
	e, info := a.source, a.source.Info()
	if e.Bytes() == 0 {
		return refuse(e.name, "is empty, there is nothing to move", "check the path", nil)
	}
	if _, err := region.NewGeometry(e.Bytes(), a.request.Options.RegionBytes); err != nil {
		return refuse(e.name, "does not fit", "give --region-size", err)
	}
	if err := checkUnused(e, a.request.Options.DiscardSource); err != nil {
		return err
	}
	if !a.request.Options.DiscardSource {
		return nil
	}
	switch {
	case info.Kind != loopdev.Block && info.Links > 1:
		return refuse(e.name, fmt.Sprintf("has %d names (hard links); emptying it would empty it under all of them", info.Links),
			"remove the other names (find -samefile), or leave off --discard-src", nil)
	case info.Kind != loopdev.Block && os.Geteuid() != 0 && int(info.UID) != os.Geteuid():
		return refuse(e.name, "belongs to another user", "run as its owner or as root, or leave off --discard-src", nil)
	}
	return checkPunch(e)
}

// checkUnused refuses an end that somebody else has open. Readers matter only if
// the bytes are going to be taken from under them.
func checkUnused(e *end, alsoReaders bool) error {
	users, err := e.base.UsedBy()
	if err != nil {
		return refuse(e.name, "it cannot be seen who uses it", "", err)
	}
	for _, u := range users {
		if u.Kind != loopdev.Reader || alsoReaders {
			return refuse(e.name, "is in use: "+u.String(), "end that use first; a copy of bytes that change is worth nothing", nil)
		}
	}
	return nil
}

// checkPunch tries on a file beside the source whether its space can be freed.
func checkPunch(e *end) error {
	if e.Info().Kind == loopdev.Block {
		return nil // a device says at the first discard whether it can
	}
	if err := loopdev.ProbePunch(filepath.Dir(e.Info().BackingPath)); err != nil {
		return refuse(e.name, "its space cannot be freed while it is read", "leave off --discard-src, and remove it afterwards", err)
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
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = errors.New("not a directory")
	}
	if err != nil {
		return refuse(a.target.name, "no destination can be made there", "make the directory first", err)
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
	changed, err := e.changedSince(sb.Source)
	if err != nil {
		return refuse(e.name, "it cannot be seen whether it changed", "", err)
	}
	if !changed {
		return nil
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

// makePlan says what would be done, and refuses what there is no space for.
func (a *attempt) makePlan() error {
	e, o := a.source, a.request.Options
	a.plan = Plan{
		Source: e.name, Destination: a.target.name,
		BytesTotal: e.Bytes(), RegionBytes: o.RegionBytes,
	}
	left := region.NewSet()
	if a.known != nil {
		a.plan.ID, a.plan.Resume = a.known.id, true
		a.plan.RegionBytes = a.known.superblock.Geometry.RegionBytes()
		left = a.known.state.Hydrated
	}
	geometry, err := region.NewGeometry(e.Bytes(), a.plan.RegionBytes)
	if err != nil {
		return refuse(e.name, "does not fit", "give --region-size", err)
	}
	data, err := dataBytes(e, geometry, left)
	if err != nil {
		return refuse(e.name, "its data cannot be found", "", err)
	}
	if a.plan.Space, err = a.proveSpace(data); err != nil {
		return refuse(a.target.name, "its free space cannot be measured", "", err)
	}
	if err := a.warn(); err != nil {
		return err
	}
	if p := a.plan.Space; p.Bounded && p.NeededExtraBytes > p.AvailableBytes && !p.LimitedTransactions && !a.hasDiscardsLeft() {
		return refuse(a.target.name, p.Verdict, a.spaceHint(), nil)
	}
	return nil
}

// hasDiscardsLeft says whether going on frees space before it takes any.
func (a *attempt) hasDiscardsLeft() bool {
	return a.known != nil && a.request.Options.DiscardSource && a.known.state.Hydrated.Count() > a.known.state.Discarded.Count()
}

func (a *attempt) spaceHint() string {
	if !a.request.Options.DiscardSource {
		return "free space, or give --discard-src to free the source as it is copied"
	}
	return "free space there"
}

// proveSpace computes how much space can be needed at most, and holds it against
// what there is.
func (a *attempt) proveSpace(data int64) (SpaceProof, error) {
	o := a.request.Options
	free, isBounded, same, err := a.room(data)
	if err != nil {
		return SpaceProof{}, err
	}
	p := SpaceProof{DataBytes: data, Bounded: isBounded, SameSpace: same}
	if !isBounded {
		p.AvailableBytes = math.MaxInt64
		p.Verdict = "the destination is a block device, its space is its own"
		return p, nil
	}
	p.ReserveBytes = reserve(free)
	p.AvailableBytes = free - p.ReserveBytes
	if data > 0 {
		p.SlackBytes = min(max(data/512, 1<<20), 64<<20)
	}
	p.NeededExtraBytes = data + p.SlackBytes
	human := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	if o.DiscardSource && same {
		window := 2 * max(o.CommitBytes, a.plan.RegionBytes)
		p.NeededExtraBytes = min(data, window) + p.SlackBytes
		if p.NeededExtraBytes > p.AvailableBytes && p.AvailableBytes >= 2*a.plan.RegionBytes {
			p.LimitedTransactions = true
			p.Verdict = fmt.Sprintf("fits: %s are available, so that transactions are kept smaller than %s", human(p.AvailableBytes), human(o.CommitBytes))
			return p, nil
		}
	}
	if p.NeededExtraBytes <= p.AvailableBytes {
		p.Verdict = fmt.Sprintf("fits: at most %s of extra space, %s are available", human(p.NeededExtraBytes), human(p.AvailableBytes))
	} else {
		p.Verdict = fmt.Sprintf("does not fit: %s of extra space are needed, %s are available", human(p.NeededExtraBytes), human(p.AvailableBytes))
	}
	return p, nil
}

// room is the free space that the destination can take, whether it is bounded, and
// whether what the source frees adds to it. data is what will be written.
func (a *attempt) room(data int64) (freeBytes int64, isBounded, same bool, err error) {
	info := a.source.Info()
	onSource := func(dev uint64) bool { return info.Kind != loopdev.Block && info.Dev == dev }
	switch e := a.destination; {
	case a.target.pool != "":
		return a.poolRoom(data, onSource)
	case e == nil:
		free, dev, err := freeBytesAt(filepath.Dir(a.target.path))
		return free, true, onSource(dev), err
	case !bounded(e):
		return 0, false, false, nil
	default:
		free, err := e.FreeBytes()
		return free, true, onSource(e.Info().Dev), err
	}
}

// poolRoom is room in a pool: its size limit has to hold all data, whatever the
// source frees; if it does, the file system under it is what counts.
func (a *attempt) poolRoom(data int64, onSource func(dev uint64) bool) (freeBytes int64, isBounded, same bool, err error) {
	pool, err := a.s.pools.Open(a.target.pool)
	if err != nil {
		return 0, true, false, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	info, err := pool.Info()
	if err != nil {
		return 0, true, false, err
	}
	if left := info.SizeBytes - info.DataUsedBlocks*info.BlockBytes; left < data {
		return left, true, false, nil
	}
	free, dev, err := freeBytesAt(info.Dir)
	return free, true, onSource(dev), err
}

// warn collects what a user should know and nothing has to be refused for.
func (a *attempt) warn() error {
	say := func(format string, args ...any) {
		a.plan.Warnings = append(a.plan.Warnings, fmt.Sprintf(format, args...))
	}
	if a.known != nil && a.request.Options.RegionBytes != a.plan.RegionBytes {
		say("the migration was begun with regions of %d bytes and keeps them", a.plan.RegionBytes)
	}
	if !a.request.Options.DiscardSource {
		return nil
	}
	shared, err := a.source.SharedBytes()
	if err != nil && !errors.Is(err, loopdev.ErrNotCountable) {
		return refuse(a.source.name, "its extents cannot be read", "", err)
	}
	if shared > 0 {
		say("%s of the source are shared with other files or snapshots (reflinks); emptying it frees nothing there", humanize.IBytes(uint64(shared)))
	}
	return nil
}

// dataBytes is how much of the regions outside done has to be copied.
func dataBytes(source *end, g region.Geometry, done *region.Set) (int64, error) {
	var total int64
	for off := int64(0); off < g.DeviceBytes(); {
		start, end, err := source.NextData(off)
		if err != nil {
			return 0, err
		}
		within := g.Touched(start, end-start)
		for run, ok := done.MissingRange(within); ok; run, ok = done.MissingRange(within) {
			_, n := g.Bytes(run)
			total += n
			within = region.Between(run.End(), within.End())
		}
		// The region in which this data ends is counted, also where more begins in it.
		lastOff, lastBytes := g.Bytes(region.Range{First: g.Touched(max(start, end-1), 1).First, Count: 1})
		off = max(end, lastOff+lastBytes)
	}
	return total, nil
}
