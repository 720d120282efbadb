package loopdev

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// UseKind is the way in which somebody else uses a device.
type UseKind string

// The kinds of use.
const (
	Mounted      UseKind = "mounted"
	Swap         UseKind = "swap"
	Held         UseKind = "held"          // by another block device
	LoopAttached UseKind = "loop-attached" // another loop device shows the same file
	Writer       UseKind = "writer"        // a process that may write
	Reader       UseKind = "reader"        // a process that reads only
	Unnamed      UseKind = "unnamed"       // somebody whom the kernel knows and does not name
)

// Use is one use of a device by somebody else.
type Use struct {
	Kind UseKind
	What string // a sentence without a full stop
	PID  int    // of a Writer or Reader; otherwise 0
}

// String is the sentence.
func (u Use) String() string { return u.What }

// UsedBy lists who else uses the device, as far as this host tells: mounts, swap,
// other block devices and loop devices on it, and processes that have it open. A
// user whom the kernel does not name, in another namespace or through a mapping,
// is listed as Unnamed where the kernel gives it away (see Exclusive). Devices that
// this program has made are left out, see Stacked; beside such a one nobody is Unnamed.
// Opening a file blocks for a moment while this looks.
func (d *Device) UsedBy() ([]Use, error) {
	s := &search{device: d, passOver: true}
	err := s.run()
	return s.uses, d.failure("find the users of", 0, 0, err)
}

// search is one run of UsedBy. It goes from the device upwards.
type search struct {
	device *Device
	uses   []Use
	inode  *unix.Stat_t // the (backing) file, if there is one
	nodes  []node       // the device itself, its partitions, and what shows it
	own    []node       // those of them that this Device has open itself
	writer string       // the first that may write by now, as a sentence
	loops  []attachment
	mounts []mount
	swaps  []string

	passOver bool // devices of our own, see Stacked
	passed   bool // some
}

func (s *search) add(u Use) {
	if !slices.Contains(s.uses, u) {
		s.uses = append(s.uses, u)
	}
}

func (s *search) addWriter(what string) {
	if s.writer == "" {
		s.writer = what
	}
}

func (s *search) run() (err error) {
	if s.mounts, err = mounts(); err != nil {
		return err
	}
	if s.swaps, err = swaps(); err != nil {
		return err
	}
	if err := s.climb(); err != nil {
		return err
	}
	if err := s.lookAtSwaps(); err != nil {
		return err
	}
	if err := s.lookAtProcesses(); err != nil {
		return err
	}
	return s.askKernel()
}

// climb finds the devices on the file and on one another.
func (s *search) climb() error {
	if err := s.start(); err != nil {
		return err
	}
	for i := 0; i < len(s.nodes); i++ { //nolint:intrange // the list grows meanwhile
		if err := s.lookAtNode(s.nodes[i]); err != nil {
			return err
		}
	}
	return nil
}

// start collects the device itself, and the loop devices on its file.
func (s *search) start() (err error) {
	d := s.device
	for _, f := range append(slices.Clone(d.loops), d.main) {
		var st unix.Stat_t
		if err := onFD(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			s.inode = &st
			continue
		}
		n, err := nodeOf(st.Rdev)
		if err != nil {
			return err
		}
		s.own = append(s.own, n)
		if err := s.addNode(n); err != nil {
			return err
		}
	}
	// Its own are known, and to open one again would be seen by its own watch.
	if s.loops, err = attachments(s.own); err != nil || s.inode == nil {
		return err
	}
	for _, a := range s.loops {
		if a.dev == s.inode.Dev && a.inode == s.inode.Ino {
			if err := s.addLoop(a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *search) addLoop(a attachment) error {
	if ours, err := a.node.onlyStacked(); err != nil {
		return err
	} else if ours && s.passOver {
		s.passed = true
		return s.addNode(a.node) // somebody else may use it as well
	}
	what := fmt.Sprintf("the loop device %s is attached to it", a.node.path())
	s.add(Use{Kind: LoopAttached, What: what})
	if !a.frozen {
		s.addWriter(what)
	}
	return s.addNode(a.node)
}

// addNode adds a device with its partitions: who uses one of them uses it.
func (s *search) addNode(n node) error {
	if slices.Contains(s.nodes, n) {
		return nil
	}
	s.nodes = append(s.nodes, n)
	partitions, err := n.partitions()
	if err != nil {
		return err
	}
	for _, p := range partitions {
		if !slices.Contains(s.nodes, p) {
			s.nodes = append(s.nodes, p)
		}
	}
	return nil
}

func (s *search) lookAtNode(n node) error {
	for _, m := range s.mounts {
		if dev, found := m.blockDevice(); found && dev == n.dev {
			s.add(Use{Kind: Mounted, What: fmt.Sprintf("%s is mounted on %s", n.title(), m.point)})
		}
	}
	holders, err := n.holders()
	if err != nil {
		return err
	}
	for _, h := range holders {
		if s.passOver && h.isStacked() {
			s.passed = true
			continue
		}
		s.add(Use{Kind: Held, What: fmt.Sprintf("%s is part of the device %s", n.title(), h.title())})
	}
	for _, a := range s.loops {
		if a.rdev == n.dev {
			if err := s.addLoop(a); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *search) lookAtSwaps() error {
	for _, path := range s.swaps {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			continue // removed, or of another namespace: the kernel itself refuses to punch it
		}
		if s.matches(st.Mode, st.Dev, st.Ino, st.Rdev) {
			s.add(Use{Kind: Swap, What: path + " is in use as swap"})
		}
	}
	return nil
}

// matches says whether an object is the file or one of the block devices that
// the search is about.
func (s *search) matches(mode uint32, dev, inode, rdev uint64) bool {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return s.inode != nil && dev == s.inode.Dev && inode == s.inode.Ino
	case unix.S_IFBLK:
		return slices.ContainsFunc(s.nodes, func(n node) bool { return n.dev == rdev })
	}
	return false
}

const somebody = "somebody whom the kernel does not name has the file open"

// askKernel finds users that nothing above has named.
func (s *search) askKernel() error {
	if len(s.uses) > 0 || s.passed {
		return nil
	}
	if s.device.info.Kind == File {
		others, known, err := s.device.openElsewhere()
		if err != nil || !known || !others {
			return err
		}
		if err := s.lookAtMappings(); err != nil || len(s.uses) > 0 {
			return err
		}
		s.add(Use{Kind: Unnamed, What: somebody})
		return nil
	}
	if s.device.exclusive {
		return nil // nobody else can hold it
	}
	for _, n := range s.own {
		free, err := claimable(n)
		if err != nil {
			return err
		}
		if !free {
			s.add(Use{Kind: Unnamed, What: fmt.Sprintf("%s is held by somebody whom the kernel does not name", n.title())})
		}
	}
	return nil
}

// claimable tries what Exclusive would do.
func claimable(n node) (bool, error) {
	h, err := resolve(n.path())
	if err != nil {
		return false, err
	}
	defer h.close()
	if h.stat.Rdev != n.dev {
		return false, fmt.Errorf("%s is not the device that the kernel has by this name", n.path())
	}
	f, err := h.reopen(unix.O_RDONLY | unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// openElsewhere asks the kernel whether any other open file description leads to
// the file: only then a lease for writing is refused. Nothing else finds users in
// other namespaces, and mappings of files that were closed. The buffered
// descriptor would count as another one, so it is closed; it is opened again when
// it is needed, and a failure to write back is reported to the other one too. Where
// there are no leases, or not for us, nothing is known.
func (d *Device) openElsewhere() (others, known bool, err error) {
	d.cachedLock.Lock()
	defer d.cachedLock.Unlock()
	if d.cached != nil {
		if err := d.cached.Close(); err != nil {
			return false, false, err
		}
		d.cached = nil
	}
	err = onFD(d.main, func(fd int) error {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
			return err
		}
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
		return err
	})
	switch {
	case errors.Is(err, unix.EAGAIN):
		return true, true, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), unsupported(err):
		return false, false, nil
	}
	return false, err == nil, err
}
