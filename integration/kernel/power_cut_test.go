package kernel

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decant/integration/testkernel"
)

//go:embed power_cut.sh
var powerCutScript string

// lane is one of the migrations whose power is cut.
type lane struct {
	filesystem  string
	blockBytes  int64 // of the pool
	regionBytes int64
	flags       string
}

func nightly() bool { return os.Getenv("DECANT_NIGHTLY") != "" }

// fault 63, fault 67, fault 69: power is cut at random moments of migrations, the
// same commands go on after each cut, and in the end every byte is there, the sources
// are empty, and pools and file systems are sound. Half of the cuts fall into what the
// cut before has left. Devices come up in another order each time.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	sequences := [][2]lane{
		{{"ext4", 64 << 10, 64 << 10, ""}, {"xfs", 4 << 20, 4 << 20, "--verify"}},
		// Regions that are no multiples of the blocks share some.
		{{"xfs", 256 << 10, 256 << 10, ""}, {"ext4", 192 << 10, 256 << 10, ""}},
	}
	const cuts = 6
	rounds := 1
	if nightly() {
		rounds = 10
	}
	for round := range rounds {
		for i, lanes := range sequences {
			seed := uint64(round*len(sequences) + i)
			t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
				t.Parallel()
				newPowerCuts(t, seed, lanes).cutAndFinish(cuts)
			})
		}
	}
}

// powerCuts is a machine with its disks over several lives.
type powerCuts struct {
	*testing.T
	rng   *rand.Rand
	disks []string
	env   []string
	sum   string // of the image
}

func newPowerCuts(t *testing.T, seed uint64, lanes [2]lane) *powerCuts {
	t.Helper()
	const imageBytes = 24 * mib
	p := &powerCuts{T: t, rng: rand.New(rand.NewPCG(seed, 1))}
	path := filepath.Join(t.TempDir(), "image")
	p.sum = writeImage(t, path, imageBytes, seed)
	p.env = []string{
		"IMAGE=" + path, fmt.Sprintf("IMAGE_BYTES=%d", imageBytes), "PROGRAMS=" + programsDirectory(t),
	}
	p.disks = []string{testkernel.NewDisk(t, 64*mib)}
	for n, l := range lanes {
		sourceBytes := map[string]int64{"ext4": 64 * mib, "xfs": 320 * mib}[l.filesystem]
		p.disks = append(p.disks, testkernel.NewDisk(t, sourceBytes), testkernel.NewDisk(t, 4*mib), testkernel.NewDisk(t, 64*mib))
		// Slow enough that there is time for all cuts.
		flags := fmt.Sprintf("--region-size=%d --commit-bytes=1MiB --commit-period=100ms --bwlimit=6MiB %s", l.regionBytes, l.flags)
		p.env = append(p.env, fmt.Sprintf("FS%d=%s", n, l.filesystem), fmt.Sprintf("SECTORS%d=%d", n, l.blockBytes/512),
			fmt.Sprintf("FLAGS%d=%s", n, flags))
	}
	return p
}

// writeImage makes a file of data, zeros and holes, and returns its SHA-256.
func writeImage(t *testing.T, path string, size int64, seed uint64) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 2))
	random := rand.NewChaCha8([32]byte{byte(seed)})
	content := make([]byte, size)
	for off := int64(0); off < size; {
		n := min(4096<<rng.IntN(9), size-off)
		if rng.IntN(100) < 75 {
			_, _ = random.Read(content[off : off+n]) // never fails
		}
		off += n
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func (p *powerCuts) boot(life int, more ...string) *testkernel.Machine {
	p.Helper()
	env := append(append([]string{"LANES=" + []string{"0 1", "1 0"}[life%2]}, p.env...), more...)
	if life == 0 {
		env = append(env, "FIRST=1")
	}
	return testkernel.Boot(p, testkernel.Config{Disks: p.disks, Env: env, Script: powerCutScript, MemoryBytes: 512 * mib})
}

func (p *powerCuts) cutAndFinish(cuts int) {
	for life := range cuts {
		m := p.boot(life)
		// Some transactions of either lane, and then some moment; or as soon as the
		// programs are at work.
		after := p.rng.IntN(8)
		event := `"event":"(started|failed|stopped)"`
		if after > 0 {
			event = fmt.Sprintf(`(?s)("event":"committed".*?){%d}|both ended`, after)
		}
		m.WaitOutput(event)
		pause := time.Duration(p.rng.IntN(300)) * time.Millisecond
		time.Sleep(pause) // the cut is to be at a random moment
		m.PowerCut()
		p.check(m.Output())
		p.Logf("cut %d: %v after %q", life+1, pause, event)
	}
	v := p.boot(cuts, "LAST=1").Wait()
	p.check(v.Output)
	if v.ExitCode != 0 {
		p.Fatalf("the last life ended with code %d:\n%s", v.ExitCode, v.Output)
	}
	for lane := range 2 {
		if !strings.Contains(v.Output, fmt.Sprintf("lane %d holds %s\n", lane, p.sum)) {
			p.Errorf("lane %d does not hold what its source did (%s)", lane, p.sum)
		}
		if !strings.Contains(v.Output, fmt.Sprintf("lane %d source is empty\n", lane)) {
			p.Errorf("the source of lane %d is not empty", lane)
		}
	}
	if p.Failed() {
		p.Logf("output:\n%s", v.Output)
	}
}

// check fails the test if a migration ended in any other way than done.
func (p *powerCuts) check(output string) {
	p.Helper()
	for line := range strings.Lines(output) {
		if strings.Contains(line, "ended with code") && !strings.HasSuffix(line, "code 0\n") {
			p.Fatalf("a migration %s:\n%s", line, output)
		}
	}
}
