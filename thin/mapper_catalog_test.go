package thin

import (
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// memoryDevice is a catalog's device in memory, which counts what is done to it.
type memoryDevice struct {
	bytes   []byte
	writes  [][2]int // offset and length
	flushed int      // writes before the last flush
	fail    error
}

func (m *memoryDevice) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(m.bytes)) {
		copy(p, m.bytes[off:])
	}
	return len(p), nil
}

func (m *memoryDevice) WriteAt(p []byte, off int64) (int, error) {
	if missing := int(off) + len(p) - len(m.bytes); missing > 0 {
		m.bytes = append(m.bytes, make([]byte, missing)...)
	}
	m.writes = append(m.writes, [2]int{int(off), len(p)})
	return copy(m.bytes[off:], p), nil
}

func (m *memoryDevice) Flush() error {
	m.flushed = len(m.writes)
	return m.fail
}

var _ interface {
	io.ReaderAt
	io.WriterAt
} = (*memoryDevice)(nil)

func TestCatalogChangesAreOneSectorAndFlushed(t *testing.T) {
	m := &memoryDevice{}
	c := mapperCatalog{device: m}
	header := aHeader()
	header.records = 5000
	last := aRecord()
	last.thinID, last.name = 4999, "last"
	for i, change := range []func() error{
		func() error { return c.putHeader(header) },
		func() error { return c.putRecord(aRecord()) },
		func() error { return c.putRecord(last) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if len(m.writes) != i+1 || m.writes[i][1] != recordBytes || m.writes[i][0]%recordBytes != 0 || m.flushed != i+1 {
			t.Errorf("change %d: writes %v, %d flushed", i, m.writes, m.flushed)
		}
	}
	h, records, err := c.load()
	if err != nil || h != header || len(records) != 2 || records[0].name != "volume" || records[1].name != "last" {
		t.Errorf("got %+v, %+v, %v", h, records, err)
	}
	if err := c.putFree(3); err != nil {
		t.Fatal(err)
	}
	if _, records, err = c.load(); err != nil || len(records) != 1 || records[0].thinID != 4999 {
		t.Errorf("got %+v, %v", records, err)
	}
	m.bytes[4999*recordBytes] ^= 1
	if _, _, err := c.load(); !errors.Is(err, errRecord) {
		t.Errorf("a damaged record: %v", err)
	}
	m.fail = unix.EIO
	if err := c.putFree(3); !errors.Is(err, unix.EIO) {
		t.Errorf("a failed flush: %v", err)
	}
}

func TestRecordNewerThanThePool(t *testing.T) {
	for _, c := range []struct {
		state               State
		transaction, ofPool uint64
		newer               bool
	}{
		{Active, 5, 5, false},
		{Active, 5, 6, false},
		{Active, 6, 5, true},
		{Creating, 6, 5, false},
		{Deleting, 6, 6, false},
		{Creating, 7, 5, true},
	} {
		if got := (mapperRecord{state: c.state, transaction: c.transaction}).isNewerThan(c.ofPool); got != c.newer {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
