package faultfs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
)

// kind is what a record says has happened.
type kind uint8

const (
	created kind = iota + 1
	directoryMade
	unlinked
	renamed
	written
	truncated
	allocated
	attributeSet
	attributeRemoved
	synced
	marked
)

// fileID is a file or directory of a log. Unlike an inode number it is never used
// again.
type fileID int

// record is one change, or one sync. Files are given as inodes, and kept as fileIDs.
type record struct {
	kind             kind
	ino, dir, newDir uint64
	file             fileID // what was changed or synced; of changes to names the new file, if there is one
	directory        fileID // of the name that changed
	newDirectory     fileID // of the new name
	name, newName    string // of a file, of an attribute, or the label of a mark
	off, length      int64
	data             []byte
	mode             uint32
}

// changesNames says whether the record becomes durable with its directory.
func (r record) changesNames() bool {
	return r.kind == created || r.kind == directoryMade || r.kind == unlinked || r.kind == renamed
}

// Log is everything that reached a file system, in order. A nil Log takes records
// and forgets them.
type Log struct {
	mu      sync.Mutex
	records []record
	ids     map[uint64]fileID
	last    fileID
}

// rootIno stands for the root, and is the number of no other file.
const (
	rootIno = 1
	root    = fileID(1)
)

func newLog(backing string) (*Log, error) {
	entries, err := os.ReadDir(backing)
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("directory %s is not empty, a log has to begin with nothing", backing)
	}
	return &Log{ids: map[uint64]fileID{rootIno: root}, last: root}, nil
}

func (l *Log) lock() {
	if l != nil {
		l.mu.Lock()
	}
}

func (l *Log) unlock() {
	if l != nil {
		l.mu.Unlock()
	}
}

// note is add for those who do not hold the lock.
func (l *Log) note(r record) {
	l.lock()
	defer l.unlock()
	l.add(r)
}

// add appends a record. The caller holds the lock since before the change was made,
// so that the order is right.
func (l *Log) add(r record) {
	if l == nil {
		return
	}
	if r.kind == created || r.kind == directoryMade {
		l.last++
		l.ids[r.ino] = l.last // an inode number may be one that was used before
	}
	r.file, r.directory, r.newDirectory = l.ids[r.ino], l.ids[r.dir], l.ids[r.newDir]
	l.records = append(l.records, r)
}

// Len is the number of records so far.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.records)
}

// Mark notes that something has happened outside by now, such as that somebody was
// told of a success.
func (l *Log) Mark(label string) { l.note(record{kind: marked, name: label}) }

// Marks are the labels of the marks among the first records.
func (l *Log) Marks(first int) (labels []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records[:first] {
		if r.kind == marked {
			labels = append(labels, r.name)
		}
	}
	return labels
}

// Boundaries are the moments at which something changes for a power cut: before and
// after every sync, and after every mark. A moment is a number of records.
func (l *Log) Boundaries() (moments []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, r := range l.records {
		if r.kind == synced || r.kind == marked {
			moments = append(moments, i, i+1)
		}
	}
	return slices.Compact(append(moments, len(l.records)))
}

// errLost says that a record speaks of something that an earlier one has not made.
// The order in which names become durable makes that impossible.
var errLost = errors.New("the log does not add up")
