package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decant/integration/faultfs"
	"decant/journal"
	"decant/region"
)

// Source, destination and journal lie on one file system, and power is cut at every
// moment at which something becomes durable, with all of what was not synced lost,
// or any of it left, or torn. Every region is whole at the end that the journal
// names, and a source that has lost something says so.
func TestPowerCutsOfAMigration(t *testing.T) {
	for name, flags := range map[string][]string{
		"forward":  {"--discard-src"},
		"verified": {"--discard-src", "--verify"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := recordMigration(t, flags)
			m.checkAll(t)
		})
	}
}

// The same on the way back.
func TestPowerCutsOfAReversal(t *testing.T) {
	t.Parallel()
	m := recordMigration(t, []string{"--discard-src"}, "reverse")
	m.checkAll(t)
}

// A medium that lies about the syncs of the destination, or of the journal's log,
// is found out: the test above can fail.
func TestPowerCutsOfAMigrationFindDisksThatLie(t *testing.T) {
	t.Parallel()
	m := recordMigration(t, []string{"--discard-src"})
	dir := inMemory(t)
	for _, pattern := range []string{"moved", "*-wal"} {
		found := 0
		for _, moment := range m.moments() {
			if m.check(dir, faultfs.Cut{After: moment, Lies: pattern}) != nil {
				found++
			}
		}
		t.Logf("syncs of %s were none: %d moments have lost something", pattern, found)
		if found == 0 {
			t.Errorf("nobody noticed that syncs of %s were none", pattern)
		}
	}
}

// recorded is everything that a migration did to a medium.
type recorded struct {
	log   *faultfs.Log
	image string
	begun int // so many records belong to the preparation
}

const recordedRegionBytes = 64 * kib

// recordMigration moves an image, and carries out some more commands that take the
// id of the migration.
func recordMigration(t *testing.T, flags []string, commands ...string) recorded {
	t.Helper()
	s := newSite(t)
	dir, backing := t.TempDir(), t.TempDir()
	f, err := faultfs.Mount(faultfs.Options{Backing: backing, MountPoint: dir, Record: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Unmount(); err != nil {
			t.Error(err)
		}
	})
	makeImage(t, s.path("image"), 2*mib, 170, mixed)
	do(t, "cp", "--sparse=always", s.path("image"), dir+"/image")
	do(t, "sync", dir+"/image", dir)
	m := recorded{log: f.Log(), image: readFile(t, s.path("image")), begun: f.Log().Len()}
	s.state = dir + "/state"
	flags = append([]string{"--region-size=64KiB", "--commit-bytes=256KiB", "--threshold=4"}, flags...)
	o := s.want(0, s.move(dir+"/image", dir+"/moved", flags...))
	for _, command := range commands {
		s.want(0, s.run(command, o.last().ID))
	}
	return m
}

func (m recorded) moments() (all []int) {
	for _, moment := range m.log.Boundaries() {
		if moment >= m.begun {
			all = append(all, moment)
		}
	}
	return all
}

func (m recorded) checkAll(t *testing.T) {
	t.Helper()
	dir, states := inMemory(t), 0
	seeds := uint64(2)
	if nightly() {
		seeds = 40
	}
	for _, moment := range m.moments() {
		cuts := []faultfs.Cut{{Keep: 0}, {Keep: 1}}
		for seed := range seeds {
			cuts = append(cuts, faultfs.Cut{Keep: 0.5, Seed: seed}, faultfs.Cut{Keep: 0.8, Torn: true, Seed: seed})
		}
		for _, cut := range cuts {
			cut.After = moment
			if err := m.check(dir, cut); err != nil {
				t.Errorf("%v: %v", cut, err)
				return // one is enough to look at
			}
			states++
		}
	}
	t.Logf("%d states of %d records", states, m.log.Len())
}

func (m recorded) check(parent string, cut faultfs.Cut) (err error) {
	dir, err := os.MkdirTemp(parent, "cut-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := m.log.Restore(dir, cut); err != nil {
		return err
	}
	source, err := os.ReadFile(filepath.Join(dir, "image"))
	if err != nil {
		return err
	}
	journals, err := filepath.Glob(filepath.Join(dir, "state", "*.db"))
	if err != nil {
		return err
	}
	if len(journals) == 0 {
		if string(source) != m.image {
			return errors.New("there is no journal, and the source is not whole")
		}
		return nil
	}
	if string(source) != m.image {
		if err := checkMarked(filepath.Join(dir, "image")); err != nil {
			return err
		}
	}
	return m.checkOwners(journals[0], string(source), filepath.Join(dir, "moved"))
}

// checkMarked wants the mark that keeps others from taking holes for data.
func checkMarked(path string) error {
	value := make([]byte, 4096)
	n, err := unix.Getxattr(path, "user.decant.mark", value)
	if err != nil || !strings.Contains(string(value[:n]), `"source"`) {
		return fmt.Errorf("the source has lost something and its mark is %q (%w)", value[:max(0, n)], err)
	}
	return nil
}

// checkOwners compares every region with what it was, at the end that owns it.
func (m recorded) checkOwners(journalPath, source, destinationPath string) (err error) {
	j, err := journal.Open(journalPath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	s, err := j.Load()
	if err != nil {
		return err
	}
	moved, err := os.ReadFile(destinationPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	destination := string(moved)
	for nr := range region.Nr(int64(len(m.image)) / recordedRegionBytes) {
		off := int64(nr) * recordedRegionBytes
		owner, name := source, "source"
		if s.Hydrated.Has(nr) == (s.Direction == journal.Forward) {
			owner, name = destination, "destination"
		}
		end := off + recordedRegionBytes
		if int64(len(owner)) < end || owner[off:end] != m.image[off:end] {
			return fmt.Errorf("transaction %d (direction %d, %s) gives the region at %d to the %s, which has not got it", s.Tx, s.Direction, s.Phase, off, name)
		}
	}
	return nil
}
