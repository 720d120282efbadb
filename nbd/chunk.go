package nbd

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	// maxErrorChunkBytes bounds an error with its message.
	maxErrorChunkBytes = 8 << 10
	// maxReplyDescriptors is how many extents the protocol lets a server describe.
	maxReplyDescriptors = 1 << 20
)

// readChunk reads the rest of a chunk of a structured reply.
func (l *link) readChunk(h chunkHeader) error {
	p, err := l.find(h.cookie)
	if err != nil {
		return err
	}
	r := p.call
	switch {
	case !l.session.export.structured:
		return fmt.Errorf("%w: a structured reply that was not negotiated", ErrProtocol)
	case h.kind&chunkIsError != 0:
		err = l.readError(p, h)
	case h.kind == chunkNone && h.length == 0 && h.flags&chunkFlagDone != 0:
	case h.kind == chunkOffsetData && r.command == cmdRead && h.length > 8:
		err = l.readData(p, h)
	case h.kind == chunkOffsetHole && r.command == cmdRead && h.length == 12:
		err = l.readHole(p)
	case h.kind == chunkBlockStatus && r.command == cmdBlockStatus:
		err = l.readStatus(p, h)
	default:
		err = fmt.Errorf("%w: chunk %d with %d bytes in a reply to %s", ErrProtocol, h.kind, h.length, r.command)
	}
	if err != nil || h.flags&chunkFlagDone == 0 {
		return err
	}
	whole := r.command != cmdRead || p.filled.bytes == int64(len(r.data))
	if p.failed == nil && (!whole || r.command == cmdBlockStatus && !p.status) {
		return fmt.Errorf("%w: a reply to %s that does not answer it", ErrProtocol, r.command)
	}
	return l.conclude(p)
}

// place is where bytes from off on belong in the memory of a read.
func (l *link) place(p *pending, off uint64, n uint32) ([]byte, error) {
	r := p.call
	if off < r.offset || off-r.offset > uint64(len(r.data)) || uint64(n) > uint64(len(r.data))-(off-r.offset) || n == 0 {
		return nil, fmt.Errorf("%w: %d bytes at byte %d in a reply to a read of %d bytes at byte %d",
			ErrProtocol, n, off, len(r.data), r.offset)
	}
	start := int64(off - r.offset)
	if !p.filled.add(start, start+int64(n)) {
		return nil, fmt.Errorf("%w: a reply that tells the same bytes twice, or in too many pieces", ErrProtocol)
	}
	return r.data[start : start+int64(n)], nil
}

func (l *link) readData(p *pending, h chunkHeader) error {
	var off [8]byte
	if _, err := io.ReadFull(l.in, off[:]); err != nil {
		return err
	}
	b, err := l.place(p, binary.BigEndian.Uint64(off[:]), h.length-8)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(l.in, b)
	return err
}

func (l *link) readHole(p *pending) error {
	var hole [12]byte
	if _, err := io.ReadFull(l.in, hole[:]); err != nil {
		return err
	}
	b, err := l.place(p, binary.BigEndian.Uint64(hole[:]), binary.BigEndian.Uint32(hole[8:]))
	if err != nil {
		return err
	}
	clear(b)
	return nil
}

// readStatus reads extents. They are kept as they come, so that what the server
// announces costs no memory before it is there.
func (l *link) readStatus(p *pending, h chunkHeader) error {
	n := (int64(h.length) - 4) / 8
	if h.length < 12 || (h.length-4)%8 != 0 || n > maxReplyDescriptors || p.status {
		return fmt.Errorf("%w: a block status of %d bytes", ErrProtocol, h.length)
	}
	var b [8]byte
	if _, err := io.ReadFull(l.in, b[:4]); err != nil {
		return err
	}
	if id := binary.BigEndian.Uint32(b[:]); id != l.session.export.allocationID {
		return fmt.Errorf("%w: block status of context %d, which was not selected", ErrProtocol, id)
	}
	for ; n > 0; n-- {
		if _, err := io.ReadFull(l.in, b[:]); err != nil {
			return err
		}
		e := extent{bytes: binary.BigEndian.Uint32(b[:]), flags: binary.BigEndian.Uint32(b[4:])}
		if e.bytes == 0 {
			return fmt.Errorf("%w: an extent of no bytes", ErrProtocol)
		}
		p.call.extents = append(p.call.extents, e)
	}
	p.status = true
	return nil
}

// readError reads an error of any kind, also those that are not known yet.
func (l *link) readError(p *pending, h chunkHeader) error {
	if h.length < 6 || h.length > maxErrorChunkBytes {
		return fmt.Errorf("%w: an error of %d bytes", ErrProtocol, h.length)
	}
	b := make([]byte, h.length)
	if _, err := io.ReadFull(l.in, b); err != nil {
		return err
	}
	e, n := errno(binary.BigEndian.Uint32(b)), int(binary.BigEndian.Uint16(b[4:]))
	if e == success || n > len(b)-6 || n > maxNameBytes {
		return fmt.Errorf("%w: an error without a number, or with a message beyond its end", ErrProtocol)
	}
	p.fail(e, strings.ToValidUTF8(string(b[6:6+n]), "?"))
	return nil
}

// maxSpans is into how many pieces the reply to one read may be torn at a time.
const maxSpans = 1024

// spans are the parts of a read that have come, in order and without neighbours that
// touch.
type spans struct {
	all   []span
	bytes int64
}

type span struct{ start, end int64 }

func (s *spans) reset() { s.all, s.bytes = s.all[:0], 0 }

// add is false if the part overlaps one that is there, or if there are too many.
func (s *spans) add(start, end int64) bool {
	i, _ := slices.BinarySearchFunc(s.all, start, func(x span, at int64) int {
		if x.start < at {
			return -1
		}
		return 1
	})
	// i is the first one that does not begin before start.
	before, after := i > 0, i < len(s.all)
	if before && s.all[i-1].end > start || after && s.all[i].start < end {
		return false
	}
	s.bytes += end - start
	joinsBefore := before && s.all[i-1].end == start
	joinsAfter := after && s.all[i].start == end
	switch {
	case joinsBefore && joinsAfter:
		s.all[i-1].end = s.all[i].end
		s.all = slices.Delete(s.all, i, i+1)
	case joinsBefore:
		s.all[i-1].end = end
	case joinsAfter:
		s.all[i].start = start
	default:
		s.all = slices.Insert(s.all, i, span{start, end})
	}
	return len(s.all) <= maxSpans
}
