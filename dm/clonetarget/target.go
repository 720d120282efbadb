package clonetarget

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"decant/dm"
)

// Type is the name of the target in a table.
const Type = "clone"

// What the target takes for the size of a region, which is a power of two.
const (
	MinRegionBytes = 4 << 10
	MaxRegionBytes = 1 << 30
)

// ErrForm: a status line or a table that does not have the documented form.
var ErrForm = errors.New("is not of a form that this program knows")

// Table is the table line of a clone.
type Table struct {
	Metadata, Destination, Source string // devices, as paths or MAJOR:MINOR
	RegionBytes                   int64  // a power of two, see CheckRegionBytes
	NoHydration                   bool   // nothing is copied in the background until Enable
	NoDiscardPassdown             bool   // discards do not reach the destination
	Threshold, Batch              int64  // regions; 0 leaves it to the kernel, which takes 1
}

// CheckRegionBytes says whether the target takes regions of that size.
func CheckRegionBytes(n int64) error {
	if n < MinRegionBytes || n > MaxRegionBytes || bits.OnesCount64(uint64(n)) != 1 {
		return fmt.Errorf("dm-clone takes regions of %d to %d bytes, in powers of two, and not of %d", MinRegionBytes, MaxRegionBytes, n)
	}
	return nil
}

// String is the parameters of the target.
func (t Table) String() string {
	var features, core []string
	if t.NoHydration {
		features = append(features, "no_hydration")
	}
	if t.NoDiscardPassdown {
		features = append(features, "no_discard_passdown")
	}
	if t.Threshold > 0 {
		core = append(core, "hydration_threshold", strconv.FormatInt(t.Threshold, 10))
	}
	if t.Batch > 0 {
		core = append(core, "hydration_batch_size", strconv.FormatInt(t.Batch, 10))
	}
	words := []string{t.Metadata, t.Destination, t.Source, strconv.FormatInt(t.RegionBytes/dm.SectorBytes, 10)}
	words = append(append(words, strconv.Itoa(len(features))), features...)
	words = append(append(words, strconv.Itoa(len(core))), core...)
	return strings.Join(words, " ")
}

// ParseTable reads the parameters of a clone, as dm.Control.Table has them. It tells how
// the table was loaded, and not what messages have changed since.
func ParseTable(params string) (Table, error) {
	words := strings.Fields(params)
	if len(words) < 4 {
		return Table{}, fmt.Errorf("table of a clone %q: %w", params, ErrForm)
	}
	sectors, err := strconv.ParseInt(words[3], 10, 64)
	if err != nil || sectors <= 0 || sectors > MaxRegionBytes/dm.SectorBytes {
		return Table{}, fmt.Errorf("table of a clone %q: %w", params, ErrForm)
	}
	t := Table{Metadata: words[0], Destination: words[1], Source: words[2], RegionBytes: sectors * dm.SectorBytes}
	o, _, err := parseOptions(words[4:])
	if err == nil {
		err = CheckRegionBytes(t.RegionBytes)
	}
	if err != nil {
		return Table{}, fmt.Errorf("table of a clone %q: %w: %w", params, ErrForm, err)
	}
	t.NoHydration, t.NoDiscardPassdown, t.Threshold, t.Batch = o.noHydration, o.noPassdown, o.threshold, o.batch
	return t, nil
}

// options are the features and core arguments that table and status have in common.
type options struct {
	noHydration, noPassdown bool
	threshold, batch        int64
}

// parseOptions returns what comes behind them. Features of later kernels are passed over.
func parseOptions(words []string) (o options, rest []string, err error) {
	features, words, err := group(words)
	if err != nil {
		return o, nil, err
	}
	for _, f := range features {
		o.noHydration = o.noHydration || f == "no_hydration"
		o.noPassdown = o.noPassdown || f == "no_discard_passdown"
	}
	core, rest, err := group(words)
	if err != nil {
		return o, nil, err
	}
	if len(core)%2 != 0 {
		return o, nil, fmt.Errorf("%d core arguments are no pairs", len(core))
	}
	for i := 0; i < len(core); i += 2 {
		var err error
		switch core[i] {
		case "hydration_threshold":
			o.threshold, err = regions(core[i+1])
		case "hydration_batch_size":
			o.batch, err = regions(core[i+1])
		}
		if err != nil {
			return o, nil, fmt.Errorf("%s is %q", core[i], core[i+1])
		}
	}
	return o, rest, nil
}

// group is a number and so many words. At the end of the line there may be none.
func group(words []string) (of, rest []string, err error) {
	if len(words) == 0 {
		return nil, nil, nil
	}
	n, err := strconv.ParseUint(words[0], 10, 16)
	if err != nil || int(n) > len(words)-1 {
		return nil, nil, fmt.Errorf("there are not %q words", words[0])
	}
	return words[1 : 1+n], words[1+n:], nil
}

func regions(word string) (int64, error) {
	n, err := strconv.ParseUint(word, 10, 32)
	return int64(n), err
}

// Mode is what a clone can do at the moment. It goes down by itself when it meets an
// error on its metadata device or with a flush, and never up again.
type Mode string

// The modes of a clone, as its status names them.
const (
	ReadWrite Mode = "rw"
	ReadOnly  Mode = "ro"   // hydrates nothing more; writes to hydrated regions work, flushes fail
	Failed    Mode = "Fail" // neither reads nor writes
)

// Status is the status of a clone. In mode Failed there is nothing else in it.
type Status struct {
	MetadataUsedBlocks, MetadataBlocks int64 // of 4096 bytes
	RegionBytes                        int64
	HydratedRegions, Regions           int64
	HydratingRegions                   int64 // being copied now
	HydrationDisabled                  bool
	NoDiscardPassdown                  bool // so asked for, or the destination cannot discard
	Threshold, Batch                   int64
	Mode                               Mode
}

// Done says that there is nothing left to hydrate.
func (s Status) Done() bool { return s.Mode != Failed && s.HydratedRegions == s.Regions }

// ParseStatus reads the status of a clone.
func ParseStatus(status string) (Status, error) {
	words := strings.Fields(status)
	if len(words) == 1 && (words[0] == "Fail" || words[0] == "Error") {
		return Status{Mode: Failed}, nil
	}
	s, err := parseStatus(words)
	if err != nil {
		return Status{}, fmt.Errorf("status of a clone %q: %w: %w", status, ErrForm, err)
	}
	return s, nil
}

func parseStatus(words []string) (s Status, err error) {
	if len(words) < 8 {
		return s, errors.New("it is too short")
	}
	if words[0] != strconv.Itoa(metadataBlockSectors) {
		return s, fmt.Errorf("its metadata blocks have %q sectors", words[0])
	}
	var err1, err2, err3, err4 error
	s.MetadataUsedBlocks, s.MetadataBlocks, err1 = parseUse(words[1])
	sectors, err2 := strconv.ParseUint(words[2], 10, 31)
	s.RegionBytes = int64(sectors) * dm.SectorBytes
	s.HydratedRegions, s.Regions, err3 = parseUse(words[3])
	s.HydratingRegions, err4 = regions(words[4])
	o, rest, err5 := parseOptions(words[5:])
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return s, err
	}
	s.HydrationDisabled, s.NoDiscardPassdown, s.Threshold, s.Batch = o.noHydration, o.noPassdown, o.threshold, o.batch
	if len(rest) == 0 {
		return s, errors.New("it names no mode")
	}
	switch s.Mode = Mode(rest[0]); s.Mode {
	case ReadWrite, ReadOnly, Failed:
		return s, nil
	default:
		return s, fmt.Errorf("it names the mode %q", rest[0])
	}
}

// parseUse reads "used/total".
func parseUse(word string) (used, total int64, err error) {
	before, after, found := strings.Cut(word, "/")
	u, err1 := strconv.ParseUint(before, 10, 63)
	t, err2 := strconv.ParseUint(after, 10, 63)
	if err := errors.Join(err1, err2); err != nil || !found || u > t {
		return 0, 0, fmt.Errorf("%q is not how much of how much", word)
	}
	return int64(u), int64(t), nil
}

// Messages to a clone, for sector 0.
const (
	Enable  = "enable_hydration"
	Disable = "disable_hydration" // what is being copied goes on to its end
)

// SetThreshold is the message for how many regions may be copied at a time in the
// background.
func SetThreshold(regions int64) string { return fmt.Sprintf("hydration_threshold %d", regions) }

// SetBatch is the message for how many regions that follow each other one copy may take.
func SetBatch(regions int64) string { return fmt.Sprintf("hydration_batch_size %d", regions) }

// CheckKernel refuses the kernels before 5.7 by their release (uname -r). The target's
// version is 1.0.0 in all of them, but until 5.5 a commit did not flush the destination,
// and until 5.7 it could record regions that were hydrated after its flush: with the
// source discarded, either would be a loss.
func CheckKernel(release string) error {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("the kernel's release %q begins with no version", release)
	}
	if major < 5 || major == 5 && minor < 7 {
		return fmt.Errorf("dm-clone of kernel %s may record regions that a loss of power takes away; 5.7 or later is needed", release)
	}
	return nil
}
