package kernel

import (
	"testing"

	"decant/integration/testkernel"
)

func TestCloneTarget(t *testing.T) {
	t.Parallel()
	testkernel.RunTests(t, "../../dm/clonetarget", "^TestKernel", testkernel.NewDisk(t, 64*mib))
}
