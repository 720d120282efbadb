package logwrites

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Flags say what an entry is. They can be combined.
type Flags uint64

// The flags of the kernel's format.
const (
	Flush    Flags = 1 << iota // what was written before it is durable
	FUA                        // its data is durable with it
	Discard                    // the range was discarded, there is no data
	Mark                       // a message to the target, its label is the data
	Metadata                   // the file system called it metadata
	allFlags = Flush | FUA | Discard | Mark | Metadata
)

// String is the names of the flags.
func (f Flags) String() string {
	var names []string
	for i, name := range []string{"flush", "FUA", "discard", "mark", "metadata"} {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// Entry is one request to the device, or a mark.
type Entry struct {
	Off, Bytes int64 // range of the device; no bytes for a mark and for a mere flush
	Flags      Flags
	Data       []byte // Bytes of them, of a discard none, of a mark its label
}

// Has says whether one of the flags is set.
func (e Entry) Has(f Flags) bool { return e.Flags&f != 0 }

// The layout, all little-endian. Sectors are those of the recorded device. The log
// begins with the superblock in a sector of its own; then come the entries one after
// the other, each in a sector of its own, and after it the data. The label of a mark
// follows the entry within its sector.
//
//	superblock: magic u64, version u64, number of entries u64, bytes of a sector u32
//	entry:      sector u64, number of sectors u64, flags u64, bytes of the label u64
const (
	magic           = 0x6a736677736872
	version         = 1
	superblockBytes = 28
	entryBytes      = 32
	maxSectorBytes  = 64 << 10
)

// ErrFormat is the reason for which Read refuses what is no log, or a damaged one.
var ErrFormat = errors.New("not a log of dm-log-writes")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Read reads a log of at most logBytes from the beginning of a device. It believes no
// number in it: whatever they say, it takes no more memory than about logBytes. The
// number of entries in the superblock is right only when the recording has ended.
func Read(r io.ReaderAt, logBytes int64) ([]Entry, error) {
	if logBytes < superblockBytes {
		return nil, malformed("%d bytes hold no superblock", logBytes)
	}
	var b [superblockBytes]byte
	if err := readAt(r, b[:], 0); err != nil {
		return nil, err
	}
	if found := binary.LittleEndian.Uint64(b[:]); found != magic {
		return nil, malformed("it begins with %#x", found)
	}
	if found := binary.LittleEndian.Uint64(b[8:]); found != version {
		return nil, malformed("its version is %d, known is %d", found, version)
	}
	sectorBytes := int64(binary.LittleEndian.Uint32(b[24:]))
	if sectorBytes < 512 || sectorBytes > maxSectorBytes || sectorBytes&(sectorBytes-1) != 0 {
		return nil, malformed("its sectors have %d bytes", sectorBytes)
	}
	count := binary.LittleEndian.Uint64(b[16:])
	if count > uint64(logBytes/sectorBytes) {
		return nil, malformed("%d bytes have no room for %d entries", logBytes, count)
	}
	p := parser{r: r, sectorBytes: sectorBytes, next: sectorBytes, end: logBytes}
	entries := make([]Entry, 0, count)
	for i := range count {
		e, err := p.entry()
		if err != nil {
			return nil, fmt.Errorf("entry %d of %d: %w", i, count, err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

type parser struct {
	r           io.ReaderAt
	sectorBytes int64
	next, end   int64 // where the next entry is, and the log ends
}

func (p *parser) entry() (Entry, error) {
	var b [entryBytes]byte
	if p.end-p.next < p.sectorBytes {
		return Entry{}, malformed("it lies beyond the end")
	}
	if err := readAt(p.r, b[:], p.next); err != nil {
		return Entry{}, err
	}
	sector, sectors := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
	labelBytes := binary.LittleEndian.Uint64(b[24:])
	e := Entry{Flags: Flags(binary.LittleEndian.Uint64(b[16:]))}
	if e.Flags&^allFlags != 0 {
		return Entry{}, malformed("its flags are %#x", uint64(e.Flags))
	}
	most := uint64(1<<63-1) / uint64(p.sectorBytes)
	if sector > most || sectors > most-sector {
		return Entry{}, malformed("%d sectors from %d on are on no device", sectors, sector)
	}
	e.Off, e.Bytes = int64(sector)*p.sectorBytes, int64(sectors)*p.sectorBytes
	if labelBytes > 0 && !e.Has(Mark) {
		return Entry{}, malformed("it carries %d bytes of its own and is no mark", labelBytes) // of DAX
	}
	dataOff, dataBytes := p.next+p.sectorBytes, e.Bytes
	switch {
	case e.Has(Mark):
		if sectors != 0 || labelBytes > uint64(p.sectorBytes-entryBytes) {
			return Entry{}, malformed("a mark with %d sectors and a label of %d bytes", sectors, labelBytes)
		}
		p.next = dataOff
		dataOff, dataBytes = dataOff-p.sectorBytes+entryBytes, int64(labelBytes)
	case e.Has(Discard):
		p.next, dataBytes = dataOff, 0
	case dataBytes > p.end-dataOff:
		return Entry{}, malformed("its %d bytes go beyond the end", dataBytes)
	default:
		p.next = dataOff + dataBytes
	}
	if dataBytes > 0 {
		e.Data = make([]byte, dataBytes)
		return e, readAt(p.r, e.Data, dataOff)
	}
	return e, nil
}

// readAt wants all of b.
func readAt(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = malformed("it ends at byte %d", off+int64(n))
	}
	return err
}
