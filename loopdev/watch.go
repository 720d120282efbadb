package loopdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// watch tells of everybody on this host, this process included, who opens one of
// some files or closes what he could write to it with. A mapping keeps its file from
// being closed. Changes themselves would be of no use: our own look the same.
type watch struct {
	queue *os.File
	text  [4096]byte
}

// seen is what has happened to the files since the last look.
type seen struct {
	opened bool // by whomever, for whatever
	closed bool // by somebody who could write
}

// newWatch fails where the kernel has no inotify, or allows no more of it.
func newWatch(files []*os.File) (*watch, error) {
	queue, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &watch{queue: os.NewFile(uintptr(queue), "inotify")}
	for _, f := range files {
		err := onFD(f, func(fd int) error {
			// The object itself, whatever its path leads to by now.
			_, err := unix.InotifyAddWatch(queue, fdPath(fd), unix.IN_OPEN|unix.IN_CLOSE_WRITE)
			return err
		})
		if err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

func (w *watch) close() {
	w.queue.Close() //nolint:errcheck // a queue has nothing to lose
}

// look takes what is in the queue. It does not wait.
func (w *watch) look() (all seen, err error) {
	for {
		var n int
		err := onFD(w.queue, func(fd int) (err error) {
			n, err = unix.Read(fd, w.text[:])
			return err
		})
		if errors.Is(err, unix.EAGAIN) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = all.and(parseEvents(w.text[:n]))
	}
}

func (s seen) and(t seen) seen { return seen{s.opened || t.opened, s.closed || t.closed} }

// parseEvents reads: descriptor of the watch, mask, cookie, length of the name, each
// 32 bits, and the name. Anything that was not asked for, such as a queue that ran
// over, means that something may have been missed.
func parseEvents(text []byte) (all seen) {
	for len(text) >= unix.SizeofInotifyEvent {
		mask, nameBytes := binary.NativeEndian.Uint32(text[4:]), binary.NativeEndian.Uint32(text[12:])
		missed := mask&^(unix.IN_OPEN|unix.IN_CLOSE_WRITE) != 0
		all = all.and(seen{opened: missed || mask&unix.IN_OPEN != 0, closed: missed || mask&unix.IN_CLOSE_WRITE != 0})
		text = text[unix.SizeofInotifyEvent:]
		text = text[min(uint64(nameBytes), uint64(len(text))):]
	}
	return all
}

// startWatch makes foreign writers known to the Discards that follow. Whoever is there
// already is asked for by the first of them. Without inotify every Discard asks.
func (d *Device) startWatch() {
	if !d.write || d.info.Kind == Block || d.watch != nil {
		return
	}
	d.opened = true
	// A write through the loop device does not open its file.
	if w, err := newWatch(append(slices.Clone(d.loops), d.main)); err == nil {
		d.watch = w
	}
}

func (d *Device) stopWatch() {
	d.discarding.Lock()
	defer d.discarding.Unlock()
	if d.watch != nil {
		d.watch.close()
		d.watch = nil
	}
}

// newEvents are those since it was last called.
func (d *Device) newEvents() (s seen, err error) {
	if d.watch == nil {
		return seen{opened: true}, nil
	}
	if s, err = d.watch.look(); err != nil {
		return s, err
	}
	d.opened = d.opened || s.opened
	return s, nil
}

// lookAround says whether somebody has closed what he could write with since the
// last time, and who may write now, if anybody. Nobody is asked for unless the file
// was opened since it was last certain that nobody may.
//
// Whoever opened the file before it is called is found, or has closed it and is in
// the queue before the queue is read for the second time. Whoever opens it later is
// left for the next time.
func (d *Device) lookAround() (closed bool, writer string, err error) {
	// A process that has just closed it can have left it open for a moment longer, in
	// a child that it was starting, and ours as well.
	const attempts, pause = 10, 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		s, err := d.newEvents()
		closed = closed || s.closed
		if err != nil || !d.opened {
			return closed, "", err
		}
		if writer, err = d.otherWriter(); err != nil {
			return closed, "", err
		}
		if writer == "" {
			d.opened = d.watch == nil
			s, err = d.newEvents()
			return closed || s.closed, "", err
		}
		if attempt == attempts {
			return closed, writer, nil
		}
		time.Sleep(pause)
	}
}

// otherWriter names somebody who has the file open or mapped for writing, or a loop
// device on it; it is empty if there is none. Of this process, only what this Device
// has open does not count.
func (d *Device) otherWriter() (string, error) {
	d.step("ask")
	var others bool
	if d.info.Kind == File { // the loop device always has its file open
		there, known, err := d.openElsewhere()
		if err != nil || known && !there {
			return "", err
		}
		others = there
	}
	s := &search{device: d}
	if err := s.climb(); err != nil {
		return "", err
	}
	if err := s.lookAtProcesses(); err != nil {
		return "", err
	}
	if err := s.lookAtMappings(); err != nil {
		return "", err
	}
	if others && len(s.uses) == 0 {
		s.addWriter(somebody)
	}
	return s.writer, nil
}

// checkAlone refuses if somebody may write to the file from now on. What was written
// until now, the modification time tells after it.
func (d *Device) checkAlone() error {
	if !d.keep {
		return nil
	}
	closed, writer, err := d.lookAround()
	if err != nil {
		return fmt.Errorf("it cannot be seen whether somebody else writes to it: %w", err)
	}
	if writer != "" {
		return fmt.Errorf("%w: %s; nothing more is discarded, its data is whole", ErrInUse, writer)
	}
	if !closed {
		return nil
	}
	for _, loop := range d.loops { // what was written through it may still be in its cache
		if err := onFD(loop, unix.Fsync); err != nil {
			return fmt.Errorf("write back the cache of the loop device: %w", err)
		}
	}
	return nil
}

// checkStillAlone is ErrSourceChanged if somebody may have written since checkAlone,
// whatever the modification time says. When in doubt, somebody has.
func (d *Device) checkStillAlone() error {
	if !d.keep {
		return nil
	}
	closed, writer, err := d.lookAround()
	switch {
	case err != nil:
		return fmt.Errorf("%w, or not, that cannot be seen: %w", ErrSourceChanged, err)
	case writer != "":
		return fmt.Errorf("%w: during a discard %s; nothing more is discarded", ErrSourceChanged, writer)
	case closed:
		return fmt.Errorf("%w: during a discard somebody opened it for writing, and closed it; nothing more is discarded", ErrSourceChanged)
	}
	return nil
}
