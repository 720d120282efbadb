package journal_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"decant/journal"
	"decant/region"
)

// FuzzJournalFile changes bytes of a journal, each named by three bytes of offset
// and one of value, and cuts it. It must open and be sound, or be refused.
func FuzzJournalFile(f *testing.F) {
	whole, err := os.ReadFile(written(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, uint32(0))
	f.Add([]byte{0, 0, 28, 1}, uint32(0))
	f.Add([]byte{0, 0, 18, 1, 0, 0, 19, 1}, uint32(0))
	f.Add([]byte{0, 16, 0, 5, 0, 32, 3, 255}, uint32(4096))
	f.Fuzz(func(t *testing.T, patches []byte, cut uint32) {
		content := append([]byte{}, whole...)
		for ; len(patches) >= 4; patches = patches[4:] {
			offset := int(patches[0])<<16 | int(patches[1])<<8 | int(patches[2])
			content[offset%len(content)] = patches[3]
		}
		content = content[:len(content)-int(cut)%len(content)]
		path := filepath.Join(t.TempDir(), "m.db")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		lookAt(path)
		useIfSound(t, path)
	})
}

// lookAt calls everything that reads. What it answers does not matter, as long as
// it answers.
func lookAt(path string) {
	r, err := journal.OpenReadOnly(path)
	if err != nil {
		return
	}
	_, loadErr := r.Load()
	_, regionErr := r.Region(1)
	_, listErr := r.Transactions(0)
	_, badErr := r.Bad()
	for _, err := range r.Checksums(journal.Forward, r.Superblock().Geometry.All()) {
		if err != nil {
			break
		}
	}
	_ = errors.Join(loadErr, regionErr, listErr, badErr, r.Close())
}

// useIfSound goes on with a journal that opens and passes its check; both must
// then hold still.
func useIfSound(t *testing.T, path string) {
	j, err := journal.Open(path)
	if err != nil {
		return
	}
	defer j.Close() // after a failure of the test at the latest
	if j.Check() != nil {
		return
	}
	if _, err := j.Commit(journal.Transaction{Hydrated: region.NewSet(region.Range{First: 0, Count: 1})}); err != nil {
		if errors.Is(err, journal.ErrDamaged) || errors.Is(err, journal.ErrUnknownOutcome) {
			return
		}
		t.Fatalf("commit on a sound journal: %v", err)
	}
	if err := j.Check(); err != nil {
		t.Fatalf("check after a commit: %v", err)
	}
}
