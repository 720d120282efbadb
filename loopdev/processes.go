package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lookAtProcesses finds the processes that have the file or one of the devices
// open. What ends or is closed meanwhile is left out.
func (s *search) lookAtProcesses() error {
	own := map[int]bool{}
	for _, f := range append([]*os.File{s.device.main}, s.device.loops...) {
		if err := onFD(f, func(fd int) error { own[fd] = true; return nil }); err != nil {
			return err
		}
	}
	err := s.device.withOpenCached(func(fd int) { own[fd] = true })
	if err != nil {
		return err
	}
	self := os.Getpid()
	return eachProcess(func(pid int) error {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := numbersIn(dir)
		if err != nil {
			return err
		}
		for _, fd := range fds {
			if pid == self && own[fd] || !s.leadsHere(filepath.Join(dir, strconv.Itoa(fd))) {
				continue
			}
			flags, known, err := openFlags(pid, fd)
			if err != nil {
				return err
			}
			if known && flags&unix.O_PATH == 0 {
				s.addProcess(pid, flags&unix.O_ACCMODE != unix.O_RDONLY, "open")
			}
		}
		return nil
	})
}

// withOpenCached shows the buffered descriptor if it is open.
func (d *Device) withOpenCached(show func(fd int)) error {
	d.cachedLock.RLock()
	defer d.cachedLock.RUnlock()
	if d.cached == nil {
		return nil
	}
	return onFD(d.cached, func(fd int) error { show(fd); return nil })
}

// lookAtMappings finds the processes that have the file in their memory.
func (s *search) lookAtMappings() error {
	return eachProcess(func(pid int) error {
		text, err := readProc(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			s.lookAtMapping(pid, strings.Fields(line))
		}
		return nil
	})
}

// lookAtMapping reads: start-end permissions offset device inode path. Its device
// is not always that of stat, so the link of the mapping has to confirm it.
func (s *search) lookAtMapping(pid int, fields []string) {
	if len(fields) < 6 || fields[4] != strconv.FormatUint(s.inode.Ino, 10) {
		return
	}
	var start, end uint64
	if _, err := fmt.Sscanf(fields[0], "%x-%x", &start, &end); err != nil {
		return // not a line of this kernel's
	}
	link := fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, start, end)
	if s.leadsHere(link) {
		permissions := fields[1] // like rw-s; what is private is not written back
		s.addProcess(pid, strings.Contains(permissions, "w") && strings.Contains(permissions, "s"), "mapped")
	}
}

func (s *search) addProcess(pid int, writes bool, how string) {
	name, err := readKernelFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		name = []byte("unknown") // ended a moment ago
	}
	who := fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
	if writes {
		what := fmt.Sprintf("%s has it %s for writing", who, how)
		s.add(Use{Kind: Writer, PID: pid, What: what})
		s.addWriter(what)
		return
	}
	s.add(Use{Kind: Reader, PID: pid, What: fmt.Sprintf("%s has it %s for reading", who, how)})
}

// leadsHere says whether a link of /proc leads to what the search is about. It
// asks nothing of a file system that could hang.
func (s *search) leadsHere(link string) bool {
	target, err := os.Readlink(link)
	if err != nil || !strings.HasPrefix(target, "/") {
		return false // a pipe or socket, or closed a moment ago
	}
	var stx unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &stx) != nil {
		return false // closed a moment ago
	}
	return s.matches(uint32(stx.Mode), unix.Mkdev(stx.Dev_major, stx.Dev_minor), stx.Ino,
		unix.Mkdev(stx.Rdev_major, stx.Rdev_minor))
}

func openFlags(pid, fd int) (flags int, known bool, err error) {
	text, err := readProc(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		return 0, false, err
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "flags:"); found {
			v, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
			return int(v), err == nil, nil
		}
	}
	return 0, false, nil
}

func eachProcess(look func(pid int) error) error {
	if _, err := os.Stat("/proc/self"); err != nil {
		return fmt.Errorf("processes cannot be listed without /proc: %w", bare(err))
	}
	pids, err := numbersIn("/proc")
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := look(pid); err != nil {
			return err
		}
	}
	return nil
}

// numbersIn are the names in a directory of /proc that are numbers. There are none
// if its process has ended or is not ours to look into.
func numbersIn(dir string) ([]int, error) {
	names, err := namesIn(dir)
	if err = unlessGone(err); err != nil {
		return nil, err
	}
	var out []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// readProc reads a file of /proc, which is empty if its process has ended or is not
// ours to look into.
func readProc(path string) ([]byte, error) {
	text, err := readKernelFile(path)
	return text, unlessGone(err)
}

// unlessGone leaves the errors that say nothing of the process, such as a lack of
// descriptors: with them, nobody found would not mean that nobody is there.
func unlessGone(err error) error {
	for _, gone := range []error{fs.ErrNotExist, fs.ErrPermission, unix.ESRCH} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}
