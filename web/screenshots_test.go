package web

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

// screenshotsVariable asks for the pictures in docs to be made anew.
const screenshotsVariable = "DECANT_SCREENSHOTS"

// imagesDir is what people see in the pictures. The test makes it, and takes it away.
const imagesDir = "/var/tmp/images"

// The pictures are of real migrations, as far as those have come when they are taken.
func TestScreenshots(t *testing.T) {
	if os.Getenv(screenshotsVariable) == "" {
		t.Skip("the pictures are made only with " + screenshotsVariable + "=1")
	}
	if err := os.Mkdir(imagesDir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(imagesDir) })
	s := newRealService(t, onDisk(t))
	pool := exec.Command(filepath.Join(s.bin, "thinctl"), "pool", "create", "fast", "--dir", s.path("fast"), "--size", "4GiB", "--state-dir", s.path("state"))
	if out, err := pool.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p := openTab(t, "about:blank", 1280, 900)
	p.reach(s.url())
	begin := func(name string, size int64, limit string) {
		t.Helper()
		source := filepath.Join(imagesDir, name+".raw")
		s.image(source, size*mib, byte(size))
		s.fillForm(p, source, "fast/"+name, limit)
		p.press("Start")
		p.waitText("h1", name+".raw")
	}
	begin("git", 120, "0")
	p.state("done")
	begin("wiki", 150, "30 MiB/s")
	p.waitText(".figures", "4") // some way
	p.moves()
	p.moves()
	p.press("Pause")
	p.state("paused")
	begin("build-host", 640, "28 MiB/s")
	p.state("running")
	detail := eval[string](p, "location.hash")
	begin("mail", 90, "0")
	begin("metrics", 200, "0")
	p.state("queued")

	p.do(chromedp.Navigate(s.url() + detail))
	p.wait("parseInt(document.querySelector('.figures .figure').innerText) >= 55")
	p.wait("!document.querySelector('[aria-busy=true]')")
	p.media("prefers-color-scheme=light")
	p.picture("page-light.png", 1280, 1130, 1)
	p.do(chromedp.Navigate(s.url() + "#/"))
	p.media("prefers-color-scheme=dark")
	p.wait("[...document.querySelectorAll('.strip canvas')].every((c) => c.ariaLabel.includes('parts'))")
	p.picture("page-dark.png", 1280, 620, 1)
	p.do(chromedp.Navigate(s.url() + detail))
	p.media("prefers-color-scheme=light")
	p.wait("document.querySelector('.map > canvas')?.ariaLabel.includes('parts')")
	p.picture("page-phone.png", 360, 800, 2)
}

// picture writes what the browser shows at a size and scale to docs.
func (p *tab) picture(name string, width, height int64, scale float64) {
	p.t.Helper()
	p.do(chromedp.EmulateViewport(width, height, chromedp.EmulateScale(scale)))
	// Canvases are drawn again when their width has changed.
	p.wait("new Promise((done) => setTimeout(() => requestAnimationFrame(() => done(true)), 1500))")
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	const most = 200 << 10
	if len(png) > most {
		p.t.Errorf("%s has %d bytes, more than %d", name, len(png), most)
	}
	if err := os.WriteFile(filepath.Join("..", "docs", name), png, 0o644); err != nil {
		p.t.Fatal(err)
	}
}
