package web

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// patience is how long a page may take to show something. It ends tests that would
// hang, and decides nothing else.
const patience = 60 * time.Second

// tab is a page in a browser of its own.
type tab struct {
	t   *testing.T
	ctx context.Context

	mayComplain bool // errors of the page are no failure of the test
}

// browserPath is the browser that there is.
func browserPath(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium-headless-shell", "chromium"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("there is no chromium-headless-shell; install it, or run: make setup-test")
	return ""
}

// openTab opens a page that has the token. A test fails in the end if the page has thrown an error, been
// refused something by its own policy, or asked for anything that is not there.
func openTab(t *testing.T, url string, width, height int64, features ...string) *tab {
	t.Helper()
	p := openBare(t, "about:blank", width, height, features...)
	const remember = "if (location.protocol === 'http:' && !sessionStorage.length) sessionStorage.setItem('decant-token', %q)"
	p.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: fmt.Sprintf(remember, token)})
		return err
	}), chromedp.Navigate(url))
	return p
}

// openBare opens a page without a token.
func openBare(t *testing.T, url string, width, height int64, features ...string) *tab {
	t.Helper()
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(browserPath(t)), chromedp.UserDataDir(t.TempDir()), chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // root cannot have one
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	t.Cleanup(cancel)
	ctx, cancelAllocator := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancelAllocator)
	ctx, cancelTab := chromedp.NewContext(ctx, chromedp.WithErrorf(t.Logf))
	t.Cleanup(cancelTab)
	if err := chromedp.Do(ctx); err != nil { // starts the browser, which lives as long as this context
		t.Fatal(err)
	}
	p := &tab{t: t, ctx: ctx}
	p.do(chromedp.EmulateViewport(width, height))
	p.media(features...)
	p.watchForErrors()
	p.do(chromedp.Navigate(url))
	return p
}

// media sets media features, such as "prefers-color-scheme=dark".
func (p *tab) media(features ...string) {
	p.t.Helper()
	var list []*emulation.MediaFeature
	for _, f := range features {
		name, value, _ := strings.Cut(f, "=")
		list = append(list, &emulation.MediaFeature{Name: name, Value: value})
	}
	p.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: list})
		return err
	}))
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatalf("%v\npage: %s", err, p.text())
	}
}

// text is what the page shows, for messages.
func (p *tab) text() string {
	text, err := chromedp.Run(p.ctx, chromedp.Evaluate[string]("document.body.innerText"))
	if err != nil {
		return err.Error()
	}
	return text
}

// eval is the value of an expression in the page.
func eval[T any](p *tab, expression string, args ...any) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](fmt.Sprintf(expression, args...)))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// wait waits until an expression is true.
func (p *tab) wait(expression string, args ...any) {
	p.t.Helper()
	expression = fmt.Sprintf(expression, args...)
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(patience), chromedp.WithPollingInterval(20*time.Millisecond))); err != nil {
		p.t.Fatalf("never: %s: %v\npage: %s", expression, err, p.text())
	}
}

// waitText waits until something in the page shows a text.
func (p *tab) waitText(selector, text string) {
	p.t.Helper()
	p.wait("[...document.querySelectorAll(%q)].some((e) => e.innerText.includes(%q))", selector, text)
}

// press clicks the button or link of that name.
func (p *tab) press(name string) {
	p.t.Helper()
	const find = `[...document.querySelectorAll("button, a, summary")].find((e) => e.innerText.trim() === %q && !e.disabled && (!document.querySelector("dialog[open]") || e.closest("dialog")))`
	p.wait("!!("+find+")", name)
	eval[bool](p, "("+find+").click() ?? true", name)
}

// fill types into the field of that name, over what was there.
func (p *tab) fill(name, text string) {
	p.t.Helper()
	field := fmt.Sprintf("input[name=%q]", name)
	p.wait("!!document.querySelector('%s')", field)
	eval[bool](p, "document.querySelector('%s').select() ?? true", field)
	p.do(chromedp.SendKeys(chromedp.CSS(field), text))
}

func (p *tab) keys(keys string, modifiers ...chromedp.Modifier) {
	p.t.Helper()
	p.do(chromedp.KeyEvent(keys, chromedp.KeyModifiers(modifiers...)))
}

// watchForErrors notes what the page says on its console. Requests that fail are no
// errors of the page: tests make them fail.
func (p *tab) watchForErrors() {
	ctx, cancel := context.WithCancel(p.ctx)
	messages := chromedp.Console(ctx)
	ended := make(chan []string)
	go func() {
		var errors []string
		for m, err := range messages {
			if err != nil {
				break
			}
			if m.IsException() || (m.Type == "error" && m.Source != "network") || m.Source == "security" {
				errors = append(errors, m.String())
			}
		}
		ended <- errors
	}()
	p.t.Cleanup(func() {
		cancel()
		for _, e := range <-ended {
			if p.mayComplain {
				break
			}
			p.t.Errorf("the page says: %s", e)
		}
	})
}
