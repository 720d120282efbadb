package service

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"decant/journal"
	"decant/loopdev"
	"decant/nbd"
	"decant/thin"
)

// Service runs the migrations whose journals are in one state directory. Its
// methods may be called concurrently, also by several processes on the same
// directory: the ends and the journals are locked.
type Service struct {
	stateDir   string
	pools      thin.Registry
	glances    *glances         // nil: journals are read each time
	holder     string           // what the locks of its migrations say of this process; empty: a command
	confined   *loopdev.Confine // what paths lead to; nil: what the user of a command could reach
	nbdOptions nbd.Options      // of clients of NBD servers
}

// New is the service on stateDir; the empty string means /var/lib/decant for root,
// else decant under $XDG_STATE_HOME. The directory is made when it is first needed.
func New(stateDir string) (*Service, error) {
	if stateDir == "" {
		dir, err := thin.DefaultStateDir()
		if err != nil {
			return nil, &Error{Outcome: Refused, Problem: "there is no state directory", Hint: "name one with --state-dir", Err: err}
		}
		stateDir = dir
	}
	stateDir, err := filepath.Abs(stateDir)
	if err != nil {
		return nil, &Error{Outcome: Refused, Object: stateDir, Problem: "not a path", Err: err}
	}
	return &Service{stateDir: stateDir, pools: thin.NewRegistry(stateDir)}, nil
}

// StateDir is the directory of the journals, as an absolute path.
func (s *Service) StateDir() string { return s.stateDir }

// makeStateDir makes the state directory, readable by nobody else, and checks that
// a journal in it can survive a power loss.
func (s *Service) makeStateDir() error {
	if err := os.MkdirAll(s.stateDir, 0o700); err != nil {
		return refuse(s.stateDir, "the state directory cannot be made", "name another with --state-dir", err)
	}
	return s.checkStateDir(s.stateDir)
}

// checkStateDir judges the file system of dir, or of the nearest parent that exists.
func (s *Service) checkStateDir(dir string) error {
	for {
		err := journal.CheckFileSystem(dir)
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrNotExist) || dir == filepath.Dir(dir) {
			return refuse(s.stateDir, "journals cannot be kept there", "name a directory on a local disk with --state-dir", err)
		}
		dir = filepath.Dir(dir)
	}
}

const journalSuffix = ".db"

func (s *Service) journalPath(id string) string { return filepath.Join(s.stateDir, id+journalSuffix) }
func (s *Service) lockPath(id string) string    { return filepath.Join(s.stateDir, id+".lock") }

// markPath is where the mark of a device without extended attributes is kept.
func (s *Service) markPath(key string) string {
	return filepath.Join(s.stateDir, "marks", strings.NewReplacer("/", "_", ":", "_").Replace(key))
}

// ids lists the journals of the state directory; none if it does not exist.
func (s *Service) ids() ([]string, error) {
	entries, err := os.ReadDir(s.stateDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Error{Outcome: Refused, Object: s.stateDir, Problem: "the state directory cannot be read", Err: err}
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), journalSuffix); ok && !e.IsDir() {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// resolveID finds the journal that id, perhaps shortened, means.
func (s *Service) resolveID(id string) (string, error) {
	ids, err := s.ids()
	if err != nil {
		return "", err
	}
	var found []string
	for _, known := range ids {
		if known == id {
			return id, nil
		}
		if id != "" && strings.HasPrefix(known, id) {
			found = append(found, known)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", refuse(id, "no such migration in "+s.stateDir, "list them with: migrate list", nil)
	}
	return "", refuse(id, "several migrations begin so: "+strings.Join(found, ", "), "give more of the id", nil)
}

// known is one journal as far as it could be looked at.
type known struct {
	id         string
	superblock journal.Superblock
	state      journal.State
	record     record
	err        error
}

// look reads one journal without disturbing a process that works on it.
func (s *Service) look(id string) known {
	k := known{id: id}
	j, err := journal.OpenReadOnly(s.journalPath(id))
	if err != nil {
		k.err = err
		return k
	}
	k.superblock = j.Superblock()
	var recordErr error
	k.state, k.err = j.Load()
	k.record, recordErr = recordIn(j)
	k.err = errors.Join(k.err, recordErr, j.Close())
	return k
}

func (s *Service) lookAll() ([]known, error) {
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	all := make([]known, 0, len(ids))
	for _, id := range ids {
		all = append(all, s.look(id))
	}
	return all, nil
}

// ended says whether the migration claims neither of its ends any more.
func (k known) ended() bool {
	return k.err == nil && (k.state.Phase == journal.Cancelled || k.state.Phase == journal.Reversed)
}
