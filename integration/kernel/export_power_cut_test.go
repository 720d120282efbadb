package kernel

import (
	_ "embed"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"decant/integration/testkernel"
)

//go:embed export_power_cut.sh
var exportPowerCutScript string

// fault 63, fault 80: power is cut at random moments while a volume hydrates into a file
// and is written to over NBD, through the page cache of the machine. After each cut every
// write that was flushed is there, and in the end every byte is right.
func TestExportPowerCuts(t *testing.T) {
	t.Parallel()
	for _, filesystem := range []string{"ext4", "xfs"} {
		rounds := uint64(1)
		if nightly() {
			rounds = 8
		}
		for seed := range rounds {
			t.Run(fmt.Sprintf("%s %d", filesystem, seed), func(t *testing.T) {
				t.Parallel()
				cutExport(t, filesystem, seed)
			})
		}
	}
}

var failedClient = regexp.MustCompile(`(?mi)^client .*(failed|error|can't)`)

func cutExport(t *testing.T, filesystem string, seed uint64) {
	const cuts, writesOfLife, imageBytes = 3, 12, 24 * mib
	rng := rand.New(rand.NewPCG(seed, uint64(len(filesystem))))
	l := lives{
		disks: []string{testkernel.NewDisk(t, 512*mib)}, script: exportPowerCutScript,
		env: []string{"FS=" + filesystem, fmt.Sprintf("IMAGE_BYTES=%d", imageBytes)},
	}
	check := func(output string) {
		t.Helper()
		if failedClient.MatchString(output) ||
			strings.Contains(output, "ended with code") && !strings.Contains(output, "ended with code 0") {
			t.Fatalf("something was lost, or the migration has ended:\n%s", output)
		}
		l.note(output)
	}
	for life := range cuts {
		m := l.boot(t, life, fmt.Sprintf("MOST=%d", l.durable+writesOfLife), "FLAGS=--region-size=64KiB --commit-bytes=1MiB --commit-period=100ms --bwlimit=128KiB/s")
		m.WaitOutput(fmt.Sprintf("durable %d\n", l.durable+1+rng.IntN(writesOfLife)))
		pause := time.Duration(rng.IntN(300)) * time.Millisecond
		time.Sleep(pause) // the cut is to be at a random moment
		m.PowerCut()
		check(m.Output())
		t.Logf("cut %d: %v later, %d writes durable", life+1, pause, l.durable)
	}
	v := l.boot(t, cuts, fmt.Sprintf("MOST=%d", l.durable+4), "FLAGS=--bwlimit=4MiB/s", "LAST=1").Wait()
	check(v.Output)
	if regexp.MustCompile(`cached\s+0\n`).MatchString(v.Output) {
		t.Errorf("the page cache was not used:\n%s", v.Output)
	}
	for _, want := range []string{"cached ", "ended with code 0", "every byte is right", "the source is empty"} {
		if !strings.Contains(v.Output, want) {
			t.Errorf("the end lacks %q:\n%s", want, v.Output)
		}
	}
}
