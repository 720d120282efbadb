package web

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"golang.org/x/sys/unix"
)

const mib = int64(1) << 20

// realService is the program hydrated, with a page that browsers can reach.
type realService struct {
	t       *testing.T
	bin     string // directory with the programs
	dir     string // on a disk: of images, journals and the socket
	address string
	process *exec.Cmd
}

// onDisk is a directory that is neither in memory nor layered: journals are refused there.
func onDisk(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{os.Getenv("DECANT_TEST_DIR"), os.TempDir(), "/var/tmp"} {
		var st unix.Statfs_t
		if dir == "" || unix.Statfs(dir, &st) != nil {
			continue
		}
		switch st.Type {
		case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
			t.Setenv("TMPDIR", dir)
			return t.TempDir()
		}
	}
	t.Fatal("neither /tmp nor /var/tmp is on ext4, XFS or btrfs; name a directory that is with DECANT_TEST_DIR")
	return ""
}

// newRealService builds the programs and starts the service. It ends with the test.
func newRealService(t *testing.T, dir string) *realService {
	t.Helper()
	s := &realService{t: t, bin: t.TempDir(), dir: dir}
	build := exec.Command("go", "build", "-buildvcs=false", "-o", s.bin+"/", "decant/cmd/hydrated", "decant/cmd/thinctl")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	if err := os.WriteFile(s.path("token"), []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A port that was free a moment ago: the service has to be found at the same one
	// when it is started again.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	l.Close()
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *realService) path(name string) string { return filepath.Join(s.dir, name) }

func (s *realService) url() string { return "http://" + s.address + "/" }

// start starts the service and returns when it answers.
func (s *realService) start() {
	s.t.Helper()
	s.process = exec.Command(filepath.Join(s.bin, "hydrated"), "--config", "/dev/null", "--state-dir", s.path("state"),
		"--socket", s.path("run/hydrated.sock"), "--group", "", "--listen", s.address, "--token-file", s.path("token"), "--log-level", "warn")
	s.process.Stderr = s.t.Output()
	if err := errors.Join(os.MkdirAll(s.path("run"), 0o700), s.process.Start()); err != nil {
		s.t.Fatal(err)
	}
}

// kill ends the service without a chance to do anything.
func (s *realService) kill() {
	_ = s.process.Process.Kill() // it may have ended
	_ = s.process.Wait()         // of what it was killed by
}

// image makes a file of random data and returns its checksum.
func (s *realService) image(path string, bytes int64, seed byte) string {
	s.t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, sum), rand.NewChaCha8([32]byte{seed}), bytes)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

func (s *realService) checksum(path string) string {
	s.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// takes is the space that a file takes.
func (s *realService) takes(path string) int64 {
	s.t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// fillForm fills in the form for a new migration and checks it.
func (s *realService) fillForm(p *tab, source, destination, limit string) {
	s.t.Helper()
	p.do(chromedp.Navigate(s.url() + "#/new"))
	p.fill("source", source)
	p.fill("destination", destination)
	p.do(chromedp.Click(chromedp.CSS("input[name=discard_src]")))
	p.press("Sizes, limits, use while it runs")
	p.fill("bwlimit", limit)
	p.press("Check only")
	p.waitText(".proof", "It can be done")
}

// moves waits until the map shows more regions that are on the destination alone.
func (p *tab) moves() {
	p.t.Helper()
	const freed = `Number((/(\d+) committed, freed on the source/.exec(document.querySelector(".map > canvas")?.ariaLabel) ?? [0, 0])[1])`
	p.wait("%s > %d", freed, eval[int](p, "%s", freed))
}

// state waits for a state of the migration that is shown.
func (p *tab) state(want string) {
	p.t.Helper()
	p.wait("document.querySelector('h1 + .state')?.dataset.state === %q", want)
}

// A migration is started from the page and followed through a pause, a killed service and
// a new limit to its end; and then brought back.
func TestMigrationFromThePage(t *testing.T) {
	s := newRealService(t, onDisk(t))
	source, destination := s.path("vm.raw"), s.path("vm-moved.raw")
	const bytes = 96 * mib
	sum := s.image(source, bytes, 1)

	p := openBare(t, "about:blank", 1280, 900)
	p.reach(s.url())
	p.waitText("h1", "Token")
	p.fill("token", token+"\r")
	p.waitText(".empty", "No migrations yet")

	s.fillForm(p, source, destination, "4 MiB/s")
	if s.takes(source) < bytes {
		t.Fatal("the check has changed the source")
	}
	if _, err := os.Stat(destination); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the check has made the destination: %v", err)
	}
	p.press("Start")
	p.state("running")
	p.moves()
	p.wait("document.querySelector('.map > canvas').ariaLabel.includes('copied, not committed')")
	p.waitText(".figures", "MiB/s")
	p.wait("document.querySelectorAll('.transactions tbody tr').length > 0 && document.querySelectorAll('.chart canvas').length === 2")

	p.press("Pause")
	p.state("paused")
	p.press("Resume")
	p.state("running")
	p.moves()

	s.kill()
	p.waitText(".banner", "The service has not answered since")
	p.wait("[...document.querySelectorAll('.controls button')].every((b) => b.disabled)")
	s.start()
	p.wait("!document.querySelector('.banner') && document.querySelector('.link').dataset.link === 'live'")
	p.state("running")
	p.moves()

	p.fill("bwlimit", "0")
	p.press("Set limits")
	p.waitText(".limits", "Changed.")
	p.state("done")
	p.waitText(".figures", "100 %")
	p.waitText(".events", "Done after")
	if got := s.checksum(destination); got != sum {
		t.Errorf("the destination has the checksum %s, not %s", got, sum)
	}
	if n := s.takes(source); n > mib {
		t.Errorf("the source still takes %d bytes", n)
	}
	p.press("Verify")
	p.waitText(".figures", "all the same")
	p.press("Reverse…")
	p.waitText("dialog", "The bytes are brought back")
	p.press("Reverse it")
	p.state("reversed")
	if got := s.checksum(source); got != sum {
		t.Errorf("brought back, the source has the checksum %s, not %s", got, sum)
	}
}

// reach opens a page as soon as something answers there.
func (p *tab) reach(url string) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/"))
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the service does not answer: %v", err)
		}
	}
	p.do(chromedp.Navigate(url))
}
