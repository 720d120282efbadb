// Package kernel runs the tests of packages that need a kernel with device-mapper, on
// the test kernel.
package kernel

import (
	"testing"

	"decant/integration/testkernel"
)

const mib = 1 << 20

func TestDeviceMapper(t *testing.T) {
	t.Parallel()
	disks := []string{testkernel.NewDisk(t, 64*mib), testkernel.NewDisk(t, 64*mib)}
	testkernel.RunTests(t, "../../dm", "^TestKernel", disks...)
}
