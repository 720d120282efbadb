package metadata

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// changing is a metadata device whose content a test exchanges, and which counts that.
type changing struct {
	now    *image
	counts IOCounts
	idle   bool // count nothing
}

func (c *changing) ReadAt(b []byte, off int64) (int, error) {
	if !c.idle {
		c.counts.ReadSectors += uint64(len(b)) / sectorBytes
	}
	return c.now.reader().ReadAt(b, off)
}

func (c *changing) count() (IOCounts, error) { return c.counts, nil }

func (c *changing) commit(next *image) {
	c.now = next
	c.counts.WriteRequests++
	c.counts.WriteSectors += metadataSectors
}

// rewritten is the built image with the next transaction id, or with another one.
func rewritten(transaction uint64) *image {
	i := build()
	le.PutUint64(i.block(superblockNumber)[48:], transaction)
	i.seal()
	return i
}

func TestConsistentlyOfAPoolAtRest(t *testing.T) {
	c := &changing{now: build()}
	var got *pool
	walks := 0
	must(t, Consistently(c, c.count, 3, func(m *Reader) (err error) {
		walks++
		got, err = read(m)
		return err
	}))
	wantPool(t, got, builtPool())
	if walks != 1 {
		t.Errorf("%d walks", walks)
	}
}

func TestConsistentlyReadsAgainAfterACommit(t *testing.T) {
	c := &changing{now: build()}
	var seen []uint64
	must(t, Consistently(c, c.count, 3, func(m *Reader) error {
		seen = append(seen, m.Superblock().TransactionID)
		if len(seen) < 3 {
			c.commit(rewritten(8 + uint64(len(seen))))
		}
		return nil
	}))
	if !reflect.DeepEqual(seen, []uint64{8, 9, 10}) {
		t.Errorf("walks of transactions %v", seen)
	}
}

func TestConsistentlyGivesUp(t *testing.T) {
	c := &changing{now: build()}
	walks := uint64(0)
	err := Consistently(c, c.count, 4, func(*Reader) error {
		walks++
		c.commit(rewritten(8 + walks))
		return nil
	})
	if !errors.Is(err, ErrChanging) || walks != 4 {
		t.Errorf("%d walks, %v", walks, err)
	}
}

// The second commit brings the superblock back, while the block that was read in
// between has been used for something else.
func TestConsistentlyNoticesTwoCommits(t *testing.T) {
	c := &changing{now: build()}
	var got *pool
	walks := 0
	must(t, Consistently(c, c.count, 3, func(m *Reader) (err error) {
		if walks++; walks == 1 {
			c.commit(rewritten(9))
			later := build()
			le.PutUint64(later.block(builtLeft)[nodeKeys+252*keyBytes:], 22<<timeBits)
			later.seal()
			if _, err := m.Device(1); err != nil { // of the first state
				return err
			}
			c.commit(later)
		}
		got, err = read(m)
		return err
	}))
	if walks != 2 || got.Devices[0].Mappings[0] != (Mapping{10, 22, 1, 0}) {
		t.Errorf("%d walks; %+v", walks, got)
	}
}

func TestConsistentlyForgetsTheErrorOfAChangingPool(t *testing.T) {
	c := &changing{now: build()}
	walks := 0
	must(t, Consistently(c, c.count, 2, func(m *Reader) error {
		if walks++; walks == 1 {
			broken := rewritten(9)
			broken.block(builtLeft)[100]++
			c.commit(broken)
			_, err := read(m)
			wantCorrupt(t, err, builtLeft, "the checksum")
			c.commit(rewritten(10))
			return err
		}
		_, err := read(m)
		return err
	}))
}

func TestConsistentlyReturnsTheErrorOfAPoolAtRest(t *testing.T) {
	c := &changing{now: build()}
	c.now.block(builtLeft)[100]++
	walks := 0
	err := Consistently(c, c.count, 3, func(m *Reader) error {
		walks++
		_, err := read(m)
		return err
	})
	wantCorrupt(t, err, builtLeft, "the checksum")
	if walks != 1 || errors.Is(err, ErrChanging) {
		t.Errorf("%d walks, %v", walks, err)
	}
}

func TestConsistentlyOfADamagedSuperblock(t *testing.T) {
	c := &changing{now: build()}
	c.now.block(superblockNumber)[100]++
	err := Consistently(c, c.count, 3, func(*Reader) error { t.Error("there is nothing to walk"); return nil })
	wantCorrupt(t, err, superblockNumber, "the checksum")
}

func TestConsistentlyNeedsCounts(t *testing.T) {
	lost := errors.New("lost")
	c := &changing{now: build()}
	for name, counts := range map[string]struct {
		f    func() (IOCounts, error)
		want error
	}{
		"none":           {nil, ErrNotCounted},
		"no such device": {DeviceIOCounts(4095, 1<<20-1), ErrNotCounted},
		"failing":        {func() (IOCounts, error) { return c.counts, lost }, lost},
	} {
		err := Consistently(c, counts.f, 3, func(*Reader) error { t.Error("a walk"); return nil })
		if !errors.Is(err, counts.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Counts that do not show what was read are those of another device, or of none.
func TestConsistentlyLooksForItsOwnReads(t *testing.T) {
	c := &changing{now: build(), idle: true}
	err := Consistently(c, c.count, 3, func(*Reader) error { return nil })
	if !errors.Is(err, ErrNotCounted) || !strings.Contains(err.Error(), "16 sectors of it were read, and 0 were counted") {
		t.Errorf("got %v", err)
	}
}

// Any write may be that of a superblock, and a superblock may have been written by a
// request that is not counted yet.
func TestConsistentlySeesAnyChange(t *testing.T) {
	for name, change := range map[string]func(c *changing){
		"requests":   func(c *changing) { c.counts.WriteRequests++ },
		"sectors":    func(c *changing) { c.counts.WriteSectors++ },
		"superblock": func(c *changing) { c.now = rewritten(9) },
	} {
		t.Run(name, func(t *testing.T) {
			c := &changing{now: build()}
			walks := 0
			must(t, Consistently(c, c.count, 2, func(*Reader) error {
				if walks++; walks == 1 {
					change(c)
				}
				return nil
			}))
			if walks != 2 {
				t.Errorf("%d walks", walks)
			}
		})
	}
}
