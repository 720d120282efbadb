package journal

import (
	"errors"
	"os"
	"sync"
	"syscall"
)

// writers are the files that this process has open for writing. POSIX drops every
// lock of a process on a file when it closes any descriptor of that file, so nobody
// here may open and close a file of SQLite's by hand without asking.
var writers = fileTable{files: map[fileID]*openFile{}}

// fileID tells files apart whatever their names are.
type fileID struct{ device, inode uint64 }

func idOf(info os.FileInfo) fileID {
	st := info.Sys().(*syscall.Stat_t) // what os.Stat gives on Linux
	return fileID{device: st.Dev, inode: st.Ino}
}

type fileTable struct {
	mu    sync.Mutex // also held as long as somebody reads a file that is not in files
	files map[fileID]*openFile
}

// openFile is a file between claim and release.
type openFile struct {
	id fileID

	mu       sync.Mutex // held while somebody reads it
	read     *os.File   // open longer than SQLite has the file open
	released bool
}

var errClaimed = errors.New("this process has it open already")

// claim is to be called before SQLite opens a file for writing. The file is released
// after SQLite has closed it. The error is errClaimed if it is claimed already.
func (t *fileTable) claim(path string) (*openFile, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	f := &openFile{id: idOf(info)}
	if t.files[f.id] != nil {
		return nil, errClaimed
	}
	if f.read, err = os.Open(path); err != nil {
		return nil, err
	}
	t.files[f.id] = f
	return f, nil
}

func (f *openFile) release() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	writers.mu.Lock()
	defer writers.mu.Unlock()
	f.released = true
	delete(writers.files, f.id)
	return f.read.Close()
}

// read calls use with the file at path, open for reading. No lock of SQLite's in
// this process is lost over it.
func (t *fileTable) read(path string, use func(*os.File) error) (err error) {
	t.mu.Lock()
	info, err := os.Stat(path)
	if err != nil {
		t.mu.Unlock()
		return err
	}
	if claimed := t.files[idOf(info)]; claimed != nil {
		t.mu.Unlock()
		return claimed.readBy(use)
	}
	defer t.mu.Unlock()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return use(f)
}

func (f *openFile) readBy(use func(*os.File) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released {
		return errChanged // by the close that came before
	}
	return use(f.read)
}
