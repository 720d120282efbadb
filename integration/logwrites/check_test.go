package logwrites_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"decant/integration/logwrites"
	"decant/journal"
	"decant/region"
)

// checker looks at states of one recording. What lies on a medium is looked at once,
// however many states have it in common. It may be used by several goroutines.
type checker struct {
	log   *logwrites.Recording
	image []byte
	dir   string // in memory

	sources  memo[sourceFacts]
	journals memo[journalFacts]
	mappings memo[mappingFacts]
	volumes  memo[wholeRegions]
}

func newChecker(t *testing.T, log *logwrites.Recording, image []byte) *checker {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return &checker{log: log, image: image, dir: dir}
}

// memo computes a value for each key once.
type memo[T any] struct {
	mu    sync.Mutex
	known map[string]func() T
}

func (m *memo[T]) get(key string, compute func() T) T {
	m.mu.Lock()
	if m.known == nil {
		m.known = map[string]func() T{}
	}
	value := m.known[key]
	if value == nil {
		value = sync.OnceValue(compute)
		m.known[key] = value
	}
	m.mu.Unlock()
	return value()
}

// wholeRegions says which regions hold what the image held.
type wholeRegions [regions]bool

func compare(content, image []byte) (w wholeRegions) {
	for nr := range w {
		off := int64(nr) * regionBytes
		w[nr] = bytes.Equal(content[off:off+regionBytes], image[off:off+regionBytes])
	}
	return w
}

// check says what is wrong with what a power cut leaves; nil if nothing is lost and
// everybody can tell where it is.
func (c *checker) check(cut logwrites.Cut) error {
	state := c.log.State(cut)
	source := c.source(state.On(sourceMedium))
	recorded := c.journal(state.On(journalMedium))
	destination, err := c.volume(state)
	if err := errors.Join(source.err, recorded.err, err); err != nil {
		return err
	}
	return errors.Join(
		recorded.checkOwners(source.whole, destination),
		recorded.checkMark(source),
		recorded.checkPromises(c.log.Marks(cut.After), source),
	)
}

// checkOwners wants every region whole at the end that owns it.
func (j journalFacts) checkOwners(source, destination wholeRegions) error {
	var lost []string
	for nr := range regions {
		owner, whole := "source", source[nr]
		if j.exists && j.hydrated.Has(region.Nr(nr)) {
			owner, whole = "destination", destination[nr]
		}
		if !whole {
			lost = append(lost, fmt.Sprintf("region %d is owned by the %s, which has not got it (source whole: %v, destination whole: %v)",
				nr, owner, source[nr], destination[nr]))
		}
	}
	if lost == nil {
		return nil
	}
	return fmt.Errorf("journal there: %v, transaction %d: %s", j.exists, j.tx, strings.Join(lost, "; "))
}

// checkMark wants a mark on a source that has lost something, which names the journal
// and is neither behind the discards nor ahead of the journal (I11), and a source that
// a resume does not take for one that somebody has written to.
func (j journalFacts) checkMark(s sourceFacts) error {
	discarded := journal.TxID(0) // newest transaction of which something was discarded
	lost := 0
	for nr, whole := range s.whole {
		if !whole {
			lost++
			discarded = max(discarded, j.recordedBy[nr])
		}
	}
	switch {
	case lost > 0 && s.mark == nil:
		return fmt.Errorf("the source has lost %d regions and has no mark", lost)
	case s.mark == nil:
	case s.mark.Role != "source":
		return fmt.Errorf("the mark of the source gives it the role %q", s.mark.Role)
	case !j.exists || s.mark.ID != j.id:
		return fmt.Errorf("the mark of the source names migration %q, the journal is that of %q", s.mark.ID, j.id)
	case journal.TxID(s.mark.Tx) < discarded:
		return fmt.Errorf("the source has lost regions of transaction %d, its mark says %d", discarded, s.mark.Tx)
	case journal.TxID(s.mark.Tx) > j.tx:
		return fmt.Errorf("the mark of the source says transaction %d, the journal has %d and would be refused", s.mark.Tx, j.tx)
	}
	if j.exists && !s.unchangedSince(j.sourceModified) {
		return fmt.Errorf("the source was modified at %v, its mark is %+v and the journal says %v: a resume would refuse it", s.modified, s.mark, j.sourceModified)
	}
	return nil
}

// checkPromises wants what the program had said by the time of the cut: that a
// transaction was committed, or that all is done.
func (j journalFacts) checkPromises(marks []string, s sourceFacts) error {
	for _, label := range marks {
		if number, ok := strings.CutPrefix(label, commitMark); ok {
			promised, err := strconv.ParseUint(number, 10, 64)
			if err != nil {
				return fmt.Errorf("mark %q: %w", label, err)
			}
			if !j.exists || j.tx < journal.TxID(promised) {
				return fmt.Errorf("transaction %d was announced, the journal (there: %v) has %d", promised, j.exists, j.tx)
			}
		}
		if label != endMark {
			continue
		}
		if j.phase != journal.Done {
			return fmt.Errorf("the program had ended, the journal is at phase %q", j.phase)
		}
		if s.dataRegions > 0 {
			return fmt.Errorf("the program had ended, and %d regions of the source hold data again", s.dataRegions)
		}
	}
	return nil
}

// put makes a file of what is on a medium. Zeros are holes in it.
func (c *checker) put(part logwrites.Part, medium logwrites.Medium, path string) error {
	content := make(memory, medium.Bytes)
	if err := part.WriteTo(content); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = f.Truncate(medium.Bytes)
	var zeros [64 * kib]byte
	for off := int64(0); off < medium.Bytes && err == nil; off += int64(len(zeros)) {
		if piece := content[off : off+int64(len(zeros))]; !bytes.Equal(piece, zeros[:]) {
			_, err = f.WriteAt(piece, off)
		}
	}
	return errors.Join(err, f.Close())
}

// inScratch calls look with a directory of its own that holds the medium in a file.
func (c *checker) inScratch(part logwrites.Part, name string, look func(dir, path string) error) (err error) {
	dir, err := os.MkdirTemp(c.dir, name+"-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, m := range media {
		if m.Name == name {
			if err := c.put(part, m, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	if err := look(dir, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
