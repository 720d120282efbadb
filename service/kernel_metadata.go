package service

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/dm/clonetarget"
	"decant/dm/persistent"
	"decant/loopdev"
	"decant/region"
)

// cloneMetadata is the metadata device of a dm-clone: a loop device over a file beside
// the journal, which is kept until the migration is done.
type cloneMetadata struct {
	path     string            // of the file
	attached *loopdev.Attached // that this process has made, or nil
	raw      *os.File          // the loop device, past the page cache
	dev      uint64
}

func (s *Service) cloneMetadataPath(id string) string { return filepath.Join(s.stateDir, id+".clone") }

// openCloneMetadata attaches the file. A fresh one is made anew: nobody has used what an
// earlier process may have left.
func (s *Service) openCloneMetadata(id string, g region.Geometry, fresh bool) (*cloneMetadata, error) {
	path := s.cloneMetadataPath(id)
	if fresh {
		if err := makeCloneMetadata(path, clonetarget.MetadataBytes(int64(g.Regions()))); err != nil {
			return nil, err
		}
	} else if err := checkFormatted(path); err != nil {
		return nil, err
	}
	attached, err := loopdev.AttachFile(path)
	if err != nil {
		return nil, err
	}
	return &cloneMetadata{path: path, attached: attached, raw: attached.File(), dev: attached.Dev()}, nil
}

// makeCloneMetadata writes the whole file, so that the kernel finds no hole in it to be
// filled when there is no space any more. File and name survive a power loss.
func makeCloneMetadata(path string, bytes int64) (err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, bytes))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncDirs(filepath.Dir(path))
}

// checkFormatted refuses a file that the kernel would format: guests have used the volume
// since the migration began, and what they have written is known to the old one alone.
func checkFormatted(path string) error {
	const hint = "put it back; without it nobody knows which regions users have written to"
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Error{Outcome: Stopped, Object: path, Problem: "the metadata of the dm-clone is gone", Hint: hint, Err: err}
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // was only read
	if _, err = clonetarget.Open(f); err != nil {
		return &Error{Outcome: Stopped, Object: path, Problem: "is not the metadata of a dm-clone, or is damaged", Hint: hint, Err: err}
	}
	return nil
}

// findCloneMetadata opens the metadata device of a clone that is running, and refuses one
// that is not over the migration's file.
func (s *Service) findCloneMetadata(id, number string) (*cloneMetadata, error) {
	dev, err := parseNumber(number)
	if err != nil {
		return nil, err
	}
	backing, err := loopdev.BackingOf(dev)
	if err != nil {
		return nil, err
	}
	path := s.cloneMetadataPath(id)
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return nil, &os.PathError{Op: "look at", Path: path, Err: err}
	}
	if stat.Dev != backing.Dev || stat.Ino != backing.Inode {
		return nil, fmt.Errorf("the running dm-clone keeps its metadata in %s, and not in %s", backing.Path, path)
	}
	device, err := loopdev.BlockDeviceAt(dev)
	if err != nil {
		return nil, err
	}
	raw, err := os.OpenFile(device.Title, os.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &cloneMetadata{path: path, raw: raw, dev: dev}, nil
}

func (c *cloneMetadata) number() string { return dm.DeviceNumber(c.dev).String() }

func (c *cloneMetadata) close() error {
	if c.attached != nil {
		return c.attached.Close()
	}
	return c.raw.Close()
}

// removeCloneMetadata takes the file away when the kernel has no use for it any more.
func (s *Service) removeCloneMetadata(id string) error {
	path := s.cloneMetadataPath(id)
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDirs(filepath.Dir(path))
}

// readMetadata is what the kernel has committed as hydrated. When it returns, that
// survives a power loss. Guests who have the kernel commit all the time wait for it.
func (k *kernelLive) readMetadata() (*region.Set, error) {
	hydrated, err := k.tryMetadata()
	if !errors.Is(err, persistent.ErrChanging) {
		return hydrated, err
	}
	err = k.whileSuspended(func() (err error) {
		hydrated, err = k.tryMetadata()
		return err
	})
	return hydrated, err
}

// tryMetadata reads beside the kernel. What it finds may be that of a commit whose flush
// has not returned yet, so that the superblock was only on its way. Hence the flush after
// it was read.
func (k *kernelLive) tryMetadata() (*region.Set, error) {
	const attempts = 10
	counts := persistent.DeviceIOCounts(unix.Major(k.metadata.dev), unix.Minor(k.metadata.dev))
	var hydrated *region.Set
	err := clonetarget.Consistently(k.metadata.raw, counts, attempts, func(m *clonetarget.Reader) error {
		s, g := m.Superblock(), k.geometry()
		if s.Regions() != g.Regions() || int64(s.RegionSectors)*dm.SectorBytes != g.RegionBytes() {
			return fmt.Errorf("%s is for %d regions of %d sectors, and not for %d of %d bytes",
				k.metadata.path, s.Regions(), s.RegionSectors, g.Regions(), g.RegionBytes())
		}
		hydrated = region.NewSet()
		for run, err := range m.Hydrated() {
			if err != nil {
				return err
			}
			hydrated.Add(region.Range{First: region.Nr(run.First), Count: run.Count})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what the kernel has hydrated: %w", err)
	}
	if err := k.metadata.raw.Sync(); err != nil {
		return nil, fmt.Errorf("make durable what the kernel has hydrated: %w", err)
	}
	return hydrated, nil
}

func parseNumber(text string) (uint64, error) {
	var major, minor uint32
	if _, err := fmt.Sscanf(text, "%d:%d", &major, &minor); err != nil {
		return 0, fmt.Errorf("%q is no number of a device", text)
	}
	return unix.Mkdev(major, minor), nil
}
