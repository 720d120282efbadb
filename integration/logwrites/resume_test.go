package logwrites_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"decant/integration/logwrites"
	"decant/integration/testkernel"
)

// fault 63, fault 67: after a power cut the same command goes on and comes to the end, whatever was left:
// the volume holds the image, and the source nothing.
func TestPowerCutsOnAllMediaCanBeResumed(t *testing.T) {
	count, boots := 2, 1 // states of each recording in a boot
	if nightly() {
		count, boots = 5, 20 // a machine has 16 disks
	}
	for boot := range boots {
		t.Run(fmt.Sprint(boot), func(t *testing.T) { resumeSome(t, boot*count, boots*count, count) })
	}
}

// resumeSome resumes count states of each recording, which are those from first on if
// all of them are spread evenly.
func resumeSome(t *testing.T, first, all, count int) {
	dir := t.TempDir()
	var disks []string
	script := resumeScript + "program=" + buildMigrate(t, plantedBug{}) + "\n"
	for i, r := range recordings(t) {
		image := filepath.Join(dir, fmt.Sprintf("image%d", i))
		if err := os.WriteFile(image, r.image, 0o600); err != nil {
			t.Fatal(err)
		}
		for nr := first; nr < first+count; nr++ {
			cut := logwrites.Cut{
				After: r.begun + (r.log.Len()-r.begun)*(3*nr+i)/(3*all), Keep: 0.5, TornBytes: logwrites.SectorBytes, Seed: uint64(nr),
			}
			disk := testkernel.NewDisk(t, mediaBytes)
			if err := restore(r.log.State(cut), disk); err != nil {
				t.Fatal(err)
			}
			script += fmt.Sprintf("resume /dev/ubd%c %s \"%s: %v\"\n", 'a'+len(disks), image, r.name, cut)
			disks = append(disks, disk)
		}
	}
	v := testkernel.Boot(t, testkernel.Config{
		Disks: disks, Script: script, Timeout: machineTimeout,
		Modules: []string{"dm-mod", "dm-thin-pool"},
	}).Wait()
	resumed := strings.Count(v.Output, "\nresumed ")
	t.Logf("%d states resumed within %v", resumed, v.Total)
	if v.ExitCode != 0 || resumed != len(disks) {
		t.Errorf("code %d, %d of %d states were resumed; output:\n%s", v.ExitCode, resumed, len(disks), v.Output)
	}
}

// restore makes a disk of a state.
func restore(state logwrites.State, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // a test kernel reads it at once, from the same cache
	for _, m := range media {
		if err := state.On(m.Name).WriteTo(io.NewOffsetWriter(f, m.Off)); err != nil {
			return err
		}
	}
	return nil
}

// resumeScript ends at the first state that cannot be resumed.
const resumeScript = commonScript + `
resume() {
	echo "$3"
	dmsetup create log --table "0 81920 linear $1 0"
	slices
	pool
	attach
	(move --discard-src) >/run/events || { echo "migrate ended with code $?"; cat /run/events; exit 1; }
	dd if=/dev/mapper/volume of=/run/moved bs=1M iflag=direct status=none
	cmp /run/moved $2
	left=$(stat -c %b /run/source/image)
	# An attribute may have taken a block out of the inode.
	[ $left -le 8 ] || { echo "the source still takes $left sectors"; exit 1; }
	detach
	echo "resumed $1"
}
`
