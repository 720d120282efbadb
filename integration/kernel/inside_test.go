package kernel

import (
	"os"
	"os/exec"
	"sync"
	"testing"

	"decant/integration/testkernel"
)

// binariesVariable names a directory with programs that are built already; inside
// it names the one with the programs under test.
const binariesVariable = "DECANT_TEST_BINARIES"

// programs are the programs under test, built once.
var programs = sync.OnceValues(func() (dir string, err error) {
	if dir = os.Getenv(binariesVariable); dir != "" {
		return dir, nil
	}
	if dir, err = os.MkdirTemp("", "decant-programs"); err != nil {
		return "", err
	}
	built = dir
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", "./cmd/migrate", "./cmd/thinctl", "./cmd/hydrated")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	return dir, cmd.Run()
})

var built string // to be removed

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built) // a temporary directory at worst stays
	}
	os.Exit(code)
}

func programsDirectory(t testing.TB) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatalf("build the programs: %v", err)
	}
	return dir
}

// The tests of space have a boot of their own, they take long.
func TestPrograms(t *testing.T) { runInside(t, "^TestKernel([^S]|S[^p])") }
func TestSpace(t *testing.T)    { runInside(t, "^TestKernelSpace") }

func TestLive(t *testing.T)      { runInside(t, "^TestLive[^C]") }
func TestLiveCrash(t *testing.T) { runInside(t, "^TestLiveC") }
func TestEngine(t *testing.T)    { runInside(t, "^TestEngine[^F]") }

func TestEngineFaults(t *testing.T) { runInside(t, "^TestEngineFault") }

func runInside(t *testing.T, tests string) {
	t.Helper()
	t.Parallel()
	testkernel.RunTestsOn(t, testkernel.Config{
		Disks: []string{testkernel.NewDisk(t, 1<<30), testkernel.NewDisk(t, 4<<30)},
		Env:   []string{binariesVariable + "=" + programsDirectory(t)},
	}, "inside", tests)
}
