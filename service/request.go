package service

import (
	"fmt"
	"strings"
	"time"

	"decant/region"
	"decant/thin"
)

// Options of a migration, as the user gives them. They are kept in its journal,
// so that a resume by id goes on with them.
type Options struct {
	DiscardSource    bool          `json:"discard_src"`
	Verify           bool          `json:"verify"`
	RemoveSource     bool          `json:"remove_src"`
	Overwrite        bool          `json:"overwrite"`
	ThinPool         string        `json:"thin_pool,omitempty"` // of LVM, to make the destination in
	Export           string        `json:"export,omitempty"`    // path of the Unix socket that guests use the volume by while it hydrates
	Live             string        `json:"live,omitempty"`      // name of the device that guests use the volume by while it hydrates, and after that
	LiveTimeout      time.Duration `json:"live_timeout_ns,omitempty"`
	Engine           string        `json:"engine,omitempty"` // of a live device: auto, user, kernel; empty: auto
	RegionBytes      int64         `json:"region_bytes"`
	RegionBytesFixed bool          `json:"region_bytes_fixed,omitempty"` // false: a pool with larger blocks gets larger regions
	ThresholdRegions uint64        `json:"threshold_regions"`
	BatchRegions     uint64        `json:"batch_regions"`
	CommitPeriod     time.Duration `json:"commit_period_ns"`
	CommitBytes      int64         `json:"commit_bytes"`
	BytesPerSecond   int64         `json:"bytes_per_second"` // 0: no limit
}

// DefaultOptions are those of a command without flags.
func DefaultOptions() Options {
	return Options{
		RegionBytes:      1 << 20,
		ThresholdRegions: 32,
		BatchRegions:     4,
		CommitPeriod:     time.Second,
		CommitBytes:      64 << 20,
		LiveTimeout:      DefaultLiveTimeout,
		Engine:           EngineAuto,
	}
}

// Check tells what in the options makes no sense, as an Error with Usage.
func (o Options) Check() error {
	wrong := func(format string, args ...any) error {
		return &Error{Outcome: Usage, Problem: fmt.Sprintf(format, args...)}
	}
	switch {
	case o.RemoveSource && !o.DiscardSource:
		return wrong("--remove-src needs --discard-src")
	case o.RegionBytes < region.MinRegionBytes || o.RegionBytes > region.MaxRegionBytes || o.RegionBytes&(o.RegionBytes-1) != 0:
		return wrong("--region-size %d is not a power of two from 4 KiB to 1 GiB", o.RegionBytes)
	case o.ThresholdRegions == 0 || o.ThresholdRegions > 1<<20:
		return wrong("--threshold %d is not from 1 to %d regions", o.ThresholdRegions, 1<<20)
	case o.BatchRegions == 0 || o.BatchRegions > 1<<20:
		return wrong("--batch %d is not from 1 to %d regions", o.BatchRegions, 1<<20)
	case o.CommitPeriod < time.Millisecond || o.CommitPeriod > time.Hour:
		return wrong("--commit-period %s is not from 1ms to 1h", o.CommitPeriod)
	case o.CommitBytes < region.MinRegionBytes || o.CommitBytes > 1<<40:
		return wrong("--commit-bytes %d is not from 4 KiB to 1 TiB", o.CommitBytes)
	case o.ThinPool != "" && thin.ValidateGroupName(o.ThinPool) != nil:
		return wrong("--thin-pool %.150q is no name of a volume of LVM", o.ThinPool)
	case strings.ContainsRune(o.Export, 0):
		return wrong("--export: the path %q holds a NUL", o.Export)
	case o.BytesPerSecond < 0:
		return wrong("--bwlimit %d is negative", o.BytesPerSecond)
	}
	return o.checkLiveOptions()
}

// Request is one migration to be made, or resumed if there is one already between
// these two ends.
type Request struct {
	Source, Destination string
	Options             Options
}

// SpaceProof says what a migration needs and what there is. Where the destination's
// space comes from several stores, its figures are those of the scarcest one.
type SpaceProof struct {
	DataBytes           int64  `json:"data_bytes"`           // what has to be copied
	NeededExtraBytes    int64  `json:"needed_extra_bytes"`   // most that exists twice, and slack
	SlackBytes          int64  `json:"slack_bytes"`          // part of it, for metadata
	AvailableBytes      int64  `json:"available_bytes"`      // what the destination may take, the reserve kept
	ReserveBytes        int64  `json:"reserve_bytes"`        // what is never touched
	SameSpace           bool   `json:"same_space"`           // freeing the source gives room to the destination
	LimitedTransactions bool   `json:"limited_transactions"` // less room than two full transactions: the governor makes them smaller
	Bounded             bool   `json:"bounded"`              // false: a block device, which has its space
	Verdict             string `json:"verdict"`              // one sentence

	Stores []StoreProof `json:"stores,omitempty"` // from the top down
}

// Plan is what preflight found out: what would be done.
type Plan struct {
	ID          string     `json:"id,omitempty"` // of the migration that would be resumed
	Resume      bool       `json:"resume"`
	Source      string     `json:"source"`
	Destination string     `json:"destination"`
	BytesTotal  int64      `json:"bytes_total"`
	RegionBytes int64      `json:"region_bytes"`
	Warnings    []string   `json:"warnings,omitempty"`
	Space       SpaceProof `json:"space"`
}

// Summary is one migration in a list.
type Summary struct {
	ID             string    `json:"id"`
	Source         string    `json:"source"`
	Destination    string    `json:"destination"`
	Phase          string    `json:"phase"`     // running, done, cancelled, reversed
	Direction      string    `json:"direction"` // forward, backward
	Active         bool      `json:"active"`    // a process works on it
	PID            int       `json:"pid,omitempty"`
	Service        bool      `json:"service,omitempty"` // that process is the service
	BytesTotal     int64     `json:"bytes_total"`
	RegionBytes    int64     `json:"region_bytes"`
	Regions        uint64    `json:"regions"`
	Hydrated       uint64    `json:"regions_hydrated"`
	Discarded      uint64    `json:"regions_discarded"`
	BytesCopied    int64     `json:"bytes_copied"`
	Transaction    uint64    `json:"transaction"`
	PeakExtraBytes int64     `json:"peak_extra_bytes"`
	Created        time.Time `json:"created"`
	Problem        string    `json:"problem,omitempty"` // why the journal cannot be used

	sourcePath, destinationPath string   // what leads there from any directory
	groupVolumes                []string // the ends that are volumes of LVM
}

// Cell is the state of a part of the device, in the map of Detail: the state that
// most urgently wants attention among its regions, and the share that is hydrated.
type Cell struct {
	State    string  `json:"state"` // bad, unhydrated, dirty (of one that runs), partial, hydrated, discarded
	Hydrated float64 `json:"hydrated"`
}

// Detail is all about one migration.
type Detail struct {
	Summary
	Options      Options       `json:"options"`
	Map          []Cell        `json:"map"`
	Bad          []BadBytes    `json:"bad,omitempty"`
	Transactions []Transaction `json:"transactions"` // the newest first
	Journal      string        `json:"journal"`      // path
}

// BadBytes is a range of the source that could not be read.
type BadBytes struct {
	Offset int64  `json:"offset"`
	Bytes  int64  `json:"bytes"`
	Error  string `json:"error"`
}

// Transaction is one committed metadata transaction.
type Transaction struct {
	Number      uint64     `json:"number"`
	Direction   string     `json:"direction"`
	Committed   time.Time  `json:"committed"`
	DiscardedAt *time.Time `json:"discarded_at"`
	Regions     uint64     `json:"regions"`
	CopiedBytes int64      `json:"copied_bytes"`
}

// Explanation is all that is known of the region at one offset.
type Explanation struct {
	ID          string     `json:"id"`
	Offset      int64      `json:"offset"`
	Region      uint64     `json:"region"`
	RegionStart int64      `json:"region_start"`
	RegionBytes int64      `json:"region_bytes"`
	State       string     `json:"state"` // unhydrated, hydrated, discarded, bad
	Owner       string     `json:"owner"` // path of the end that holds the bytes
	Transaction uint64     `json:"transaction,omitempty"`
	Committed   *time.Time `json:"committed,omitempty"`
	DiscardedAt *time.Time `json:"discarded_at,omitempty"`
	Checksum    string     `json:"checksum,omitempty"` // XXH3, hexadecimal; "zeros" for a region of zeros, "written" for one with users' writes
	Error       string     `json:"error,omitempty"`    // of a bad region
}

// VerifyReport is what a verification of a finished migration found.
type VerifyReport struct {
	ID              string     `json:"id"`
	RegionsChecked  uint64     `json:"regions_checked"`
	BytesRead       int64      `json:"bytes_read"`
	Mismatches      []BadBytes `json:"mismatches,omitempty"`
	MismatchRegions uint64     `json:"mismatch_regions"`
	// WrittenRegions are those of the checked ones that users have written to while
	// the migration hydrated: they were read, and have no checksum to compare with.
	WrittenRegions uint64 `json:"written_regions,omitempty"`
}
