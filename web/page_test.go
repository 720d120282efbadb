package web

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"decant/service"
	"decant/thin"
)

// oneOfEach is a migration in every state.
func oneOfEach() []service.Status {
	var list []service.Status
	for i, state := range []service.State{"running", "queued", "paused", "stopped", "failed", "done", "cancelled", "reversed", "external"} {
		s := migrationOf(fmt.Sprintf("%08x", 0x5f0c91ab+i*0x1234567), "/images/"+string(state)+".raw", "fast/"+string(state), state)
		if state == "stopped" || state == "failed" {
			s.Reason = "no space: pool vg0/tp has no data blocks"
			s.Hint = "give the pool more space: lvextend -L +512M vg0/tp"
		}
		list = append(list, s)
	}
	return list
}

func TestPageShowsEveryState(t *testing.T) {
	f := newFake(t)
	list := oneOfEach()
	f.put(list...)
	p := openTab(t, f.URL, 1280, 900)
	p.wait("document.querySelectorAll('.migrations tbody tr').length === %d", len(list))
	for _, s := range list {
		p.wait("!!document.querySelector('[data-state=%s]')", s.State)
		p.do(chromedp.Navigate(f.URL + "#/m/" + s.ID))
		p.waitText("h1", string(s.State)+".raw")
		p.waitText(".paths", s.Destination)
		if s.Reason != "" {
			p.waitText(".notice", s.Reason)
			p.waitText(".notice .hint", s.Hint)
		}
		want := map[service.State]string{
			"running": "Pause,Cancel and reverse…", "queued": "Pause,Cancel…", "paused": "Resume,Cancel and reverse…", "stopped": "Resume,Cancel and reverse…",
			"failed": "Resume,Cancel and reverse…", "done": "Verify,Reverse…", "cancelled": "", "reversed": "", "external": "Pause",
		}[s.State]
		if got := eval[string](p, "[...document.querySelectorAll('.controls button')].map((b) => b.innerText).join()"); got != want {
			t.Errorf("%s: the buttons are %q, not %q", s.State, got, want)
		}
		p.press("All migrations")
		p.waitText("h1", "Migrations")
	}
}

func TestPageWithoutMigrations(t *testing.T) {
	f := newFake(t)
	p := openTab(t, f.URL, 1280, 900)
	p.waitText(".empty", "No migrations yet")
	p.waitText("section", "None is known here") // pools

	f.refuse("list", &service.Error{Outcome: service.Failed, Problem: "the state directory cannot be read", Hint: "look at its permissions"})
	f.refuse("pools", &service.Error{Outcome: service.Failed, Problem: "lvs has failed"})
	p.do(chromedp.Reload())
	p.waitText(".notice", "the state directory cannot be read")
	p.waitText(".hint", "look at its permissions")
	if p.text(); strings.Contains(p.text(), "No migrations yet") {
		t.Error("a list that cannot be read is called empty")
	}
	f.refuse("list", nil)
	p.waitText(".empty", "No migrations yet") // by itself
	p.waitText(".notice", "lvs has failed")
}

func TestPageOfAMigrationThatIsNot(t *testing.T) {
	f := newFake(t)
	for _, id := range []string{"deadbeef", "%3Cb%3E", "%", "a/b"} {
		p := openTab(t, f.URL+"#/m/"+id, 800, 600)
		p.waitText("h1", "There is no migration")
	}
}

// fault 89: names of images and volumes, and messages about them, are text, whatever
// they look like, and what does not print is visible.
func TestFault89NamesAreText(t *testing.T) {
	const (
		markup  = `<img src=x onerror="window.hit=1"><script>window.hit=1</script>`
		breaks  = `"'><svg onload=window.hit=1>${window.hit=1}`
		hidden  = "a\u202egpj.exe\x1b[31m\nb\x00c\u200bd"
		visible = `a\u{202e}gpj.exe\u{1b}[31m\nb\u{0}c\u{200b}d`
	)
	f := newFake(t)
	s := migrationOf("5f0c91ab", "/images/"+markup+hidden, "pool/"+breaks+hidden, "stopped")
	s.Reason, s.Hint = markup+hidden, breaks+hidden
	f.put(s)
	f.pools = []service.PoolStatus{{PoolInfo: thin.PoolInfo{Name: markup + hidden, Kind: "directory"}, Problem: breaks + hidden}}
	f.bad["5f0c91ab"] = []service.BadBytes{{Offset: 4096, Bytes: 512, Error: markup + hidden}}
	warning := eventOf(s, service.Warning, 1)
	warning.Message = markup + hidden
	f.tell(warning)
	p := openTab(t, f.URL, 1280, 900)
	check := func(where string) {
		t.Helper()
		if eval[bool](p, "window.hit === 1 || !!document.querySelector('img[src=x], svg[onload]') || document.scripts.length !== 1") {
			t.Errorf("%s: a name was taken for markup", where)
		}
		if shown := eval[string](p, "document.body.innerText + document.title"); strings.ContainsAny(shown, "\u202e\x1b\x00\u200b") {
			t.Errorf("%s: characters that do not print are in the text", where)
		}
		if titles := eval[string](p, "[...document.querySelectorAll('[title], [aria-label]')].map((e) => e.title + e.ariaLabel).join()"); strings.ContainsAny(titles, "\u202e\x1b\x00\u200b\n") {
			t.Errorf("%s: characters that do not print are in attributes: %q", where, titles)
		}
	}
	p.waitText(".migrations", visible)
	p.waitText(".migrations", markup)
	p.waitText(".pools", visible)
	check("list")
	p.do(chromedp.Navigate(f.URL + "#/m/5f0c91ab"))
	p.waitText(".notice", breaks+visible)
	p.waitText(".events", "Warning: "+markup+visible)
	p.waitText("table.bad", markup+visible)
	check("migration")
	p.press("Cancel and reverse…")
	p.waitText("dialog", markup+visible)
	check("dialog")
}

// fault 95: a migration whose source is not whole any more is not simply cancelled, and
// what cannot be undone has to be typed.
func TestFault95CancellingIsTyped(t *testing.T) {
	f := newFake(t)
	whole := migrationOf("0000aaaa", "/images/whole.raw", "fast/whole", "paused")
	whole.Discarded = 0
	f.put(whole, migrationOf("0000bbbb", "/images/half.raw", "fast/half", "paused"))
	p := openTab(t, f.URL+"#/m/0000aaaa", 1280, 900)
	p.press("Cancel…")
	p.waitText("dialog h2", "Cancel migration 0000aaaa?")
	p.waitText("dialog", "/images/whole.raw")
	p.fill("typed", "0000bbbb")
	p.keys("\r")
	if !eval[bool](p, "document.querySelector('dialog button[type=submit]').disabled") {
		t.Error("the wrong word was enough")
	}
	p.fill("typed", "0000aaaa")
	if len(f.requests()) > 0 {
		t.Fatalf("done without being confirmed: %q", f.requests())
	}
	p.press("Cancel it")
	p.wait("!document.querySelector('dialog')")
	p.wait("document.querySelector('h1 + .state').dataset.state === 'cancelled'")

	p.do(chromedp.Navigate(f.URL + "#/m/0000bbbb"))
	p.press("Cancel and reverse…")
	p.waitText("dialog", "regions were freed on the source, which is not whole any more")
	p.fill("typed", "0000bbbb")
	p.press("Cancel and reverse")
	p.wait("!document.querySelector('dialog')")
	want := []string{`cancel 0000aaaa {"Reverse":false}`, `cancel 0000bbbb {"Reverse":true}`}
	if got := f.requests(); !slices.Equal(got, want) {
		t.Errorf("asked for %q", got)
	}
}

// fault 96: starting over what already holds data, or removing the source, has to be
// typed; what the service refuses stays refused, with its reason and hint.
func TestFault96StartingOverIsTyped(t *testing.T) {
	f := newFake(t)
	f.refuse("start", &service.Error{
		Outcome: service.Refused, Object: "/images/vm.raw", Problem: "its holes are not data: migration 5f0c91ab has begun to empty it",
		Hint: "go on with it: migrate resume 5f0c91ab",
	})
	p := openTab(t, f.URL+"#/new", 1280, 900)
	p.fill("source", "/images/vm.raw")
	p.fill("destination", "/srv/vm copy.raw")
	p.do(chromedp.Click(chromedp.CSS("input[name=overwrite]")))
	p.press("Start")
	p.waitText("dialog", "Whatever /srv/vm copy.raw holds now is overwritten")
	if got := eval[string](p, "document.querySelector('dialog label code').innerText"); got != "vm copy.raw" {
		t.Errorf("to be typed: %q", got)
	}
	p.fill("typed", "vm copy.raw")
	p.press("Start")
	p.waitText("dialog .notice", "its holes are not data")
	p.waitText("dialog .hint", "migrate resume 5f0c91ab")
	p.press("Leave it")
	p.wait("!document.querySelector('dialog')")
	p.press("Start")
	p.wait("document.querySelector('input[name=typed]').value === ''")
	p.keys("\x1b")
	p.wait("!document.querySelector('dialog')")
	if eval[string](p, "location.hash") != "#/new" {
		t.Error("a refused migration has led elsewhere")
	}
}

func TestCheckShowsTheProof(t *testing.T) {
	f := newFake(t)
	p := openTab(t, f.URL+"#/new", 1280, 900)
	p.fill("source", "/images/vm.raw")
	p.fill("destination", "fast/vm")
	p.do(chromedp.Click(chromedp.CSS("input[name=discard_src]")))
	p.press("Sizes, limits, use while it runs")
	p.fill("region_size", "4 MiB")
	p.fill("bwlimit", "50MiB/s")
	p.fill("threshold", "8")
	p.press("Check only")
	p.waitText(".proof", "It can be done. 132 MiB are needed beside what the source frees, 2 GiB are there")
	p.waitText(".proof .hint", "its blocks are shared with a snapshot")
	o := service.DefaultOptions()
	o.DiscardSource, o.RegionBytes, o.RegionBytesFixed, o.BytesPerSecond, o.ThresholdRegions = true, 4<<20, true, 50<<20, 8
	options, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := f.requests(), "plan /images/vm.raw fast/vm "+string(options); !slices.Equal(got, []string{want}) {
		t.Errorf("asked for %s, not %s", got, want)
	}
	p.fill("source", "2") // what was checked is not this
	p.wait("!document.querySelector('.proof')")

	f.refuse("plan", &service.Error{Outcome: service.Refused, Object: "fast/vm", Problem: "too little space", Hint: "free 3.2 GiB"})
	p.press("Check only")
	p.waitText(".notice.bad", "fast/vm: too little space")
	p.waitText(".notice .hint", "free 3.2 GiB")
}

func TestLimitsAreChanged(t *testing.T) {
	f := newFake(t)
	f.put(migrationOf("5f0c91ab", "/images/vm.raw", "fast/vm", "running"))
	p := openTab(t, f.URL+"#/m/5f0c91ab", 1280, 900)
	p.fill("bwlimit", "80 MiB/s")
	p.press("Set limits")
	p.waitText(".limits", "Changed.")
	want := `tune 5f0c91ab {"bytes_per_second":83886080,"threshold_regions":32,"priority":0}`
	if got := f.requests(); !slices.Equal(got, []string{want}) {
		t.Errorf("asked for %s", got)
	}
}

func TestEventsMoveThePage(t *testing.T) {
	f := newFake(t)
	s := migrationOf("5f0c91ab", "/images/vm.raw", "fast/vm", "running")
	f.put(s)
	p := openTab(t, f.URL+"#/m/5f0c91ab", 1280, 900)
	p.wait("document.querySelector('.link').dataset.link === 'live'")
	e := eventOf(s, service.Progress, 2)
	e.BytesCopied, e.RateBytesPerSecond = 9<<30, 33<<20
	f.tell(e)
	p.waitText(".figures", "9.00 GiB")
	p.waitText(".figures", "33.0 MiB/s")
	p.waitText(".chart", "33.0 MiB/s")
	before := eval[string](p, "document.querySelector('.map canvas').ariaLabel")
	f.mu.Lock()
	f.cells[s.ID] = slices.Repeat([]service.Cell{{State: "discarded", Hydrated: 1}}, 1600)
	f.cells[s.ID][7] = service.Cell{State: "bad"}
	f.list[0].State, f.list[0].Reason = "stopped", "the source cannot be read"
	f.mu.Unlock()
	stopped := eventOf(s, service.StoppedRun, 3)
	stopped.Reason, stopped.Hint = "the source cannot be read", "look at the kernel's log"
	f.tell(stopped)
	p.waitText(".events", "Stopped: the source cannot be read")
	p.waitText(".chart", "copied 0 B/s")
	p.wait("document.querySelector('.map canvas').ariaLabel.includes('1 cannot be read')")
	if after := eval[string](p, "document.querySelector('.map canvas').ariaLabel"); after == before {
		t.Errorf("the map has not moved: %s", after)
	}
	p.waitText("#announcements", "vm.raw: stopped: the source cannot be read")
}

// Of a migration that another process works on no events come: what the list says is
// shown.
func TestMigrationOfAnotherProcessMoves(t *testing.T) {
	f := newFake(t)
	s := migrationOf("5f0c91ab", "/images/vm.raw", "fast/vm", "external")
	s.Event = nil
	f.put(s)
	p := openTab(t, f.URL+"#/m/5f0c91ab", 1280, 900)
	p.wait("document.querySelector('.map > canvas')?.ariaLabel.includes('not copied yet')")
	before := eval[string](p, "document.querySelector('.map > canvas').ariaLabel")
	f.change(func() {
		m := &f.list[0]
		m.Hydrated, m.Discarded, m.BytesCopied, m.Transaction = 6000, 6000, 6000*mib, 90
		f.cells[m.ID] = cellsOf(*m)
	})
	p.waitText(".figures", "48 %")
	p.waitText(".figures", "5.86 GiB")
	p.wait("document.querySelector('.map > canvas').ariaLabel !== %q", before)
	p.wait("!!document.querySelector('.chart canvas')")
}

func TestServiceGoesAndComesBack(t *testing.T) {
	f := newFake(t)
	s := migrationOf("5f0c91ab", "/images/vm.raw", "fast/vm", "running")
	f.put(s)
	f.tell(eventOf(s, service.CommittedTx, -2), eventOf(s, service.CommittedTx, -1))
	p := openTab(t, f.URL+"#/m/5f0c91ab", 1280, 900)
	p.wait("document.querySelector('.link').dataset.link === 'live'")
	p.wait("!!document.querySelector('.chart canvas')")
	f.vanish()
	p.waitText(".banner", "The service has not answered since")
	p.waitText(".banner", "Migrations are safe")
	p.waitText("#announcements", "The service does not answer.")
	p.wait("[...document.querySelectorAll('.controls button')].every((b) => b.disabled)")
	p.waitText("h1", "vm.raw") // what was known stays
	f.comeBack(t)
	p.wait("!document.querySelector('.banner') && document.querySelector('.link').dataset.link === 'live'")
	p.wait("[...document.querySelectorAll('.controls button')].every((b) => !b.disabled)")
	f.mu.Lock()
	defer f.mu.Unlock()
	if last := f.streams[len(f.streams)-1]; f.streams[0] != 0 || last != 2 {
		t.Errorf("the streams began behind %d", f.streams)
	}
}

func TestPageOpenedWhileServiceIsGone(t *testing.T) {
	f := newFake(t)
	f.put(migrationOf("5f0c91ab", "/images/vm.raw", "fast/vm", "running"))
	p := openTab(t, f.URL, 1280, 900)
	p.wait("document.querySelector('.link').dataset.link === 'live'")
	f.refuse("events", &service.Error{Outcome: service.Failed, Problem: "it is stopping"})
	p.do(chromedp.Reload())
	p.waitText(".banner", "The service has not answered since")
	f.refuse("events", nil)
	p.press("Try now")
	p.wait("!document.querySelector('.banner')")
}

// waitReaders waits until so many streams are open at the service.
func (f *fakeManager) waitReaders(t *testing.T, want int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		f.mu.Lock()
		n := f.readers
		f.mu.Unlock()
		if n == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d streams are open, not %d", n, want)
		}
	}
}

// hurry makes a time that the page waits for short.
func (p *tab) hurry(milliseconds int) {
	p.t.Helper()
	eval[bool](p, `(() => {
		const real = window.setTimeout;
		window.setTimeout = (f, delay, ...rest) => real(f, delay === %d ? 50 : delay, ...rest);
		return true;
	})()`, milliseconds)
}

func TestHiddenPageLetsItsConnectionGo(t *testing.T) {
	f := newFake(t)
	s := migrationOf("5f0c91ab", "/images/vm.raw", "fast/vm", "running")
	f.put(s)
	p := openTab(t, f.URL+"#/m/5f0c91ab", 1280, 900)
	p.wait("document.querySelector('.link').dataset.link === 'live'")
	f.waitReaders(t, 1)
	p.hurry(60_000)
	eval[bool](p, `(() => {
		Object.defineProperty(document, "hidden", {value: true, configurable: true});
		return document.dispatchEvent(new Event("visibilitychange"));
	})()`)
	f.waitReaders(t, 0)
	if eval[bool](p, "!!document.querySelector('.banner')") {
		t.Error("the page misses what it has given up itself")
	}
	e := eventOf(s, service.Progress, 2)
	e.BytesCopied = 9 << 30
	f.tell(e)
	eval[bool](p, `delete document.hidden && document.dispatchEvent(new Event("visibilitychange"))`)
	p.waitText(".figures", "9.00 GiB")
	f.waitReaders(t, 1)
}

func TestSilentServiceIsGone(t *testing.T) {
	f := newFake(t)
	f.put(migrationOf("5f0c91ab", "/images/vm.raw", "fast/vm", "running"))
	p := openTab(t, f.URL, 1280, 900)
	p.wait("document.querySelector('.link').dataset.link === 'live'")
	p.hurry(40_000)
	f.tell(eventOf(f.list[0], service.Progress, 1)) // from which silence is counted
	p.waitText(".banner", "The service has not answered since")
}

func TestToken(t *testing.T) {
	f := newFake(t)
	f.put(migrationOf("5f0c91ab", "/images/vm.raw", "fast/vm", "running"))
	p := openBare(t, f.URL+"#/m/5f0c91ab", 1280, 900)
	p.waitText("h1", "Token")
	p.wait("document.activeElement.name === 'token'")
	p.fill("token", "a-token-that-is-wrong\r")
	p.waitText(".notice", "does not know this token")
	p.fill("token", token+"\r")
	p.waitText("h1", "vm.raw")
	p.wait("document.querySelector('.link').dataset.link === 'live'")
	if eval[bool](p, "location.href.includes('token') || document.cookie !== '' || localStorage.length > 0 || sessionStorage.length !== 1") {
		t.Error("the token is somewhere else than in the session of the tab")
	}
	p.do(chromedp.Reload())
	p.waitText("h1", "vm.raw")
	p.press("Forget token")
	p.waitText("h1", "Token")
	if eval[int](p, "sessionStorage.length") != 0 || strings.Contains(p.text(), "vm.raw") {
		t.Error("something is left of the session")
	}
}

func TestNothingIsLoadedFromElsewhere(t *testing.T) {
	f := newFake(t)
	f.put(oneOfEach()...)
	p := openTab(t, f.URL, 1280, 900)
	asked := make(chan string, 1000)
	err := chromedp.Listen(p.ctx, func(e any) {
		if request, ok := e.(*network.EventRequestWillBeSent); ok {
			asked <- request.Request.URL
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	p.do(chromedp.Navigate(f.URL+"#/m/5f0c91ab"), chromedp.Reload())
	p.wait("document.querySelector('.link').dataset.link === 'live' && !!document.querySelector('.map canvas').width")
	p.do(chromedp.Navigate(f.URL + "#/new"))
	p.waitText("h1", "New migration")
	if len(asked) < 10 {
		t.Errorf("%d requests seen", len(asked))
	}
	for range len(asked) {
		if url := <-asked; !strings.HasPrefix(url, f.URL+"/") {
			t.Errorf("%s was asked for", url)
		}
	}
}

// What a name that was taken for markup could do is also forbidden by the policy.
func TestPolicyHolds(t *testing.T) {
	f := newFake(t)
	p := openTab(t, f.URL, 1280, 900)
	p.mayComplain = true
	p.waitText("h1", "Migrations")
	const attempt = `new Promise((done) => {
		addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective), {once: true});
		setTimeout(() => done("nothing"), 2000);
		try { %s } catch (e) { done(e.name); }
	})`
	for what, want := range map[string]string{
		`document.body.innerHTML = "<b>x</b>"`: "TypeError",
		`document.body.append(Object.assign(document.createElement("style"), {textContent: "body { display: none }"}))`: "style-src-elem",
		`document.body.setAttribute("style", "display: none")`:                                                          "style-src-attr",
		`document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/x"}))`:                               "img-src",
		`fetch("http://127.0.0.1:9/x").catch(() => 0)`:                                                                  "connect-src",
	} {
		got, err := chromedp.Run(p.ctx, chromedp.Evaluate[string](fmt.Sprintf(attempt, what), chromedp.EvalAwaitPromise))
		if err != nil || got != want {
			t.Errorf("%s: %s, %v, not %s", what, got, err, want)
		}
	}
}

func TestManyMigrations(t *testing.T) {
	f := newFake(t)
	var list []service.Status
	for i := range 2000 {
		list = append(list, migrationOf(fmt.Sprintf("%08x", i), fmt.Sprintf("/images/%d.raw", i), "fast/vm", "done"))
	}
	list[3].Created = list[3].Created.Add(-24 * time.Hour)
	list[3].State = service.StateStopped
	list[4].Created = list[4].Created.Add(-24 * time.Hour)
	f.put(list...)
	p := openTab(t, f.URL, 1280, 900)
	p.waitText("tbody tr", "/images/3.raw") // what is unfinished is never left out
	p.waitText(".heading", "2\u202f000, of which 1\u202f001 are listed")
	if rows := eval[int](p, "document.querySelectorAll('tbody tr').length"); rows != 50 {
		t.Errorf("%d rows at first", rows)
	}
	p.press("Show more of 1\u202f001")
	p.wait("document.querySelectorAll('tbody tr').length === 100")
	maps := eval[int](p, "performance.getEntriesByType('resource').filter((e) => e.name.includes('/map')).length")
	if maps == 0 || maps > 30 {
		t.Errorf("%d maps were read for what is on the screen", maps)
	}
	p.do(chromedp.Navigate(f.URL + "#/m/" + list[4].ID)) // which is not in the list
	p.waitText("h1", "4.raw")
}
