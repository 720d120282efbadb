package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"decant/api/client"
	"decant/service"
)

func (p *program) watchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "watch [ID]",
		Short: "Watch migrations go, and pause and resume them",
		Long: `Watch all migrations, or one, until it has ended. In a terminal they are shown with
their progress and a map of the selected one; the arrow keys select, p pauses, r
resumes and q quits. Elsewhere what happens is written as lines.

The events come from the service; where none runs, the journals are looked at every
second. When the service is restarted the watch goes on.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return checkNames(args, "ID")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) > 0 {
				id = args[0]
			}
			return p.watch(cmd.Context(), id)
		},
		ValidArgsFunction: p.completeID,
	}
}

// terminal is the one that a watch can have for itself, if there is one.
func terminal(stdin, stdout *os.File) *screenTerminal {
	if columns(stdout) == 0 || !term.IsTerminal(int(stdin.Fd())) {
		return nil
	}
	return &screenTerminal{in: stdin, out: stdout}
}

func (p *program) watch(ctx context.Context, id string) error {
	var c *client.Client
	if p.find != nil {
		var err error
		if c, err = p.find(ctx); err != nil {
			return err
		}
	}
	if id != "" { // so that a wrong one is told before the screen changes
		full, err := p.fullID(ctx, c, id)
		if err != nil {
			return err
		}
		id = full
	}
	w := p.newWatching(c, id)
	if p.terminal != nil {
		if t := p.terminal(); t != nil {
			return p.watchOnScreen(ctx, w, t)
		}
	}
	return p.watchInLines(ctx, w)
}

func (p *program) fullID(ctx context.Context, c *client.Client, id string) (string, error) {
	if c != nil {
		m, err := c.Get(ctx, id, 0)
		return m.ID, err
	}
	m, err := p.openService(p.stateDir)
	if err != nil {
		return "", err
	}
	detail, err := m.Show(id, 0)
	return detail.ID, err
}

const (
	screenPeriod = 100 * time.Millisecond // shortest between two frames
	mapPeriod    = time.Second
	askPatience  = 2 * time.Minute // a pause returns when what was copied is committed
)

// watchScreen is a watch that has a terminal.
type watchScreen struct {
	*watching
	t      *screenTerminal
	view   watchView
	model  watchModel
	news   chan news
	asking bool // something that a person wants is under way
	drawn  time.Time
	stale  bool
}

func (p *program) watchOnScreen(ctx context.Context, w *watching, t *screenTerminal) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGWINCH, unix.SIGCONT, unix.SIGTSTP)
	defer signal.Stop(signals)
	if err := t.enter(); err != nil {
		t.leave()
		return &service.Error{Outcome: service.Failed, Object: "the terminal", Problem: "it cannot be used", Hint: "for lines of text: migrate watch | cat", Err: err}
	}
	defer t.leave()
	s := &watchScreen{watching: w, t: t, view: watchView{unicode: p.unicode, arrow: p.arrow()}, news: make(chan news, 16), stale: true}
	go func() {
		defer t.guard()
		w.follow(ctx, s.teller(ctx))
	}()
	keys := make(chan key)
	go t.readKeys(keys)
	return s.loop(ctx, keys, signals)
}

// teller passes news to the loop, as long as there is one.
func (s *watchScreen) teller(ctx context.Context) func(news) {
	return func(n news) {
		select {
		case s.news <- n:
		case <-ctx.Done():
		}
	}
}

// loop draws and obeys until the person leaves, or what is watched has ended.
func (s *watchScreen) loop(ctx context.Context, keys <-chan key, signals <-chan os.Signal) error {
	ticker := time.NewTicker(screenPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case n := <-s.news:
			if n.err != nil {
				return n.err
			}
			s.model.learn(n)
			s.asking = s.asking && n.said == ""
			s.stale = true
			if item, ok := s.model.chosen(); ok && s.id != "" {
				if isOver, err := item.verdict(); isOver {
					return err
				}
			}
		case k, open := <-keys:
			if !open || k == keyQuit {
				return nil
			}
			if err := s.obey(ctx, k); err != nil {
				return err
			}
		case got := <-signals:
			if isEnd, err := s.signalled(got); isEnd {
				return err
			}
		case <-ticker.C:
		}
		if err := s.refresh(ctx); err != nil {
			return nil // the terminal is gone, and with it whoever watches
		}
	}
}

func (s *watchScreen) signalled(got os.Signal) (isEnd bool, err error) {
	switch got {
	case unix.SIGWINCH:
	case unix.SIGCONT:
		// Whoever had the terminal meanwhile may have changed it.
		s.t.leave()
		err = s.t.enter()
		isEnd = err != nil
	case unix.SIGTSTP:
		err = s.t.suspend()
		isEnd = err != nil
	case unix.SIGINT:
		return true, nil
	default:
		return true, &service.Error{Outcome: service.Stopped, Problem: "the watch was ended", Err: interrupted{got}}
	}
	s.stale, s.drawn = true, time.Time{}
	return isEnd, err
}

func (s *watchScreen) obey(ctx context.Context, k key) error {
	s.stale = true
	switch k {
	case keyUp:
		s.model.move(-1)
	case keyDown:
		s.model.move(1)
	case keyPause:
		s.ask(ctx, "pausing", s.pauseMigration)
	case keyResume:
		s.ask(ctx, "resuming", s.resumeMigration)
	case keySuspend:
		return s.t.suspend()
	case keyRedraw, keyQuit:
	}
	s.drawn = time.Time{}
	return nil
}

// ask has something done to the selected migration, one thing at a time.
func (s *watchScreen) ask(ctx context.Context, what string, do func(context.Context, string) string) {
	item, ok := s.model.chosen()
	if !ok || s.asking {
		return
	}
	s.asking, s.model.message = true, what+" "+item.ID
	tell := s.teller(ctx)
	go func() {
		defer s.t.guard()
		ctx, cancel := context.WithTimeout(ctx, askPatience)
		defer cancel()
		tell(news{said: do(ctx, item.ID)})
	}()
}

// refresh draws what has changed, and asks for the map now and then.
func (s *watchScreen) refresh(ctx context.Context) error {
	size := s.t.size()
	if item, ok := s.model.chosen(); ok && (s.model.cellsOf != item.ID || item.isMoving() || s.stale) && time.Since(s.model.mapAsked) >= mapPeriod {
		s.model.mapAsked = time.Now()
		s.askForMap(ctx, item.ID, s.view.cells(size))
	}
	if !s.stale || time.Since(s.drawn) < screenPeriod {
		return nil
	}
	s.stale, s.drawn = false, time.Now()
	return s.t.draw(frame(s.view.lines(&s.model, size)))
}

func (s *watchScreen) askForMap(ctx context.Context, id string, cells int) {
	if cells <= 0 {
		return
	}
	tell := s.teller(ctx)
	go func() {
		defer s.t.guard()
		if got, err := s.regionMap(ctx, id, cells); err == nil {
			tell(news{of: id, cells: got})
		}
	}()
}

// watchInLines writes what happens until an interrupt, or until the one migration that
// is watched has ended.
func (p *program) watchInLines(ctx context.Context, w *watching) error {
	surviveClosedPipes()
	ctx, release := p.interruptible(ctx, func() {})
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lines := newWatchLines(p)
	w.follow(ctx, func(n news) {
		lines.write(n)
		if lines.out.gone {
			cancel(errNobodyReads)
		}
		if n.err != nil {
			cancel(n.err)
		}
		if isOver, err := lines.verdict(w.id); isOver {
			cancel(&watchEndedError{err})
		}
	})
	var over *watchEndedError
	var stopped interrupted
	switch cause := context.Cause(ctx); {
	case errors.As(cause, &over):
		return over.err
	case errors.Is(cause, errNobodyReads):
		return nil
	case errors.As(cause, &stopped) && w.id == "":
		return nil // that is how one stops to watch
	case errors.As(cause, &stopped):
		return &service.Error{Outcome: service.Stopped, Object: w.id, Problem: "not watched any longer, it has not ended", Err: cause}
	default:
		return cause
	}
}

var errNobodyReads = errors.New("nobody reads what is written")

// watchEndedError is why a watch ends by itself: what it watches has ended, with err.
type watchEndedError struct{ err error }

func (*watchEndedError) Error() string { return "what is watched has ended" }
