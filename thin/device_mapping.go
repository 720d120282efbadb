package thin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/loopdev"
	"decant/thin/metadata"
)

// mapping tells where the blocks of a volume are mapped.
type mapping interface {
	// mapped is the first range that may be mapped in [off, size of the volume).
	// Without any, both are the size. What lies outside was not mapped when it was
	// called.
	mapped(off int64) (start, end int64, err error)
	// forget is called before the volume is written to, and when a range was made to
	// read zeros. Other discards go unnoticed: what is unmapped may then still count as
	// mapped.
	forget()
	// sharedBytes is how much of the volume other volumes or snapshots map as well.
	sharedBytes() (int64, error)
	close() error
}

// metadataMapping tells where a volume is mapped by what its pool has committed,
// read from the pool's metadata device while the pool is in use. No message goes to
// the pool: it may belong to LVM.
//
// Where the metadata cannot be read, because the pool commits all the time, or the
// kernel does not count what is read, everything may be mapped; that costs reading
// zeros, and nothing else.
type metadataMapping struct {
	volume *deviceVolume
	id     uint32
	device *os.File // the pool's metadata device, past the cache
	number dm.DeviceNumber

	mu    sync.Mutex
	known window
	wrote uint64 // counts the calls of forget
}

// window is what is known of the volume's mapping.
type window struct {
	start, end int64  // of the volume, in bytes
	runs       []span // what is mapped in there, in order and not touching
	wrote      uint64 // of the mapping, when it was read
}

const (
	// windowRuns bounds the memory of a window.
	windowRuns = 1 << 14
	// metadataAttempts bounds how often a pool that commits meanwhile is read again.
	metadataAttempts = 8
)

// newMetadataMapping opens the metadata device of the volume's pool.
func newMetadataMapping(v *deviceVolume, id uint32) (*metadataMapping, error) {
	table, err := v.pool.table()
	if err != nil {
		return nil, err
	}
	device, number, err := openNumber(table.Metadata)
	if err != nil {
		return nil, fmt.Errorf("open the metadata device of pool %s: %w", v.pool.name, err)
	}
	return &metadataMapping{volume: v, id: id, device: device, number: number}, nil
}

// openNumber opens a block device by its number, as the kernel writes it in tables,
// for reading past the cache.
func openNumber(number string) (*os.File, dm.DeviceNumber, error) {
	var major, minor uint32
	if _, err := fmt.Sscanf(number, "%d:%d", &major, &minor); err != nil {
		return nil, 0, fmt.Errorf("device number %q: %w", number, errStatus)
	}
	event, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", major, minor))
	if err != nil {
		return nil, 0, err
	}
	paths := []string{fmt.Sprintf("/dev/block/%d:%d", major, minor)}
	for line := range strings.Lines(string(event)) {
		if name, found := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); found {
			paths = append(paths, filepath.Join("/dev", name))
		}
	}
	if name, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/dm/name", major, minor)); err == nil {
		paths = append(paths, dm.Path(strings.TrimSpace(string(name))))
	}
	want := unix.Mkdev(major, minor)
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // the next name of it may be there
		}
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == want {
			return f, dm.DeviceNumber(want), nil
		}
		_ = f.Close() // only looked at
	}
	return nil, 0, fmt.Errorf("device %s has no node: %w", number, os.ErrNotExist)
}

func (m *metadataMapping) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wrote++
}

func (m *metadataMapping) close() error { return m.device.Close() }

func (m *metadataMapping) mapped(off int64) (start, end int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := &m.known; w.wrote != m.wrote || off < w.start || off >= w.end {
		read, err := m.read(off)
		if errors.Is(err, metadata.ErrChanging) || errors.Is(err, metadata.ErrNotCounted) {
			return m.allOrNothing(off)
		}
		if err != nil {
			return 0, 0, err
		}
		m.known = read
	}
	for {
		runs := m.known.runs
		if i := sort.Search(len(runs), func(i int) bool { return runs[i].end > off }); i < len(runs) {
			return runs[i].start, runs[i].end, nil
		}
		if m.known.end >= m.volume.Bytes() {
			return m.volume.Bytes(), m.volume.Bytes(), nil
		}
		// Nothing is mapped up to the end of the window. A window that does not
		// reach the volume's end has runs, so that there is progress.
		off = m.known.end
		if m.known, err = m.read(off); err != nil {
			m.known = window{}
			return off, m.volume.Bytes(), nil // all may be mapped from there on
		}
	}
}

// allOrNothing is what the kernel tells without a look at the metadata: if nothing is
// mapped, nothing is data.
func (m *metadataMapping) allOrNothing(off int64) (start, end int64, err error) {
	s, err := m.volume.status()
	if err == nil && s.MappedBytes == 0 {
		off = m.volume.Bytes()
	}
	return off, m.volume.Bytes(), err
}

// read makes a window that begins at the block of off. The caller holds m.mu.
func (m *metadataMapping) read(off int64) (window, error) {
	w := window{wrote: m.wrote}
	// What was written is mapped in the pool's memory first. It has to be committed
	// to be seen.
	if _, err := m.volume.pool.status(true); err != nil {
		return w, err
	}
	blockBytes, bytes := m.volume.blockBytes, m.volume.Bytes()
	from := off / blockBytes
	err := m.consistently(func(r *metadata.Reader) error {
		w.start, w.end, w.runs = from*blockBytes, bytes, nil
		for run, err := range r.Mappings(m.id, uint64(from)) {
			if err != nil {
				return err
			}
			start := int64(run.VirtualBlock) * blockBytes
			end := min(start+int64(run.Blocks)*blockBytes, bytes)
			if start >= bytes {
				return nil // beyond the end of a volume that was made smaller
			}
			if last := len(w.runs) - 1; last >= 0 && w.runs[last].end == start {
				w.runs[last].end = end
				continue
			}
			if len(w.runs) == windowRuns {
				w.end = start
				return nil
			}
			w.runs = append(w.runs, span{start, end})
		}
		return nil
	})
	return w, err
}

func (m *metadataMapping) sharedBytes() (int64, error) {
	if _, err := m.volume.pool.status(true); err != nil {
		return 0, err
	}
	var blocks uint64
	err := m.consistently(func(r *metadata.Reader) error {
		device, err := r.Device(m.id)
		if err != nil {
			return err
		}
		sharing, err := r.Sharing()
		if err != nil {
			return err
		}
		exclusive, err := sharing.ExclusiveBlocks(m.id)
		blocks = device.MappedBlocks - min(exclusive, device.MappedBlocks)
		return err
	})
	return int64(blocks) * m.volume.blockBytes, err
}

func (m *metadataMapping) consistently(walk func(*metadata.Reader) error) error {
	counts := metadata.DeviceIOCounts(m.number.Major(), m.number.Minor())
	return metadata.Consistently(m.device, counts, metadataAttempts, walk)
}

// SharedBytes is how much of AllocatedBytes belongs to other volumes or snapshots of
// the pool as well, so that discarding it gives nothing back. It reads the metadata of
// all volumes.
func (v *deviceVolume) SharedBytes() (int64, error) {
	n, err := v.mapping.sharedBytes()
	if errors.Is(err, metadata.ErrChanging) || errors.Is(err, metadata.ErrNotCounted) {
		err = fmt.Errorf("%w: %w", loopdev.ErrNotCountable, err)
	}
	return n, err
}
