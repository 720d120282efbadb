package service

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"decant/loopdev"
	"decant/region"
	"decant/thin"
)

// makePlan says what would be done, and refuses what there is no space for.
func (a *attempt) makePlan() error {
	e := a.source
	left := region.NewSet()
	if a.known != nil {
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
	if err := a.checkPools(); err != nil {
		return err
	}
	if a.plan.Space, err = a.proveSpace(data); err != nil {
		return refuse(a.target.name, "its free space cannot be measured", "", err)
	}
	if err := a.warn(); err != nil {
		return err
	}
	if p := a.plan.Space; p.NeededExtraBytes > p.AvailableBytes && !p.LimitedTransactions && !a.hasDiscardsLeft() {
		e := refuse(a.target.name, p.Verdict, a.spaceHint(), nil)
		e.Passing = true
		return e
	}
	return nil
}

// beginPlan says what is known of the plan from the ends alone, and finds the stores
// that they take their space from.
func (a *attempt) beginPlan() (err error) {
	a.plan = Plan{Source: a.source.name, Destination: a.target.name, BytesTotal: a.source.Bytes()}
	if a.gives, err = chainOf(a.source); err != nil {
		return refuse(a.source.name, "it cannot be seen where it takes its space", "", err)
	}
	if a.takes, err = a.takerChain(); err != nil {
		return refuse(a.target.name, "it cannot be seen where it takes its space", "", err)
	}
	if a.known != nil {
		a.plan.ID, a.plan.Resume = a.known.id, true
		a.plan.RegionBytes = a.known.superblock.Geometry.RegionBytes()
		return nil
	}
	a.plan.RegionBytes, err = a.chooseRegionBytes()
	return err
}

// chooseRegionBytes makes regions whole blocks of the pools that the ends are volumes
// of. Blocks that are no power of two cannot have that: of them a region has one at
// least, and a block that two regions share is given back with the second of them.
func (a *attempt) chooseRegionBytes() (int64, error) {
	o := a.request.Options
	regionBytes := o.RegionBytes
	for _, c := range []*chain{a.gives, a.takes} {
		for _, p := range c.pools() {
			if !p.isExact {
				continue
			}
			least := int64(1) << bits.Len64(uint64(p.blockBytes-1)) // the next power of two
			if regionBytes >= least {
				continue
			}
			if o.RegionBytesFixed {
				return 0, refuse(a.target.name, fmt.Sprintf("regions of %s are smaller than the blocks of %s, which have %s and are taken and given back as a whole",
					blockText(o.RegionBytes), p.name(), blockText(p.blockBytes)),
					"leave off --region-size, or give --region-size "+blockText(least), nil)
			}
			regionBytes = least
		}
	}
	return regionBytes, nil
}

// takerChain finds the stores of the destination, also if it is yet to be made.
func (a *attempt) takerChain() (*chain, error) {
	switch {
	case a.destination != nil:
		return chainOf(a.destination)
	case a.target.pool != "":
		return a.poolChain()
	}
	place, err := loopdev.PlaceAt(filepath.Dir(a.target.path))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return &chain{}, nil // checkFresh says what is wrong with it
	}
	if err != nil {
		return nil, err
	}
	c := &chain{}
	return c, c.onPlace(place)
}

// poolChain is the stores of a volume that is to be made in a pool.
func (a *attempt) poolChain() (c *chain, err error) {
	pool, err := a.s.openPool(a.target)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	c = &chain{}
	if kernel, ok := pool.(thin.Stacked); ok {
		stack, err := kernel.Stack()
		if err != nil {
			return nil, err
		}
		c.below(stack)
		return c, nil
	}
	info, err := pool.Info()
	if err != nil {
		return nil, err
	}
	free := info.SizeBytes - info.DataUsedBlocks*info.BlockBytes
	c.links = append(c.links, link{store: &limitStore{pool: a.target.pool, free: func() (int64, error) { return free, nil }}})
	place, err := loopdev.PlaceAt(info.Dir)
	if err != nil {
		return nil, err
	}
	return c, c.onPlace(place)
}

// hasDiscardsLeft says whether going on frees space before it takes any. All discards are
// repeated: those of an export may have been taken by a server that freed nothing, and may
// now have one that does.
func (a *attempt) hasDiscardsLeft() bool {
	if a.known == nil || !a.request.Options.DiscardSource {
		return false
	}
	hydrated, discarded := a.known.state.Hydrated.Count(), a.known.state.Discarded.Count()
	return hydrated > discarded || hydrated > 0 && a.source.kind == nbdKind
}

// spaceHint is how to get the space that is missing.
func (a *attempt) spaceHint() string {
	hint := "free space there"
	for _, s := range a.plan.Space.Stores {
		if missing := s.NeededBytes - s.AvailableBytes; missing > 0 && !s.LimitedTransactions {
			hint = s.hint(missing)
			if s.FreedReturns && !a.request.Options.DiscardSource {
				hint += ", or give --discard-src to free the source as it is copied"
			}
			break
		}
	}
	return hint
}

// proveSpace computes how much space can be needed at most, and holds it against
// what there is.
func (a *attempt) proveSpace(data int64) (SpaceProof, error) {
	o := a.request.Options
	c := claim{
		dataBytes: data, regionBytes: a.plan.RegionBytes, commitBytes: o.CommitBytes,
		transactionBytes: max(o.CommitBytes, a.plan.RegionBytes), discards: o.DiscardSource,
	}
	if o.DiscardSource {
		var err error
		if c.sharedBytes, err = counted(a.source.SharedBytes()); err != nil {
			return SpaceProof{}, err
		}
		if c.fragments, err = a.fragments(data); err != nil {
			return SpaceProof{}, err
		}
	}
	var stores []StoreProof
	for _, l := range a.takes.links {
		s, err := l.measure()
		if err != nil {
			return SpaceProof{}, err
		}
		if s.growthBytes == 0 {
			continue
		}
		stores = append(stores, c.proveStore(s, a.gives.returned(l), l.hint))
	}
	return c.prove(stores), nil
}

// fragments is how many pieces of the source begin and end inside of blocks of the pool
// below it. A volume has none; but the kernel cuts discards in the wrong places where
// blocks are no power of two, so that at worst each region loses some.
func (a *attempt) fragments(data int64) (int64, error) {
	for _, p := range a.gives.pools() {
		if p.isExact && p.blockBytes&(p.blockBytes-1) != 0 {
			return (data + a.plan.RegionBytes - 1) / a.plan.RegionBytes, nil
		}
	}
	return counted(a.source.base.Fragments())
}

// returned says whether what is freed at the end of the chain comes back to a store.
func (c *chain) returned(s store) returned {
	for _, l := range c.links {
		if l.key() == s.key() {
			return returned{isReturned: l.freed, why: l.why}
		}
	}
	return returned{}
}

// warn collects what a user should know and nothing has to be refused for.
func (a *attempt) warn() error {
	say := func(format string, args ...any) {
		a.plan.Warnings = append(a.plan.Warnings, fmt.Sprintf(format, args...))
	}
	switch o := a.request.Options; {
	case o.RegionBytes == a.plan.RegionBytes:
	case a.known == nil:
		say("regions have %s, as the blocks of the thin pool", blockText(a.plan.RegionBytes))
	default:
		say("the migration was begun with regions of %d bytes and keeps them", a.plan.RegionBytes)
	}
	if a.source.Info().Encrypted && !a.encrypts() {
		say("the source is encrypted (fscrypt), and the destination will not be")
	}
	a.warnExport(say)
	if !a.request.Options.DiscardSource {
		return nil
	}
	for _, warning := range a.gives.warnings() {
		say("%s", warning)
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
