package kernel

import (
	"testing"

	"decant/integration/testkernel"
)

// Volume groups of LVM as destinations and as sources. LVM's commands take their
// time, so that each of the two has a boot of its own.
func TestGroups(t *testing.T) {
	for name, run := range map[string]string{"destination": "^TestGroupTo", "source": "^TestGroupFrom"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testkernel.RunTestsOn(t, testkernel.Config{
				Disks: []string{testkernel.NewDisk(t, 1<<30), testkernel.NewDisk(t, 4<<30)},
				Env:   []string{binariesVariable + "=" + programsDirectory(t)},
			}, "inside", run)
		})
	}
}

func TestGroupPools(t *testing.T) {
	t.Parallel()
	testkernel.RunTests(t, "../../thin", "^TestKernelGroup", testkernel.NewDisk(t, 128*mib))
}
