package metadata

import (
	"iter"

	"decant/dm/persistent"
)

// SharedMapping is a run of which all blocks are shared, or none.
type SharedMapping struct {
	Mapping
	Shared bool // some other device of the pool maps these data blocks too
}

// Sharing knows which data blocks more than one thin device maps. It goes by the
// mappings of the state that its Reader reads, not by reference counts, and so has no
// eye for what is kept by a metadata snapshot alone.
type Sharing struct {
	reader *Reader
	nodes  counts // how often a node of a mapping tree was reached
	data   counts // how many leaves name a data block
}

// Sharing reads all mappings of all devices once; what devices have in common is read
// once for all of them. It takes memory for as long as it is used: two bits for each
// data block, in the parts of the data device that are mapped.
func (m *Reader) Sharing() (*Sharing, error) {
	s := &Sharing{reader: m, nodes: counts{}, data: counts{}}
	for device, err := range m.Devices() {
		if err != nil {
			return nil, err
		}
		t, err := m.mappingTree(device.ID)
		if err != nil {
			return nil, err
		}
		// What hangs on a node that was reached before has been counted.
		t.Seen = func(block uint64) bool { return s.nodes.add(block) > 1 }
		t.SkipShared = true
		err = t.Entries(0, func(e persistent.Entry) (bool, error) {
			run, err := m.parseMapping(e)
			if err == nil {
				s.data.add(run.DataBlock)
			}
			return true, err
		})
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Mappings is Reader.Mappings with runs that tell whether they are shared.
func (s *Sharing) Mappings(id uint32, from uint64) iter.Seq2[SharedMapping, error] {
	return func(yield func(SharedMapping, error) bool) {
		t, err := s.mappingTree(id)
		if err != nil {
			yield(SharedMapping{}, err)
			return
		}
		s.reader.runs(t, from, s.shared)(yield)
	}
}

// ExclusiveBlocks counts the data blocks that only this device maps, which are those
// that deleting it would free (once nothing else, like a metadata snapshot, holds
// them). It reads no more than what the device does not share.
func (s *Sharing) ExclusiveBlocks(id uint32) (uint64, error) {
	t, err := s.mappingTree(id)
	if err != nil {
		return 0, err
	}
	t.SkipShared = true
	exclusive := uint64(0)
	err = t.Entries(0, func(e persistent.Entry) (bool, error) {
		run, err := s.reader.parseMapping(e)
		if err == nil && !s.shared(run) {
			exclusive++
		}
		return true, err
	})
	return exclusive, err
}

func (s *Sharing) mappingTree(id uint32) (*persistent.Tree, error) {
	t, err := s.reader.mappingTree(id)
	if err == nil {
		t.Seen = func(block uint64) bool { return s.nodes.of(block) > 1 }
	}
	return t, err
}

func (s *Sharing) shared(run SharedMapping) bool {
	return run.Shared || s.data.of(run.DataBlock) > 1
}

// counts are numbers from 0 to 3, where 3 is "or more", two bits each. What is not
// there is 0.
type counts map[uint64]*[countPageBytes]byte

const (
	countPageBytes = 256
	countsPerPage  = countPageBytes * countsPerByte
	mostCount      = 3
)

func (c counts) of(i uint64) byte {
	page := c[i/countsPerPage]
	if page == nil {
		return 0
	}
	return page[i%countsPerPage/countsPerByte] >> (i % countsPerByte * 2) & mostCount
}

// add counts one more, and returns how many there are now.
func (c counts) add(i uint64) byte {
	count := c.of(i)
	if count == mostCount {
		return count
	}
	page := c[i/countsPerPage]
	if page == nil {
		page = new([countPageBytes]byte)
		c[i/countsPerPage] = page
	}
	page[i%countsPerPage/countsPerByte] += 1 << (i % countsPerByte * 2)
	return count + 1
}
