package thin

import (
	"fmt"
	"io"

	"decant/dm"
	"decant/loopdev"
)

// catalogSectors is the size of the catalog's device, room for every possible
// record. It takes space for those only that were ever in use.
const catalogSectors = (maxThinID + 1) * recordBytes / dm.SectorBytes

// recordDevice is what a catalog lies on.
type recordDevice interface {
	io.ReaderAt
	io.WriterAt
	Flush() error
}

// mapperCatalog is the catalog of a dm-thin pool. What a method that changes it has
// returned nil for survives a power loss; after an error the outcome is unknown
// until the record is read again. Changes are made under the pool's lock only.
type mapperCatalog struct {
	device recordDevice
}

// header reads the record of the pool.
func (c mapperCatalog) header() (mapperHeader, error) {
	b := loopdev.AlignedBuffer(recordBytes)
	if _, err := c.device.ReadAt(b, 0); err != nil {
		return mapperHeader{}, err
	}
	return decodeHeader(b)
}

// load reads all records. Those of volumes are in the order of their thin ids.
func (c mapperCatalog) load() (mapperHeader, []mapperRecord, error) {
	h, err := c.header()
	if err != nil {
		return h, nil, err
	}
	const piece = 2048 // records, 1 MiB
	var all []mapperRecord
	buffer := loopdev.AlignedBuffer(int(min(piece, h.records)) * recordBytes)
	for first := int64(0); first < h.records; first += piece {
		b := buffer[:min(piece, h.records-first)*recordBytes]
		if _, err := c.device.ReadAt(b, first*recordBytes); err != nil {
			return h, nil, err
		}
		for i := max(first, 1); i < first+int64(len(b))/recordBytes; i++ {
			at := (i - first) * recordBytes
			r, free, err := decodeRecord(i, b[at:at+recordBytes])
			if err != nil {
				return h, nil, err
			}
			if !free {
				all = append(all, r)
			}
		}
	}
	return h, all, nil
}

// putHeader replaces the record of the pool.
func (c mapperCatalog) putHeader(h mapperHeader) error {
	b, err := h.encode()
	if err != nil {
		return err
	}
	return c.put(0, b)
}

// putRecord replaces the record of a volume. The header must count it already.
func (c mapperCatalog) putRecord(r mapperRecord) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	return c.put(int64(r.thinID), b)
}

// putFree makes the record of a thin id free.
func (c mapperCatalog) putFree(thinID uint32) error {
	return c.put(int64(thinID), make([]byte, recordBytes))
}

// put writes one record, as one write of one sector, and flushes.
func (c mapperCatalog) put(index int64, record []byte) error {
	b := loopdev.AlignedBuffer(recordBytes)
	copy(b, record)
	if _, err := c.device.WriteAt(b, index*recordBytes); err != nil {
		return fmt.Errorf("write record %d of the catalog: %w", index, err)
	}
	if err := c.device.Flush(); err != nil {
		return fmt.Errorf("write record %d of the catalog, outcome unknown: %w", index, err)
	}
	return nil
}
