package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"decant/journal"
	"decant/loopdev"
)

// attempt is a request whose ends are found and locked, and judged. Nothing has
// been changed by it.
type attempt struct {
	s           *Service
	request     Request
	target      target
	source      *end
	destination *end   // nil if it does not exist yet
	known       *known // the migration to be resumed, if any
	gives       *chain // the stores of the source
	takes       *chain // of the destination, also if it does not exist yet
	accesses    []access
	plan        Plan
	start       StartOptions // what a manager was asked for besides
}

// Close gives up both ends. begin and resume take them over, and only release is left.
func (a *attempt) Close() error {
	err := a.release()
	for _, e := range []*end{a.source, a.destination} {
		if e != nil {
			err = errors.Join(err, e.Close())
		}
	}
	return err
}

// release ends the look at the stores.
func (a *attempt) release() error {
	var err error
	for _, c := range []*chain{a.gives, a.takes} {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	a.gives, a.takes = nil, nil
	return err
}

// prepare finds and locks both ends, looks for a migration between them, and
// refuses what cannot end well. With an error the ends are closed again.
func (s *Service) prepare(request Request) (*attempt, error) {
	a := &attempt{s: s, request: request}
	if err := request.Options.Check(); err != nil {
		return a, err
	}
	if err := a.chooseAccesses(); err != nil {
		return a, err
	}
	if err := s.checkStateDir(s.stateDir); err != nil {
		return a, err
	}
	from, err := s.sourceTarget(request.Source)
	if err != nil {
		return a, err
	}
	if from.isExport() && request.Options.RemoveSource {
		return a, &Error{
			Outcome: Usage, Object: from.name, Problem: "is an NBD export, and --remove-src is for files",
			Hint: "leave off --remove-src, and remove the image where its server runs",
		}
	}
	if a.target, err = s.destinationTarget(request.Destination, request.Options.ThinPool); err != nil {
		return a, err
	}
	if err := a.find(from); err != nil {
		return a, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *attempt) find(from target) (err error) {
	a.source, err = a.s.open(from, a.request.Options.DiscardSource)
	if err != nil {
		return openRefusal(from.name, "the source", err)
	}
	there, err := a.s.exists(a.target)
	if err != nil {
		return openRefusal(a.target.name, "the destination", err)
	}
	if there {
		if a.destination, err = a.s.open(a.target, true); err != nil {
			return openRefusal(a.target.name, "the destination", err)
		}
	}
	if err := a.match(); err != nil {
		return err
	}
	if err := a.checkMarks(); err != nil {
		return err
	}
	if err := a.beginPlan(); err != nil {
		return err
	}
	if a.known != nil {
		if err := a.checkResume(); err != nil {
			return err
		}
	} else if err := a.checkFresh(); err != nil {
		return err
	}
	if err := a.makePlan(); err != nil {
		return err
	}
	if err := a.checkAccesses(); err != nil {
		return err
	}
	return a.warnRelatives()
}

// openRefusal words why an end could not be opened.
func openRefusal(name, which string, err error) error {
	hint := HintOf(err)
	switch {
	case hint != "":
	case errors.Is(err, loopdev.ErrInUse):
		hint = "unmount it, or end what uses it; a running migration shows in: migrate list"
	case errors.Is(err, os.ErrNotExist):
		hint = "check the path"
	case errors.Is(err, os.ErrPermission):
		hint = "run as root or as its owner; an immutable file (lsattr) cannot be emptied"
	}
	return refuse(name, which+" cannot be used", hint, err)
}

// match looks for the migration between the two ends, and refuses if one of them
// belongs to another that has not ended.
func (a *attempt) match() error {
	all, err := a.s.glanceAll()
	if err != nil {
		return err
	}
	for _, k := range all {
		if a.isBetween(k) && k.err == nil {
			k = a.s.look(k.id) // its regions matter as well
		}
		if k.err != nil || k.ended() {
			continue // checkMarks judges a journal that cannot be read
		}
		if k.state.Phase == journal.Done {
			refilled, err := a.source.changedSince(k, true)
			if err != nil {
				return refuse(a.source.name, "it cannot be seen whether it changed", "", err)
			}
			if a.isBetween(k) && !refilled {
				a.known = &k
			}
			continue
		}
		if a.isBetween(k) {
			a.known = &k
			continue
		}
		if err := a.collision(k); err != nil {
			return err
		}
	}
	return nil
}

func (a *attempt) isBetween(k known) bool {
	return a.destination != nil && k.superblock.Source.Key == a.source.Info().Key &&
		k.superblock.Destination.Key == a.destination.Info().Key
}

// collision says what is wrong if one of the ends, or its name, belongs to the
// unfinished migration k.
func (a *attempt) collision(k known) error {
	source, destination := k.superblock.Source, k.superblock.Destination
	sameSource := source.Key == a.source.Info().Key
	sameDestination := a.destination != nil && destination.Key == a.destination.Info().Key
	samePlace := destination.Path == a.destinationPath()
	finish := fmt.Sprintf("go on with: migrate resume %s; or give it up with: migrate reverse %s", k.id, k.id)
	switch {
	case sameSource && samePlace && a.destination == nil:
		return refuse(a.target.name, "the destination of the unfinished migration "+k.id+" is gone",
			"put it back; if nothing was discarded yet: migrate cancel "+k.id, nil)
	case sameSource && samePlace:
		return refuse(a.target.name, "is another object than the destination of the unfinished migration "+k.id,
			"put the old one back under this name", nil)
	case sameSource:
		return refuse(source.Name, fmt.Sprintf("is being migrated to %s by %s", destination.Name, k.id), finish, nil)
	case sameDestination && source.Path == a.source.Info().Path:
		return refuse(a.source.name, "is another object than the source of the unfinished migration "+k.id,
			"put the old one back under this name", nil)
	case sameDestination:
		return refuse(a.target.name, fmt.Sprintf("is being filled from %s by migration %s", source.Name, k.id), finish, nil)
	case samePlace && source.Path == a.source.Info().Path:
		return refuse(a.source.name, "both ends of the unfinished migration "+k.id+" are other objects by now",
			"put the old ones back under their names", nil)
	case destination.Key == a.source.Info().Key:
		return refuse(a.source.name, "is the destination of the unfinished migration "+k.id+", it is not whole", finish, nil)
	case a.destination != nil && source.Key == a.destination.Info().Key:
		return refuse(a.target.name, "is the source of the unfinished migration "+k.id, finish, nil)
	}
	return nil
}

// destinationPath is where the destination is, or would be made.
func (a *attempt) destinationPath() string {
	if a.destination != nil {
		return a.destination.Info().Path
	}
	if a.target.pool != "" {
		return ""
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(a.target.path))
	if err != nil {
		dir = filepath.Dir(a.target.path) // making the file will say what is wrong with it
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return a.target.path
	}
	return filepath.Join(dir, filepath.Base(a.target.path))
}

// checkMarks refuses ends that say of themselves that their bytes are elsewhere,
// unless the journal that knows where is at hand (I8, I11).
func (a *attempt) checkMarks() error {
	for _, e := range []*end{a.source, a.destination} {
		if e == nil {
			continue
		}
		mark, ok, err := marks{a.s, e}.read()
		if err != nil {
			return refuse(e.name, "its mark cannot be read", "", err)
		}
		if !ok {
			continue
		}
		if err := a.checkMark(e, mark); err != nil {
			return err
		}
	}
	return a.checkServedMarks()
}

func (a *attempt) checkMark(e *end, mark loopdev.Mark) error {
	if _, err := os.Stat(a.s.journalPath(mark.ID)); errors.Is(err, os.ErrNotExist) {
		return a.checkOrphan(e, mark)
	}
	k := a.s.look(mark.ID)
	switch {
	case k.err != nil:
		return refuse(e.name, "the journal of its migration "+mark.ID+" cannot be used; nothing was changed",
			"the journal alone knows which end holds which bytes: repair it or restore it, never start over", k.err)
	case k.ended():
		return nil
	case mark.Role == givingRole && uint64(k.state.Tx) < mark.Tx:
		return refuse(e.name, fmt.Sprintf("its journal %s knows %d transactions, but the mark on it says that discards of transaction %d may have begun",
			a.s.journalPath(mark.ID), k.state.Tx, mark.Tx),
			"the journal is an old copy, or its -wal file is missing: put the newest one back; with the old one bytes would be lost", nil)
	case a.known != nil && a.known.id == mark.ID:
		return nil
	case k.state.Phase == journal.Done && (e == a.destination || mark.Role == receivingRole):
		return nil // emptied, or whole: free to be used anew
	case k.state.Phase == journal.Done && k.superblock.Source.Key == e.Info().Key:
		refilled, err := e.changedSince(k, true)
		if err != nil {
			return refuse(e.name, "it cannot be seen whether it changed", "", err)
		}
		if refilled {
			return nil // somebody has written to it since: these bytes are new
		}
		return refuse(e.name, fmt.Sprintf("was emptied by migration %s, its bytes are in %s", mark.ID, k.superblock.Destination.Name),
			"bring them back with: migrate reverse "+mark.ID, nil)
	}
	return refuse(e.name, "belongs to the unfinished migration "+mark.ID, "go on with: migrate resume "+mark.ID, nil)
}

// checkOrphan judges an end whose journal is not in the state directory.
func (a *attempt) checkOrphan(e *end, mark loopdev.Mark) error {
	if mark.Role == receivingRole {
		holds, err := e.HoldsData()
		if err != nil {
			return refuse(e.name, "it cannot be seen whether it holds data", "", err)
		}
		if !holds {
			return nil // left by a run that ended before its first transaction
		}
	}
	return refuse(e.name, fmt.Sprintf("is a half-moved %s of migration %s, whose journal is not in %s; nothing was changed", mark.Role, mark.ID, a.s.stateDir),
		a.s.unmarkHint(e, "name the right --state-dir, or put the journal back: it alone knows which end holds which bytes"), nil)
}

func (s *Service) unmarkHint(e *end, first string) string {
	path := e.Info().BackingPath
	if path == "" {
		path = e.Info().Path
	}
	command := "setfattr -x user.decant.mark " + path
	if !onFile(e.Info()) {
		command = "rm " + marks{s, e}.path()
	}
	return fmt.Sprintf("%s; only if it was filled anew since: %s", first, command)
}
