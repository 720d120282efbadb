package kernel

import (
	"testing"

	"decant/integration/testkernel"
)

// The kernel's own client of network block devices.
func TestNetworkBlockDevices(t *testing.T) {
	t.Parallel()
	testkernel.RunTests(t, "../../nbd", "^TestKernel")
}
