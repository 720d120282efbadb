package kernel

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decant/integration/testkernel"
)

// BenchmarkSpeed compares migrate with the kernel's dm-clone on the test kernel. It
// prints the figures, the last of each line beside migrate's own; there is nothing in
// them that could fail.
func BenchmarkSpeed(b *testing.B) {
	dir, err := filepath.Abs("inside")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		v := testkernel.Boot(b, testkernel.Config{
			MemoryBytes: 3 << 30,
			Disks:       []string{testkernel.NewMemoryDisk(b, 2<<30), testkernel.NewMemoryDisk(b, 2<<30)},
			Command:     []string{testkernel.Build(b, dir), "-test.run=^$", "-test.bench=^BenchmarkSpeed", "-test.benchtime=1x"},
			Dir:         dir,
			Env:         []string{binariesVariable + "=" + programsDirectory(b)},
			Timeout:     20 * time.Minute,
		}).Wait()
		if v.ExitCode != 0 {
			b.Fatalf("exit code %d:\n%s", v.ExitCode, v.Output)
		}
		var figures strings.Builder
		for line := range strings.Lines(v.Output) {
			if _, figure, found := strings.Cut(line, "SPEED "); found {
				figures.WriteString(figure)
			}
		}
		b.Logf("on the test kernel:\n%s", figures.String())
	}
}
