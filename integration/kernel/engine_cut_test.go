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

//go:embed engine_cut.sh
var engineCutScript string

// fault 63, fault 67: power is cut at random moments while the kernel hydrates a volume
// that is mounted and written to. After each cut the same command brings the device back,
// the file system replays its journal, and every file that was synced is as it was. In the
// end the device lies over the destination, the source is empty, and all file systems and
// the pool are sound.
func TestEnginePowerCuts(t *testing.T) {
	t.Parallel()
	const cuts = 4
	rounds := 1
	if nightly() {
		rounds = 8
	}
	for round := range rounds {
		for fs, bytes := range map[string]int64{"ext4": 64 * mib, "xfs": 304 * mib} {
			t.Run(fmt.Sprintf("%s, seed %d", fs, round), func(t *testing.T) {
				t.Parallel()
				newEngineCuts(t, uint64(round), fs, bytes).cutAndFinish(cuts)
			})
		}
	}
}

// engineCuts is a machine with its disks over several lives.
type engineCuts struct {
	*testing.T
	rng    *rand.Rand
	disks  []string
	env    []string
	synced int // files that are durable
}

func newEngineCuts(t *testing.T, seed uint64, fs string, bytes int64) *engineCuts {
	t.Helper()
	return &engineCuts{
		T: t, rng: rand.New(rand.NewPCG(seed, 7)),
		disks: []string{
			testkernel.NewDisk(t, 64*mib), testkernel.NewDisk(t, bytes+64*mib), testkernel.NewDisk(t, 4*mib), testkernel.NewDisk(t, 96*mib),
		},
		env: []string{"PROGRAMS=" + programsDirectory(t), "FS=" + fs, fmt.Sprintf("IMAGE_BYTES=%d", bytes)},
	}
}

func (c *engineCuts) boot(more ...string) *testkernel.Machine {
	c.Helper()
	env := append(append([]string{fmt.Sprintf("SYNCED=%d", c.synced)}, c.env...), more...)
	return testkernel.Boot(c, testkernel.Config{Disks: c.disks, Env: env, Script: engineCutScript, MemoryBytes: 512 * mib})
}

func (c *engineCuts) cutAndFinish(cuts int) {
	first := []string{"FIRST=1"}
	for life := range cuts {
		m := c.boot(first...)
		first = nil
		// Somewhere between the making of the device and some synced files later.
		after := c.rng.IntN(6)
		event := `"event":"(exported|stopped)"`
		if after > 0 {
			event = fmt.Sprintf(`(?s)checked \d+ files.*?(synced \d+\..*?){%d}|wrote all`, after)
		}
		m.WaitOutput(event)
		pause := time.Duration(c.rng.IntN(300)) * time.Millisecond
		time.Sleep(pause) // the cut is to be at a random moment
		m.PowerCut()
		c.check(m.Output())
		c.Logf("cut %d: %v after %q, %d files are durable", life+1, pause, event, c.synced)
	}
	v := c.boot("LAST=1").Wait()
	c.check(v.Output)
	if v.ExitCode != 0 || !strings.Contains(v.Output, "finished") {
		c.Errorf("the last life ended with code %d", v.ExitCode)
	}
	for _, want := range []string{"ended with code 0\n", " linear ", "source is empty\n"} {
		if !strings.Contains(v.Output, want) {
			c.Errorf("the last life does not say %q", want)
		}
	}
	if strings.Contains(v.Output, ".clone\n") {
		c.Error("the kernel's metadata is left")
	}
	if c.Failed() {
		c.Logf("output:\n%s", v.Output)
	}
}

var syncedLine = regexp.MustCompile(`synced (\d+)\.`)

// check takes note of what is durable, and fails the test if something was lost.
func (c *engineCuts) check(output string) {
	c.Helper()
	for _, m := range syncedLine.FindAllStringSubmatch(output, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			c.Fatal(err)
		}
		c.synced = max(c.synced, n+1)
	}
	for line := range strings.Lines(output) {
		ended := strings.HasPrefix(line, "ended with code ") && line != "ended with code 0\n"
		if ended || strings.HasPrefix(line, "lost: ") || strings.Contains(line, "No such file") {
			c.Fatalf("%s\n%s", line, output)
		}
	}
}
