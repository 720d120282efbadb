package faultfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// sectorBytes is what a disk writes whole or not at all.
const sectorBytes = 512

// Cut is a power cut.
//
// What was synced before it survives: the content and attributes of a file by a sync
// of the file, names by a sync of their directory. Of what was not synced, each write
// survives with the chance Keep, alone or in any combination; names of a directory
// come and go in order, so that some first ones of them survive.
type Cut struct {
	After int     // it comes after so many records
	Keep  float64 // from 0, everything that was not synced is lost, to 1
	Torn  bool    // of the writes that survive, any of their sectors may be lost
	Seed  uint64  // of what survives
	// Lies is a pattern of path.Match for the names of files and directories whose
	// syncs were no syncs, as on a disk that says so too early. It is there to see
	// whether a test would find out.
	Lies string
}

// String names the cut in messages.
func (c Cut) String() string {
	return fmt.Sprintf("power cut after record %d, keep %v of what was not synced, torn: %v, seed %d", c.After, c.Keep, c.Torn, c.Seed)
}

// Restore makes, in an empty directory, what is there after a power cut.
func (l *Log) Restore(dir string, cut Cut) error {
	l.mu.Lock()
	records := l.records[:cut.After]
	l.mu.Unlock()
	r := &replay{
		cut: cut, records: records, rng: rand.New(rand.NewPCG(cut.Seed, uint64(cut.After))),
		files: map[fileID]*content{}, names: map[fileID]map[string]fileID{root: {}},
	}
	r.findSyncs()
	for i, record := range records {
		if !r.survives(i, record) {
			continue
		}
		if err := r.apply(i, record); err != nil {
			return fmt.Errorf("%v: record %d: %w", cut, i, err)
		}
	}
	return r.write(root, dir)
}

func (c Cut) liesAbout(name string) bool {
	if c.Lies == "" {
		return false
	}
	lies, err := path.Match(c.Lies, name)
	return lies && err == nil
}

// replay is one restoration.
type replay struct {
	cut       Cut
	rng       *rand.Rand
	records   []record
	synced    map[fileID]int // before which record it was synced last
	namesUpTo map[fileID]int // which of the names that were not synced survive

	files map[fileID]*content
	names map[fileID]map[string]fileID
}

type content struct {
	data       []byte
	attributes map[string][]byte
	mode       uint32
}

func (r *replay) findSyncs() {
	r.synced, r.namesUpTo = map[fileID]int{}, map[fileID]int{}
	for i, record := range r.records {
		if record.kind == synced && !r.cut.liesAbout(record.name) {
			r.synced[record.file] = i
		}
	}
	loose := map[fileID][]int{}
	for i, record := range r.records {
		if record.changesNames() && !r.namesDurable(i, record) {
			loose[record.directory] = append(loose[record.directory], i)
		}
	}
	for dir := fileID(0); int(dir) <= len(r.records)+1; dir++ { // not in the order of a map
		if all := loose[dir]; len(all) > 0 {
			r.namesUpTo[dir] = len(r.records)
			if kept := r.someOf(len(all)); kept < len(all) {
				r.namesUpTo[dir] = all[kept]
			}
		}
	}
}

// someOf is how many of the first of n survive.
func (r *replay) someOf(n int) int {
	switch r.cut.Keep {
	case 0:
		return 0
	case 1:
		return n
	}
	return r.rng.IntN(n + 1)
}

func (r *replay) namesDurable(i int, record record) bool {
	return i < r.synced[record.directory] || record.kind == renamed && i < r.synced[record.newDirectory]
}

func (r *replay) survives(i int, record record) bool {
	switch {
	case record.kind == synced, record.kind == marked:
		return false // nothing to be done for them
	case record.changesNames():
		return r.namesDurable(i, record) || i < r.namesUpTo[record.directory]
	}
	return i < r.synced[record.file] || r.rng.Float64() < r.cut.Keep
}

func (r *replay) apply(i int, record record) error {
	if record.changesNames() {
		return r.applyName(record)
	}
	c := r.contentOf(record.file)
	switch record.kind {
	case written:
		r.applyWrite(i, c, record)
	case truncated:
		c.resize(record.off)
	case allocated:
		c.allocate(record)
	case attributeSet:
		c.attributes[record.name] = record.data
	case attributeRemoved:
		delete(c.attributes, record.name)
	default:
		return fmt.Errorf("of kind %d: %w", record.kind, errLost)
	}
	return nil
}

// contentOf is there also while no name leads to it yet.
func (r *replay) contentOf(file fileID) *content {
	c := r.files[file]
	if c == nil {
		c = &content{attributes: map[string][]byte{}, mode: 0o600}
		r.files[file] = c
	}
	return c
}

func (r *replay) applyName(record record) error {
	names := r.names[record.directory]
	if names == nil {
		return nil // the directory itself was lost
	}
	switch record.kind {
	case created:
		names[record.name] = record.file
		r.contentOf(record.file).mode = record.mode
	case directoryMade:
		names[record.name] = record.file
		r.names[record.file] = map[string]fileID{}
		r.contentOf(record.file).mode = record.mode
	case unlinked:
		delete(names, record.name)
	default: // renamed
		file, found := names[record.name]
		if !found {
			return fmt.Errorf("rename of %s: %w", record.name, errLost)
		}
		delete(names, record.name)
		if to := r.names[record.newDirectory]; to != nil {
			to[record.newName] = file
		}
	}
	return nil
}

func (r *replay) applyWrite(i int, c *content, record record) {
	torn := r.cut.Torn && i >= r.synced[record.file]
	for off, data := record.off, record.data; len(data) > 0; {
		n := min(sectorBytes-off%sectorBytes, int64(len(data)))
		if !torn || r.rng.IntN(2) == 0 {
			c.resize(max(int64(len(c.data)), off+n))
			copy(c.data[off:], data[:n])
		}
		off, data = off+n, data[n:]
	}
}

func (c *content) resize(bytes int64) {
	if bytes <= int64(len(c.data)) {
		c.data = c.data[:bytes]
		return
	}
	if bytes > int64(cap(c.data)) {
		grown := make([]byte, len(c.data), max(bytes, 2*int64(cap(c.data))))
		copy(grown, c.data)
		c.data = grown
	}
	end := len(c.data)
	c.data = c.data[:bytes]
	clear(c.data[end:]) // what a truncation has left there
}

func (c *content) allocate(record record) {
	end := record.off + record.length
	if record.mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		c.resize(max(int64(len(c.data)), end))
	}
	if record.mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		if end = min(end, int64(len(c.data))); record.off < end {
			clear(c.data[record.off:end])
		}
	}
}

// write makes the names of a directory and what is behind them.
func (r *replay) write(dir fileID, to string) error {
	for name, file := range r.names[dir] {
		c, at := r.contentOf(file), filepath.Join(to, name)
		if r.names[file] != nil {
			if err := os.Mkdir(at, 0o700); err != nil {
				return err
			}
			if err := r.write(file, at); err != nil {
				return err
			}
		} else if err := os.WriteFile(at, c.data, os.FileMode(c.mode&0o777)); err != nil {
			return err
		}
		for attribute, value := range c.attributes {
			if err := unix.Setxattr(at, attribute, value, 0); err != nil {
				return err
			}
		}
	}
	return nil
}
