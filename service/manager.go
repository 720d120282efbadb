package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"decant/journal"
	"decant/loopdev"
)

// ManagerConfig is how a manager works. The zero value of a limit stands for its
// default.
type ManagerConfig struct {
	Running        int      // most migrations at a time; default 4
	RunningPerDisk int      // most that share a disk under either end; default 1
	Waiting        int      // most unfinished migrations altogether that requests may make; default 1000
	Roots          []string // directories that paths in requests may lie under; none: all
	HistoryEvents  int      // kept for late subscribers; default 4096
	Log            *slog.Logger
}

func (c *ManagerConfig) setDefaults() {
	c.Running = cmp.Or(c.Running, 4)
	c.RunningPerDisk = cmp.Or(c.RunningPerDisk, 1)
	c.Waiting = cmp.Or(c.Waiting, 1000)
	c.HistoryEvents = cmp.Or(c.HistoryEvents, 4096)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// State is where a migration stands, for its users.
type State string

// The states. Running, done, cancelled and reversed are also phases of the journal;
// the others say why an unfinished migration is not being worked on, or by whom.
const (
	StateQueued    State = "queued"  // waits for its turn
	StateRunning   State = "running" // the manager works on it
	StatePaused    State = "paused"  // by a user, until it is resumed
	StateStopped   State = "stopped" // by what the reason says; tried again at RetryAt, or by a resume
	StateFailed    State = "failed"  // the reason says what is whole and where
	StateDone      State = "done"
	StateCancelled State = "cancelled"
	StateReversed  State = "reversed"
	StateExternal  State = "external" // another process works on it
)

// Status is one migration as the manager sees it. The counters of a running one are
// those of this moment.
type Status struct {
	Summary
	State    State      `json:"state"`
	Reason   string     `json:"reason,omitempty"` // why it is not running, or does not move
	Hint     string     `json:"hint,omitempty"`
	RetryAt  *time.Time `json:"retry_at,omitempty"` // of a stopped one that is tried again
	Tries    int        `json:"tries,omitempty"`    // runs in a row that have stopped without having committed anything
	Priority int        `json:"priority"`
	// Position is the place of a queued one, from 1 on; those before it may have to
	// wait for a disk.
	Position int     `json:"position,omitempty"`
	Options  Options `json:"options"`
	// Event has the counters of the last run in this process, while it goes on and after it.
	Event *Event `json:"event,omitempty"`
	// Regions that are being copied, and that are copied and not yet committed.
	RegionsHydrating uint64        `json:"regions_hydrating,omitempty"`
	RegionsDirty     uint64        `json:"regions_dirty,omitempty"`
	Verified         *VerifyReport `json:"verified,omitempty"` // of the last verification in this process
}

// StartOptions are what a request says besides the migration itself.
type StartOptions struct {
	Priority int // higher ones come first
	// IdempotencyKey, if not empty, makes every later request with the same key an
	// answer about the migration that the first one has started.
	IdempotencyKey string

	id string // of the migration, if it is a new one
}

// CancelOptions say how to give a migration up.
type CancelOptions struct {
	Reverse bool // if parts of the source were emptied already, bring them back
}

// Tuning is what may change while a migration runs; nil stays as it is.
type Tuning struct {
	BytesPerSecond   *int64  `json:"bytes_per_second,omitempty"` // 0: no limit
	ThresholdRegions *uint64 `json:"threshold_regions,omitempty"`
	Priority         *int    `json:"priority,omitempty"`
}

// What programs tell apart in an *Error of a manager, with errors.Is.
var (
	// ErrUnknownMigration: there is none of that id.
	ErrUnknownMigration = errors.New("it is not in the list")
	// ErrTooMany: the manager takes no more for now.
	ErrTooMany = errors.New("too many unfinished migrations")
	// ErrOutside: a path lies outside of what requests may use.
	ErrOutside = loopdev.ErrOutside
)

// serviceHolder is what the locks of a manager say of it.
const serviceHolder = "hydrated"

// Manager runs the migrations of one state directory: all that are unfinished, as many
// at a time as its limits allow. It is the only one on its directory; commands may work
// beside it, on other migrations than it does at the moment. All methods may be called
// concurrently, and every error that they return is an *Error, if nothing else is said.
//
// What users have decided (a pause, a priority, a limit) is in the journals. A manager
// that is killed and made anew goes on where it was.
type Manager struct {
	journals journals
	service  *Service // that of the journals, for what tests do not replace
	config   ManagerConfig
	log      *slog.Logger
	lock     *journal.LockFile
	history  *history
	meters   meters
	wake     chan struct{} // holds one: something may have become due
	runs     sync.WaitGroup
	pools    poolCache

	mu        sync.Mutex
	jobs      map[string]*job
	making    map[string]bool // ids of journals that requests are making
	endsTaken map[string]bool // paths that requests look at
	endsFreed chan struct{}   // closed when some are given back
	ending    bool
}

// journals is what a manager asks of journals and migrations; a *Service has it all.
type journals interface {
	ids() ([]string, error)
	stamp(id string) stamp
	look(id string) known
	held(id string) (*journal.LockedError, bool)
	summary(k known) Summary
	amend(id string, changes ...func(*record)) error
	disks(k known) []string
	resume(ctx context.Context, id string, sink Sink, c *control) error
	reverse(ctx context.Context, id string, sink Sink, c *control) error
	Verify(ctx context.Context, id string, sink Sink) (VerifyReport, error)
	Cancel(ctx context.Context, id string) error
	Pause(ctx context.Context, id string) error
}

var _ journals = (*Service)(nil)

// NewManager takes the state directory of s for itself until Close or the end of Run.
// It is refused while another process has it.
func NewManager(s *Service, c ManagerConfig) (*Manager, error) {
	c.setDefaults()
	// Requests lead only where they may. Journals lead to what was found when they were
	// made, wherever that was, but nobody can exchange it since.
	runs, requests := *s, *s
	runs.holder, requests.holder = serviceHolder, serviceHolder
	runs.glances = &glances{all: map[string]glance{}}
	requests.glances = runs.glances
	if err := runs.makeStateDir(); err != nil {
		return nil, err
	}
	if err := errors.Join(runs.confine(nil), requests.confine(c.Roots)); err != nil {
		return nil, err
	}
	lock, err := runs.lock(serviceHolder)
	if err != nil {
		return nil, refuse(s.stateDir, "another service runs on this state directory", "use that one, or stop it", err)
	}
	m := newManager(&runs, c)
	m.service, m.lock = &requests, lock
	if err := m.scan(true); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func newManager(st journals, c ManagerConfig) *Manager {
	c.setDefaults()
	return &Manager{
		journals: st, config: c, log: c.Log,
		history: newHistory(c.HistoryEvents, time.Now()),
		wake:    make(chan struct{}, 1),
		jobs:    map[string]*job{}, making: map[string]bool{},
		endsTaken: map[string]bool{}, endsFreed: make(chan struct{}), pools: poolCache{busy: make(chan struct{}, 1)},
	}
}

// Close gives the state directory up. Run does so by itself.
func (m *Manager) Close() error {
	m.history.end()
	if m.lock == nil {
		return nil
	}
	lock := m.lock
	m.lock = nil
	return lock.Unlock()
}

// scanPeriod is how often the journals are looked at for what other processes do, and
// the queue for what may be tried again.
const scanPeriod = 2 * time.Second

// errEnding is why a run stops when the manager ends.
var errEnding = errors.New("the service ends; it goes on when it is started again")

// Run works on every migration that is unfinished, or becomes so, until ctx ends. Then
// it has all runs commit, waits for them, and returns nil. It is called once.
func (m *Manager) Run(ctx context.Context) error {
	defer func() { _ = m.Close() }() // a lock file has nothing to lose
	scanned := make(chan struct{})
	go func() {
		defer close(scanned)
		m.scanAgain(ctx)
	}()
	ticker := time.NewTicker(scanPeriod)
	defer ticker.Stop()
	for ctx.Err() == nil {
		m.startDue()
		select {
		case <-ctx.Done():
		case <-m.wake:
		case <-ticker.C: // what has stopped may be due again
		}
	}
	m.mu.Lock()
	m.ending = true
	for _, j := range m.jobs {
		if j.run != nil {
			j.run.stop(errEnding)
		}
	}
	m.mu.Unlock()
	m.runs.Wait()
	select {
	case <-scanned:
	case <-time.After(scanPeriod): // a medium does not answer; nothing is lost by not waiting
	}
	return nil
}

// scanAgain looks at the state directory until ctx ends. It has a goroutine of its own,
// since a medium that hangs must not keep anything else from being done.
func (m *Manager) scanAgain(ctx context.Context) {
	ticker := time.NewTicker(scanPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := m.scan(false); err != nil {
			m.log.Error("the state directory cannot be looked at", "error", err)
		}
	}
}

// SetLimits changes the limits of the configuration of these names, for runs and
// requests to come.
func (m *Manager) SetLimits(running, runningPerDisk, waiting int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.config.Running, m.config.RunningPerDisk, m.config.Waiting = running, runningPerDisk, waiting
	m.config.setDefaults()
	m.nudge()
}

// nudge has the queue looked at soon.
func (m *Manager) nudge() {
	select {
	case m.wake <- struct{}{}:
	default: // it will be
	}
}

// List is the status of every migration in the state directory, the oldest first.
func (m *Manager) List() ([]Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	positions := m.positions()
	list := make([]Status, 0, len(m.jobs))
	for _, j := range m.jobs {
		list = append(list, j.status(positions[j.id]))
	}
	slices.SortFunc(list, func(a, b Status) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// Status is one migration; its id may be shortened.
func (m *Manager) Status(id string) (Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	j, err := m.find(id)
	if err != nil {
		return Status{}, err
	}
	return m.statusOf(j), nil
}

func (m *Manager) statusOf(j *job) Status { return j.status(m.positions()[j.id]) }

// find is the job that an id, perhaps shortened, means. The caller holds mu.
func (m *Manager) find(id string) (*job, error) {
	if j, ok := m.jobs[id]; ok {
		return j, nil
	}
	var found []*job
	for known, j := range m.jobs {
		if id != "" && len(id) < len(known) && known[:len(id)] == id {
			found = append(found, j)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, refuse(id, "there is no such migration", "list them with: migrate list", ErrUnknownMigration)
	}
	return nil, refuse(id, fmt.Sprintf("%d migrations begin so", len(found)), "give more of the id", nil)
}

// Subscribe reads the events of one migration, or of all if id is empty, from the one
// after that number on; 0 is from the oldest that is kept. The caller closes it.
func (m *Manager) Subscribe(id string, after uint64) (*Subscription, error) {
	if id != "" {
		m.mu.Lock()
		j, err := m.find(id)
		m.mu.Unlock()
		if err != nil {
			return nil, err
		}
		id = j.id
	}
	return m.history.subscribe(id, after), nil
}

// Metrics are the counters at this moment.
func (m *Manager) Metrics() Metrics {
	out := m.meters.metrics()
	out.States = map[State]int{}
	m.mu.Lock()
	for _, j := range m.jobs {
		out.States[j.state]++
		if j.run != nil && j.event != nil {
			out.ExtraBytes += j.event.PeakExtraBytes
		}
	}
	m.mu.Unlock()
	h := m.history
	h.mu.Lock()
	defer h.mu.Unlock()
	out.Subscribers, out.SubscribersTooSlow = h.readers, h.dropped
	return out
}
