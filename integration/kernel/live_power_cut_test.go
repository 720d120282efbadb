package kernel

import (
	_ "embed"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
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

var durableFile = regexp.MustCompile(`(?m)^durable (\d+)$`)

func cutLive(t *testing.T, filesystem string, imageBytes int64, seed uint64) {
	const cuts, filesOfLife = 3, 8
	rng := rand.New(rand.NewPCG(seed, uint64(imageBytes)))
	disks := []string{testkernel.NewDisk(t, imageBytes+64*mib), testkernel.NewDisk(t, imageBytes+8*mib)}
	durable := 0
	boot := func(life int, more ...string) *testkernel.Machine {
		var old []string
		for n := 1; n <= durable; n++ {
			old = append(old, strconv.Itoa(n))
		}
		env := append([]string{
			"PROGRAMS=" + programsDirectory(t), "FS=" + filesystem, fmt.Sprintf("IMAGE_BYTES=%d", imageBytes),
			"OLD=" + strings.Join(old, " "), fmt.Sprintf("NEXT=%d", durable+1),
		}, more...)
		if life == 0 {
			env = append(env, "FIRST=1")
		}
		return testkernel.Boot(t, testkernel.Config{Disks: disks, Env: env, Script: livePowerCutScript, MemoryBytes: 512 * mib})
	}
	check := func(output string) {
		t.Helper()
		if strings.Contains(output, "lost ") || strings.Contains(output, "ended with code") && !strings.Contains(output, "ended with code 0") {
			t.Fatalf("something was lost, or the migration has ended:\n%s", output)
		}
		if m := durableFile.FindAllStringSubmatch(output, -1); len(m) > 0 {
			durable, _ = strconv.Atoi(m[len(m)-1][1]) // it matches digits
		}
	}
	for life := range cuts {
		m := boot(life, fmt.Sprintf("MOST=%d", durable+filesOfLife), "FLAGS=--commit-bytes=1MiB --commit-period=100ms --bwlimit=1MiB/s")
		event := []string{"mounted", "checked", fmt.Sprintf("durable %d", durable+1+rng.IntN(filesOfLife))}[rng.IntN(3)]
		m.WaitOutput(event)
		pause := time.Duration(rng.IntN(400)) * time.Millisecond
		time.Sleep(pause) // the cut is to be at a random moment
		m.PowerCut()
		check(m.Output())
		t.Logf("cut %d: %v after %q, %d files durable", life+1, pause, event, durable)
	}
	v := boot(cuts, fmt.Sprintf("MOST=%d", durable+4), "FLAGS=", "LAST=1").Wait()
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
