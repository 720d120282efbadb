package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"decant/service"
	"decant/units"
)

// bytesFlag is a flag that takes a size.
type bytesFlag struct{ bytes *int64 }

func (f bytesFlag) String() string { return compactBytes(*f.bytes) }
func (f bytesFlag) Type() string   { return "SIZE" }

func (f bytesFlag) Set(text string) error {
	bytes, err := units.ParseBytes(text)
	if err == nil {
		*f.bytes = bytes
	}
	return err
}

// regionSizeFlag is a bytesFlag that notes that it was given.
type regionSizeFlag struct{ options *service.Options }

func (f regionSizeFlag) String() string {
	if f.options == nil {
		return "" // pflag asks a zero value for it
	}
	return bytesFlag{&f.options.RegionBytes}.String()
}
func (f regionSizeFlag) Type() string { return "SIZE" }

func (f regionSizeFlag) Set(text string) error {
	f.options.RegionBytesFixed = true
	return bytesFlag{&f.options.RegionBytes}.Set(text)
}

// rateFlag is a flag that takes a rate.
type rateFlag struct{ bytesPerSecond *int64 }

func (f rateFlag) String() string { return formatRateLimit(*f.bytesPerSecond) }
func (f rateFlag) Type() string   { return "RATE" }

func (f rateFlag) Set(text string) error {
	rate, err := units.ParseRate(text)
	if err == nil {
		*f.bytesPerSecond = rate
	}
	return err
}

// regionsFlag is a flag that takes a number of regions.
type regionsFlag struct{ regions *uint64 }

func (f regionsFlag) String() string { return strconv.FormatUint(*f.regions, 10) }
func (f regionsFlag) Type() string   { return "REGIONS" }

func (f regionsFlag) Set(text string) error {
	regions, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return errors.New("not a number of regions")
	}
	*f.regions = regions
	return nil
}

// periodFlag is a flag that takes a time.
type periodFlag struct{ period *time.Duration }

func (f periodFlag) String() string { return f.period.String() }
func (f periodFlag) Type() string   { return "TIME" }

func (f periodFlag) Set(text string) error {
	period, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("not a time with its unit, for example 500ms, 1s or 2m")
	}
	*f.period = period
	return nil
}

// formatRateLimit writes a limit, where 0 is none.
func formatRateLimit(bytesPerSecond int64) string {
	if bytesPerSecond == 0 {
		return "unlimited"
	}
	return compactBytes(bytesPerSecond) + "/s"
}

// progressForm names a way to show progress.
type progressForm string

// The forms of progress.
const (
	progressAuto  progressForm = "auto"
	progressBar   progressForm = "bar"
	progressPlain progressForm = "plain"
	progressJSON  progressForm = "json"
	progressNone  progressForm = "none"
)

var progressForms = []string{string(progressAuto), string(progressBar), string(progressPlain), string(progressJSON), string(progressNone)}

func (f *progressForm) String() string { return string(*f) }
func (f *progressForm) Type() string   { return "FORM" }

func (f *progressForm) Set(text string) error {
	if !slices.Contains(progressForms, text) {
		return fmt.Errorf("the forms are %s", strings.Join(progressForms, ", "))
	}
	*f = progressForm(text)
	return nil
}

func addProgressFlag(cmd *cobra.Command, form *progressForm) {
	*form = progressAuto
	cmd.Flags().Var(form, "progress", "how to show progress: a bar (on a terminal only, else plain), plain lines for a log,\njson for one event a line on standard output, none, or auto: bar or plain")
	err := cmd.RegisterFlagCompletionFunc("progress", cobra.FixedCompletions(progressForms, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // only if the flag did not exist or were registered twice
	}
}

func addJSONFlag(cmd *cobra.Command, wanted *bool) {
	cmd.Flags().BoolVar(wanted, "json", false, "write the answer as JSON")
}

// addOptionFlags gives flags the options of a migration. Their values go to o,
// which holds the defaults.
func addOptionFlags(flags *pflag.FlagSet, o *service.Options) {
	flags.BoolVar(&o.DiscardSource, "discard-src", o.DiscardSource, "free the source as its regions become durable on the destination")
	flags.BoolVar(&o.Verify, "verify", o.Verify, "read every region back from the destination, past the page cache, and compare\nbefore its transaction commits")
	flags.BoolVar(&o.RemoveSource, "remove-src", o.RemoveSource, "unlink a regular source file once the migration has ended (needs --discard-src)")
	flags.BoolVar(&o.Overwrite, "overwrite", o.Overwrite, "allow a destination that already holds data")
	flags.StringVar(&o.ThinPool, "thin-pool", o.ThinPool, "`NAME` of the thin pool of LVM to make the destination in, where its volume group has several")
	flags.StringVar(&o.Export, "export", o.Export, "let NBD clients use the volume while it hydrates, through the Unix socket `SOCKET`,\nuntil it is hydrated and the last of them has left")
	flags.StringVar(&o.Live, "live", o.Live, "make the volume usable at once, as /dev/mapper/`NAME`, while it hydrates and after that")
	flags.StringVar(&o.Engine, "engine", o.Engine, "`ENGINE` that copies while a live device is in use: user, kernel (dm-clone), or auto")
	flags.Var(periodFlag{&o.LiveTimeout}, "live-timeout", "how long what uses the live device waits when this program has stopped or died,\nuntil it gets errors")
	flags.Var(regionSizeFlag{o}, "region-size", "bytes in a region, a power of two from 4 KiB to 1 GiB; without it, at least\na block of the thin pools that the two ends are volumes of")
	flags.Var(regionsFlag{&o.ThresholdRegions}, "threshold", "most regions in flight at a time")
	flags.Var(regionsFlag{&o.BatchRegions}, "batch", "most contiguous regions in one copy")
	flags.Var(periodFlag{&o.CommitPeriod}, "commit-period", "longest time between two commits of the metadata")
	flags.Var(bytesFlag{&o.CommitBytes}, "commit-bytes", "most bytes in one metadata transaction")
	flags.Var(rateFlag{&o.BytesPerSecond}, "bwlimit", "copy at most this much a second, for example 50MiB/s; 0 is no limit")
}

// describeOptions writes options as the flags that would give them.
func describeOptions(o service.Options) string {
	var words []string
	for _, flag := range []struct {
		given bool
		name  string
	}{
		{o.DiscardSource, "--discard-src"},
		{o.Verify, "--verify"},
		{o.RemoveSource, "--remove-src"},
		{o.Overwrite, "--overwrite"},
	} {
		if flag.given {
			words = append(words, flag.name)
		}
	}
	if o.ThinPool != "" {
		words = append(words, "--thin-pool "+o.ThinPool)
	}
	if o.Export != "" {
		words = append(words, "--export "+printableName(o.Export))
	}
	if o.Live != "" {
		words = append(words, "--live "+o.Live, "--engine "+o.Engine)
	}
	words = append(words,
		fmt.Sprintf("--region-size %s", compactBytes(o.RegionBytes)),
		fmt.Sprintf("--threshold %d", o.ThresholdRegions),
		fmt.Sprintf("--batch %d", o.BatchRegions),
		fmt.Sprintf("--commit-period %s", o.CommitPeriod),
		fmt.Sprintf("--commit-bytes %s", compactBytes(o.CommitBytes)))
	if o.BytesPerSecond != 0 {
		words = append(words, "--bwlimit "+formatRateLimit(o.BytesPerSecond))
	}
	return strings.Join(words, " ")
}

// compactBytes writes a size exactly, as one word that ParseBytes reads back.
func compactBytes(bytes int64) string {
	for _, unit := range []struct {
		name  string
		shift uint
	}{{"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if bytes != 0 && bytes%(1<<unit.shift) == 0 {
			return fmt.Sprintf("%d%s", bytes>>unit.shift, unit.name)
		}
	}
	return fmt.Sprintf("%d", bytes)
}
