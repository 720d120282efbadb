package kernel

import (
	"testing"

	"decant/integration/testkernel"
)

func TestThinMetadata(t *testing.T) {
	t.Parallel()
	disks := []string{testkernel.NewDisk(t, 64*mib), testkernel.NewDisk(t, 64*mib)}
	testkernel.RunTests(t, "../../thin/metadata", "^TestKernel", disks...)
}
