package service

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"decant/loopdev"
	"decant/region"
)

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
	fsType := a.receivingFSType(same)
	p.ReserveBytes = reserve(free, fsType)
	p.AvailableBytes = free - p.ReserveBytes
	if data > 0 {
		p.SlackBytes = min(max(data/512, 1<<20), 64<<20)
	}
	p.NeededExtraBytes = data + p.SlackBytes
	if o.DiscardSource && same {
		if fsType == btrfs && data > 0 {
			p.SlackBytes += btrfsExtentBytes
		}
		p.NeededExtraBytes = min(data, 2*max(o.CommitBytes, a.plan.RegionBytes)) + p.SlackBytes
		smallest := p.SlackBytes + 2*a.plan.RegionBytes
		p.LimitedTransactions = p.NeededExtraBytes > p.AvailableBytes && p.AvailableBytes >= smallest
	}
	p.Verdict = p.words(o.CommitBytes)
	return p, nil
}

// words is the proof as a sentence.
func (p SpaceProof) words(commitBytes int64) string {
	human := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	switch {
	case p.LimitedTransactions:
		return fmt.Sprintf("fits: %s are available, so that transactions are kept smaller than %s", human(p.AvailableBytes), human(commitBytes))
	case p.NeededExtraBytes <= p.AvailableBytes:
		return fmt.Sprintf("fits: at most %s of extra space, %s are available", human(p.NeededExtraBytes), human(p.AvailableBytes))
	}
	return fmt.Sprintf("does not fit: %s of extra space are needed, %s are available", human(p.NeededExtraBytes), human(p.AvailableBytes))
}

// receivingFSType is the file system that will hold the destination, as far as it
// is known before there is one.
func (a *attempt) receivingFSType(same bool) string {
	switch {
	case a.destination != nil:
		return a.destination.Info().FSType
	case same:
		return a.source.Info().FSType
	}
	return ""
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
	pool, err := a.s.openPool(a.target)
	if err != nil {
		return 0, true, false, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	info, err := pool.Info()
	if err != nil {
		return 0, true, false, err
	}
	within := a.source.pool != nil && a.source.pool.Name() == a.target.pool
	if info.Dir == "" { // block devices: there is no file system under the pool
		free, err := pool.FreeBytes()
		return free, true, within, err
	}
	if left := info.SizeBytes - info.DataUsedBlocks*info.BlockBytes; left < data {
		return left, true, within, nil
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
	if a.source.Info().Encrypted && !a.encrypts() {
		say("the source is encrypted (fscrypt), and the destination will not be")
	}
	if !a.request.Options.DiscardSource {
		return nil
	}
	shared, err := counted(a.source.SharedBytes())
	if err != nil {
		return refuse(a.source.name, "its extents cannot be read", "", err)
	}
	if shared > 0 {
		say("%s of the source are shared with other files or snapshots (reflinks); emptying it frees nothing there", humanize.IBytes(uint64(shared)))
	}
	compressed, err := counted(a.source.CompressedBytes())
	if err != nil {
		return refuse(a.source.name, "its extents cannot be read", "", err)
	}
	if compressed > 0 || a.source.Info().Compressed {
		say("the source is compressed by its file system: emptying it frees less than its size, and its copy may take more")
	}
	return nil
}

// counted takes what cannot be counted for nothing.
func counted(bytes int64, err error) (int64, error) {
	if errors.Is(err, loopdev.ErrNotCountable) {
		return 0, nil
	}
	return bytes, err
}

// encrypts says whether the file system encrypts what is written to the
// destination. A new file does as its directory says.
func (a *attempt) encrypts() bool {
	if a.destination != nil {
		return a.destination.Info().Encrypted
	}
	if a.target.pool != "" {
		return false // known only once the volume has been made
	}
	var stx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, filepath.Dir(a.target.path), 0, 0, &stx)
	return err == nil && stx.Attributes&unix.STATX_ATTR_ENCRYPTED != 0
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
