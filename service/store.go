package service

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"decant/hydrate"
	"decant/loopdev"
	"decant/thin"
)

// store is something that space is taken from: a file system, the limit of a
// directory pool, or a thin pool of the kernel. One end can take its space from
// several that lie on one another.
type store interface {
	// key is the same for the same store, however it was found.
	key() string
	// measure is what there is now. The first one fixes the reserve.
	measure() (supply, error)
	// hint is what to do if that many bytes are missing.
	hint(missingBytes int64) string
}

// supply is what a store has at one moment.
type supply struct {
	kind, name     string
	availableBytes int64 // besides the reserve; negative if that has been touched
	reserveBytes   int64
	blockBytes     int64  // what is allocated as a whole; 1 where the store rounds nothing
	growthBytes    int64  // most that it can be asked for; math.MaxInt64 if all that is written takes space
	fsType         string // of a file system
	isExact        bool   // the end is made of whole blocks of this pool
	isShort        string // what of it is short, for people: "pool vg/tp has no data blocks"
}

// The kinds of stores.
const (
	fileSystemStore = "file-system"
	limitStoreKind  = "pool-limit"
	thinPoolStore   = "thin-pool"
)

// fileStore is a file system with the end itself, or with a file that a device below
// the end keeps its bytes in.
type fileStore struct {
	place        *loopdev.Place
	isBelow      bool // only the holes of the file take space
	reserveBytes int64
}

func (f *fileStore) key() string { return fmt.Sprintf("file-system:%d", f.place.Dev) }

func (f *fileStore) measure() (supply, error) {
	free, err := f.place.FreeBytes()
	if err != nil {
		return supply{}, err
	}
	if f.reserveBytes == 0 {
		f.reserveBytes = reserve(free, f.place.FSType)
	}
	name := "the file system of " + f.place.Path
	s := supply{
		kind: fileSystemStore, name: name, availableBytes: free - f.reserveBytes, reserveBytes: f.reserveBytes,
		blockBytes: 1, growthBytes: math.MaxInt64, fsType: f.place.FSType, isShort: "space on " + name,
	}
	if f.isBelow {
		s.growthBytes, err = f.place.HoleBytes()
	}
	return s, err
}

func (f *fileStore) hint(missingBytes int64) string {
	return fmt.Sprintf("free %s on %s", bytesText(missingBytes), "the file system of "+f.place.Path)
}

// limitStore is the size limit of a directory pool. It is exact: nothing else takes of
// it unseen.
type limitStore struct {
	pool string
	free func() (int64, error)
}

func (l *limitStore) key() string { return "limit:" + l.pool }

func (l *limitStore) measure() (supply, error) {
	free, err := l.free()
	return supply{
		kind: limitStoreKind, name: "pool " + l.pool, availableBytes: free,
		blockBytes: 1, growthBytes: math.MaxInt64, isShort: "space in pool " + l.pool,
	}, err
}

func (l *limitStore) hint(missingBytes int64) string {
	return fmt.Sprintf("give the pool %s more: thinctl pool grow %s, or delete a volume of it", bytesText(missingBytes), l.pool)
}

// kernelPool is what a thinStore asks of a pool and of a volume in it.
type kernelPool interface {
	Status(commit bool) (thin.TargetStatus, error)
	MappedBytes() (int64, error)
	EventNumber() (uint32, error)
	WaitEvent(ctx context.Context, after uint32) error
}

var _ kernelPool = (*thin.Backing)(nil)

// thinStore is a thin pool of the kernel.
type thinStore struct {
	kernelPool
	device, uuid   string // path and UUID of the pool's device
	volume         string // path of the volume that takes space of it
	blockBytes     int64
	isExact        bool
	keepsFreed     bool   // it was told to keep discards from its data device
	dataReserve    int64  // blocks
	metadataBlocks int64  // reserve of the metadata, in its own blocks
	event          uint32 // number of the pool's events before it was measured last
}

func newThinStore(b *thin.Backing, isExact bool) *thinStore {
	return &thinStore{
		kernelPool: b, device: b.Pool, uuid: b.PoolUUID, volume: b.Volume,
		blockBytes: b.BlockBytes, isExact: isExact, keepsFreed: b.KeepsFreed,
	}
}

func (p *thinStore) key() string { return "thin-pool:" + p.device }

// name is how the owner of the pool calls it.
func (p *thinStore) name() string {
	if group, pool, ok := p.lvmName(); ok {
		return "pool " + group + "/" + pool
	}
	return "pool " + strings.TrimPrefix(p.device, "/dev/mapper/")
}

// lvmName takes apart the name that LVM gives the device of a pool: dashes of the
// names are doubled.
func (p *thinStore) lvmName() (group, pool string, ok bool) {
	name, ok := strings.CutPrefix(p.device, "/dev/mapper/")
	if !ok || !strings.HasPrefix(p.uuid, "LVM-") {
		return "", "", false
	}
	const doubled = "\x00"
	group, pool, ok = strings.Cut(strings.ReplaceAll(strings.TrimSuffix(name, "-tpool"), "--", doubled), "-")
	return strings.ReplaceAll(group, doubled, "-"), strings.ReplaceAll(pool, doubled, "-"), ok
}

const (
	// mappingsPerBlock is how many mappings a block of metadata surely has room for.
	mappingsPerBlock = 126
	// A transaction copies the metadata that it changes before it frees the old.
	minMetadataReserve = 32
	maxMetadataReserve = 4096
	minDataReserve     = 2 // blocks
)

func (p *thinStore) measure() (supply, error) {
	var err error
	if p.event, err = p.EventNumber(); err != nil {
		return supply{}, err
	}
	s, err := p.Status(false)
	if err != nil {
		return supply{}, err
	}
	if err := p.checkStatus(s); err != nil {
		return supply{}, err
	}
	data, metadata := s.DataBlocks-s.DataUsedBlocks, s.MetadataBlocks-s.MetadataUsedBlocks
	if p.dataReserve == 0 {
		bytes := reserve(data*p.blockBytes, "")
		p.dataReserve = max(minDataReserve, (bytes+p.blockBytes-1)/p.blockBytes)
		p.metadataBlocks = min(max(metadata/8, minMetadataReserve), maxMetadataReserve)
	}
	out := supply{
		kind: thinPoolStore, name: p.name(), reserveBytes: p.dataReserve * p.blockBytes, blockBytes: p.blockBytes,
		growthBytes: math.MaxInt64, isExact: p.isExact, isShort: "data blocks of " + p.name(),
	}
	blocks := data - p.dataReserve
	if possible := (metadata - p.metadataBlocks) * mappingsPerBlock; possible < blocks {
		blocks, out.isShort = possible, "metadata blocks of "+p.name()
	}
	if s.Mode == thin.OutOfDataSpace {
		blocks = min(blocks, 0)
	}
	out.availableBytes = blocks * p.blockBytes
	return out, nil
}

// check is an error unless the pool can be relied on to keep what it was sent.
func (p *thinStore) check() error {
	s, err := p.Status(false)
	if err != nil {
		return fmt.Errorf("look at %s: %w", p.name(), err)
	}
	return p.checkStatus(s)
}

func (p *thinStore) checkStatus(s thin.TargetStatus) error {
	if trouble := s.Trouble(); trouble != "" {
		return &poolError{pool: p, trouble: trouble}
	}
	return nil
}

// poolError is a pool of the kernel's that must not be written to before it is mended.
type poolError struct {
	pool    *thinStore
	trouble string
}

func (e *poolError) Error() string { return e.pool.name() + " " + e.trouble }

// hint is what mends the pool.
func (e *poolError) hint() string {
	if group, pool, ok := e.pool.lvmName(); ok {
		name := group + "/" + pool
		return fmt.Sprintf("see the kernel's log; then: lvchange -an %s && lvconvert --repair %s && lvchange -ay %s; "+
			"if its metadata is full: lvextend --poolmetadatasize +64M %s", name, name, name, name)
	}
	return fmt.Sprintf("see the kernel's log; then take the pool down (its device is %s), run thin_check --clear-needs-check-flag "+
		"or thin_repair on its metadata device, enlarge that if it is full, and bring the pool up again", e.pool.device)
}

func (p *thinStore) hint(missingBytes int64) string {
	blocks := (max(0, missingBytes) + p.blockBytes - 1) / p.blockBytes
	metadata := false
	if s, err := p.measure(); err == nil {
		metadata = strings.HasPrefix(s.isShort, "metadata")
	}
	if group, pool, ok := p.lvmName(); ok {
		if metadata {
			return fmt.Sprintf("give the pool more metadata: lvextend --poolmetadatasize +%dM %s/%s", blocks/mappingsPerBlock*4096>>20+4, group, pool)
		}
		return fmt.Sprintf("give the pool more space: lvextend -L +%dM %s/%s", blocks*p.blockBytes>>20+1, group, pool)
	}
	what := "data"
	if metadata {
		what = "metadata"
	}
	name := strings.TrimPrefix(p.device, "/dev/mapper/")
	return fmt.Sprintf("enlarge the %s device of the pool by %s or more, then: thinctl pool grow %s (or reload its table, if the pool is not thinctl's)",
		what, bytesText(blocks*p.blockBytes), name)
}

// shortage is what a run waits for.
func shortage(s supply) hydrate.Shortage {
	patience := filePatience
	if s.kind == thinPoolStore {
		patience = cmp.Or(thin.NoSpaceTimeout(), poolPatience)
	}
	return hydrate.Shortage{What: s.isShort, Patience: patience}
}

func bytesText(n int64) string {
	if n == math.MaxInt64 {
		return "any number of bytes"
	}
	return humanize.IBytes(uint64(max(0, n)))
}

// blockText writes a size that must be given exactly as a flag takes it.
func blockText(n int64) string {
	if n%(1<<10) == 0 && n < 1<<20 {
		return strconv.FormatInt(n>>10, 10) + "KiB"
	}
	if n%(1<<20) == 0 {
		return strconv.FormatInt(n>>20, 10) + "MiB"
	}
	return strconv.FormatInt(n>>10, 10) + "KiB"
}
