package kernel

import (
	_ "embed"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"decant/integration/testkernel"
)

//go:embed live_power_cut.sh
var livePowerCutScript string

// fault 63, fault 67: power is cut at random moments while a file system is mounted from
// a volume that hydrates, and written to. After each cut the same command goes on, the
// file system replays its journal, and every file that was durable is whole. In the end
// the file system is sound, and the device lies over the destination.
func TestLivePowerCuts(t *testing.T) {
	t.Parallel()
	for filesystem, imageBytes := range map[string]int64{"ext4": 64 * mib, "xfs": 304 * mib} {
		rounds := uint64(1)
		if nightly() {
			rounds = 8
		}
		for seed := range rounds {
			t.Run(fmt.Sprintf("%s %d", filesystem, seed), func(t *testing.T) {
				t.Parallel()
				cutLive(t, filesystem, imageBytes, seed)
			})
		}
	}
}

func cutLive(t *testing.T, filesystem string, imageBytes int64, seed uint64) {
	const cuts, filesOfLife = 3, 8
	rng := rand.New(rand.NewPCG(seed, uint64(imageBytes)))
	l := lives{
		disks: []string{testkernel.NewDisk(t, imageBytes+64*mib), testkernel.NewDisk(t, imageBytes+8*mib)}, script: livePowerCutScript,
		env: []string{"FS=" + filesystem, fmt.Sprintf("IMAGE_BYTES=%d", imageBytes)},
	}
	check := func(output string) {
		t.Helper()
		if strings.Contains(output, "lost ") || strings.Contains(output, "ended with code") && !strings.Contains(output, "ended with code 0") {
			t.Fatalf("something was lost, or the migration has ended:\n%s", output)
		}
		l.note(output)
	}
	for life := range cuts {
		m := l.boot(t, life, fmt.Sprintf("MOST=%d", l.durable+filesOfLife), "FLAGS=--commit-bytes=1MiB --commit-period=100ms --bwlimit=1MiB/s")
		event := []string{"mounted", "checked", fmt.Sprintf("durable %d", l.durable+1+rng.IntN(filesOfLife))}[rng.IntN(3)]
		m.WaitOutput(event)
		pause := time.Duration(rng.IntN(400)) * time.Millisecond
		time.Sleep(pause) // the cut is to be at a random moment
		m.PowerCut()
		check(m.Output())
		t.Logf("cut %d: %v after %q, %d files durable", life+1, pause, event, l.durable)
	}
	v := l.boot(t, cuts, fmt.Sprintf("MOST=%d", l.durable+4), "FLAGS=", "LAST=1").Wait()
	check(v.Output)
	if v.ExitCode != 0 {
		t.Fatalf("the last life ended with code %d:\n%s", v.ExitCode, v.Output)
	}
	for _, want := range []string{"ended with code 0", "the source is empty", " linear "} {
		if !strings.Contains(v.Output, want) {
			t.Errorf("the end lacks %q:\n%s", want, v.Output)
		}
	}
}
