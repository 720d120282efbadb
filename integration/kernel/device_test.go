package kernel

import (
	"testing"

	"decant/integration/testkernel"
)

func TestThinDevices(t *testing.T) {
	disks := []string{testkernel.NewDisk(t, 64*mib), testkernel.NewDisk(t, 64*mib)}
	testkernel.RunTests(t, "../../thin", "^TestKernelMapping", disks...)
}
