package web

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"decant/service"
	"decant/thin"
)

// views are the addresses of everything that the page can show of newFullFake.
var views = []string{"#/", "#/new", "#/m/5f0c91ab", "#/m/0000f00d", "#/m/none"}

// newFullFake has something to show in every place, with names that are long.
func newFullFake(t *testing.T) *fakeManager {
	f := newFake(t)
	long := "/images/" + strings.Repeat("a-name-without-end.", 12) + "raw"
	stopped := migrationOf("0000f00d", long, "pool/"+strings.Repeat("volume", 20), "stopped")
	stopped.Reason, stopped.Hint = "no space: "+strings.Repeat("x", 120), "give more of it to "+long
	stopped.Verified = &service.VerifyReport{RegionsChecked: 12288, BytesRead: 12 << 30}
	f.put(append(oneOfEach(), stopped)...)
	f.bad["0000f00d"] = []service.BadBytes{{Offset: 1 << 40, Bytes: 1 << 20, Error: "read " + long + ": input/output error"}}
	f.cells["0000f00d"][11] = service.Cell{State: "bad"}
	f.pools = []service.PoolStatus{
		{PoolInfo: thin.PoolInfo{Name: "fast", Kind: "directory", Mode: "rw", Volumes: 12}, SizeBytes: 500 << 30, UsedBytes: 240 << 30, ReservedBytes: 80 << 30},
		{PoolInfo: thin.PoolInfo{Name: strings.Repeat("pool", 16), Kind: "lvm", MetadataBlocks: 1000, MetadataUsedBlocks: 220}, Problem: "its metadata has an error"},
	}
	warning := eventOf(stopped, service.Warning, -1)
	warning.Message = "1 MiB at offset 12 cannot be read and stays on the source: " + long
	f.tell(eventOf(f.list[0], service.CommittedTx, -2), eventOf(f.list[0], service.CommittedTx, -1), warning)
	return f
}

// visit shows a view and waits until it is complete.
func (p *tab) visit(f *fakeManager, view string) {
	p.t.Helper()
	p.do(chromedp.Navigate(f.URL + view))
	p.wait("document.querySelector('.link').dataset.link === 'live' && !document.querySelector('[aria-busy=true]') && !!document.querySelector('h1')")
	eval[bool](p, "[...document.querySelectorAll('details')].every((e) => (e.open = true))")
	p.wait("[...document.querySelectorAll('.map > canvas')].every((c) => c.width > 0 && c.ariaLabel.includes('parts'))")
}

func TestNarrowScreensScrollOneWay(t *testing.T) {
	f := newFullFake(t)
	for _, width := range []int64{320, 360, 768, 1280} {
		p := openTab(t, f.URL, width, 780)
		for _, view := range views {
			p.visit(f, view)
			if over := eval[int](p, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
				wide := eval[string](p, "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + '.' + e.className).slice(0, 5).join(' ')")
				t.Errorf("%d pixels wide, %s: %d too many: %s", width, view, over, wide)
			}
		}
		p.visit(f, "#/m/0000f00d")
		p.press("Cancel and reverse…")
		if over := eval[int](p, "Math.max(0, ...[...document.querySelectorAll('dialog, dialog *')].map((e) => e.getBoundingClientRect().right - innerWidth))"); over > 0 {
			t.Errorf("%d pixels wide: the dialog is %d too wide", width, over)
		}
	}
}

// contrasts lists what cannot be read well: text below 4.5 to 1 against what lies under
// it, and edges of controls below 3 to 1.
const contrasts = `(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) layers.unshift(rgba(getComputedStyle(at).backgroundColor));
    return layers.reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = (c) => {
    const [r, g, b] = c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const weak = [];
  let seen = 0;
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility({checkVisibilityCSS: true, checkOpacity: true}) || e.closest(".unseen, noscript, :disabled")) continue;
    const style = getComputedStyle(e);
    const name = e.tagName + "." + (e.className.baseVal ?? e.className);
    const under = ground(e);
    if ([...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) {
      seen++;
      const found = ratio(over(rgba(style.color), under), under);
      if (found < 4.5) weak.push(name + " text " + found.toFixed(2));
    }
    if (e.matches("input:not([type=checkbox]), button")) {
      const ring = ground(e.parentElement);
      const edge = over(rgba(style.borderTopColor), ring);
      const found = Math.max(ratio(edge, ring), ratio(under, ring));
      if (found < 3) weak.push(name + " edge " + found.toFixed(2));
    }
  }
  return {weak: [...new Set(weak)].join(", "), seen};
})()`

func TestContrastIsEnough(t *testing.T) {
	f := newFullFake(t)
	for _, theme := range []string{"light", "dark"} {
		p := openTab(t, f.URL, 1280, 900, "prefers-color-scheme="+theme)
		check := func(where string) {
			t.Helper()
			type result struct {
				Weak string `json:"weak"`
				Seen int    `json:"seen"`
			}
			found := eval[result](p, "%s", contrasts)
			if found.Weak != "" || found.Seen < 5 {
				t.Errorf("%s, %s, %d texts: %s", theme, where, found.Seen, found.Weak)
			}
		}
		for _, view := range views {
			p.visit(f, view)
			check(view)
		}
		p.visit(f, "#/m/0000f00d")
		p.press("Cancel and reverse…")
		p.fill("typed", "0000f00d")
		check("dialog")
		paper := eval[string](p, "getComputedStyle(document.documentElement).backgroundColor")
		if want := map[string]string{"light": "rgb(251, 251, 249)", "dark": "rgb(18, 21, 23)"}[theme]; paper != want {
			t.Errorf("%s: the ground is %s", theme, paper)
		}
	}
}

// nameless lists what people who do not see the page cannot make out.
const nameless = `(() => {
  const wrong = [];
  const name = (e) => (e.ariaLabel || e.getAttribute("aria-labelledby") || e.innerText || e.alt || [...(e.labels ?? [])].map((l) => l.innerText).join()).trim();
  for (const e of document.querySelectorAll("a, button, input, summary, dialog, form, fieldset, section, canvas[role], svg[role], [role=group]")) {
    if (e.checkVisibility() && !name(e)) wrong.push("no name: " + e.outerHTML.slice(0, 80));
  }
  for (const e of document.querySelectorAll("canvas:not([role]):not([aria-hidden]), svg:not([role]):not([aria-hidden]), img:not([alt])")) {
    if (!e.closest("[aria-hidden]")) wrong.push("neither image nor hidden: " + e.outerHTML.slice(0, 80));
  }
  for (const e of document.querySelectorAll("th:not([scope])")) wrong.push("a header of nothing: " + e.innerText);
  for (const e of document.querySelectorAll("[aria-labelledby], [aria-describedby]")) {
    for (const id of (e.getAttribute("aria-labelledby") ?? e.getAttribute("aria-describedby")).split(" ")) if (!document.getElementById(id)) wrong.push("nothing is called " + id);
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) wrong.push("ids twice: " + ids);
  if (document.querySelectorAll("h1").length !== 1) wrong.push(document.querySelectorAll("h1").length + " main headings");
  if (document.querySelectorAll("main").length !== 1 || document.documentElement.lang !== "en" || !document.title) wrong.push("no main part, language or title");
  for (const e of document.querySelectorAll("[tabindex]")) if (e.tabIndex > 0) wrong.push("an order of its own: " + e.outerHTML.slice(0, 80));
  return wrong.join("\n");
})()`

func TestEverythingHasAName(t *testing.T) {
	f := newFullFake(t)
	p := openTab(t, f.URL, 1280, 900)
	for _, view := range views {
		p.visit(f, view)
		if wrong := eval[string](p, "%s", nameless); wrong != "" {
			t.Errorf("%s: %s", view, wrong)
		}
	}
	p.visit(f, "#/m/0000f00d")
	p.press("Cancel and reverse…")
	if wrong := eval[string](p, "%s", nameless); wrong != "" {
		t.Errorf("dialog: %s", wrong)
	}
	p = openBare(t, f.URL, 1280, 900)
	p.waitText("h1", "Token")
	if wrong := eval[string](p, "%s", nameless); wrong != "" {
		t.Errorf("login: %s", wrong)
	}
}

func TestNothingMovesWhereThatIsNotWanted(t *testing.T) {
	f := newFullFake(t)
	p := openTab(t, f.URL, 1280, 900, "prefers-reduced-motion=reduce")
	for _, view := range views {
		p.visit(f, view)
		if n := eval[int](p, "document.getAnimations().length + [...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).transitionDuration !== '0s').length"); n > 0 {
			t.Errorf("%s: %d elements move", view, n)
		}
	}
}

// focused is what has the focus, and whether that can be seen.
func (p *tab) focused() string {
	p.t.Helper()
	return eval[string](p, `(() => {
		const e = document.activeElement;
		const shown = getComputedStyle(e).outlineStyle !== "none" || !e.matches(":focus-visible");
		return (e.name || e.innerText || e.ariaLabel || e.tagName).trim().split("\n")[0] + (shown ? "" : " (not shown)");
	})()`)
}

// tabTo presses Tab until something has the focus.
func (p *tab) tabTo(name string) {
	p.t.Helper()
	var passed []string
	for range 40 {
		p.keys(kb.Tab)
		at := p.focused()
		if at == name {
			return
		}
		passed = append(passed, at)
	}
	p.t.Fatalf("Tab never comes to %q, but to %q", name, passed)
}

func TestKeyboardIsEnough(t *testing.T) {
	f := newFake(t)
	f.put(migrationOf("5f0c91ab", "/images/vm.raw", "fast/vm", "done"))
	p := openTab(t, f.URL, 1280, 900)
	p.waitText("tbody", "/images/vm.raw")
	p.keys(kb.Tab)
	if first := p.focused(); first != "To the content" {
		t.Errorf("Tab comes to %q first", first)
	}
	p.keys(kb.Enter)
	if at := eval[string](p, "document.activeElement.id"); at != "main" {
		t.Errorf("the way to the content leads to %q", at)
	}
	p.tabTo("New migration")
	p.keys(kb.Enter)
	p.wait("document.activeElement.innerText === 'New migration' && document.activeElement.tagName === 'H1'")

	p.tabTo("source")
	p.keys("/images/two.raw")
	p.tabTo("destination")
	p.keys("fast/two")
	p.tabTo("discard_src")
	p.keys(" ")
	p.tabTo("remove_src")
	p.keys(" ")
	p.tabTo("Start")
	p.keys(kb.Enter)
	p.waitText("dialog", "The file /images/two.raw is removed when its bytes are on the destination.")
	if at := p.focused(); at != "typed" {
		t.Errorf("the dialog begins at %q", at)
	}
	p.keys("two.raw")
	seen := map[string]bool{}
	for range 8 { // the focus stays inside; between its ends it is on the dialog or the browser's own controls
		p.keys(kb.Tab)
		seen[eval[string](p, "document.activeElement.closest('dialog') ? 'inside' : document.activeElement.tagName")] = true
	}
	delete(seen, "inside")
	delete(seen, "BODY")
	if len(seen) > 0 {
		t.Errorf("the focus left the dialog for %v", seen)
	}
	p.keys(kb.Escape)
	p.wait("!document.querySelector('dialog')")
	if at := p.focused(); at != "Start" {
		t.Errorf("after the dialog the focus is on %q", at)
	}
	if n := len(f.requests()); n > 0 {
		t.Errorf("%d requests without a confirmation", n)
	}
	p.keys(kb.Enter)
	p.wait("document.activeElement.name === 'typed'")
	p.keys("two.raw" + kb.Enter)
	p.waitText("h1", "two.raw")
	p.wait("document.activeElement.tagName === 'H1'")

	p.tabTo("Pause")
	p.keys(kb.Enter)
	p.wait("document.querySelector('h1 + .state').dataset.state === 'paused'")
	p.wait("document.activeElement.innerText === 'Resume'") // the pressed one is gone
	p.wait("!!document.querySelector('.map > canvas').ariaLabel.includes('parts')")
	p.do(chromedp.Focus(chromedp.CSS(".map > canvas")))
	p.keys(kb.ArrowRight)
	p.waitText(".map-cell", "0 B to 7.68 MiB: not copied yet")
	p.keys(kb.End)
	p.waitText(".map-cell", "to 12.0 GiB")
	if want := fmt.Sprint([]string{"start", "pause"}); fmt.Sprint(firstWords(f.requests())) != want {
		t.Errorf("asked for %q", f.requests())
	}
}

func firstWords(lines []string) []string {
	var words []string
	for _, line := range lines {
		word, _, _ := strings.Cut(line, " ")
		words = append(words, word)
	}
	return words
}
