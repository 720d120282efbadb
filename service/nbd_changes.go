package service

import (
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"decant/loopdev"
	"decant/nbd"
)

// discards are ranges of bytes that were discarded, merged where they touch.
type discards struct {
	spans   []byteSpan
	session uint64 // the number of the connection when the first of them began
}

// byteSpan is a range of bytes of an export.
type byteSpan struct{ start, end int64 }

func (d *discards) add(off, bytes int64, session uint64) {
	if len(d.spans) == 0 {
		d.session = session
	}
	if last := len(d.spans) - 1; last >= 0 && d.spans[last].end == off {
		d.spans[last].end = off + bytes
		return
	}
	d.spans = append(d.spans, byteSpan{off, off + bytes})
}

// Discard implements clone.Source.
func (n *nbdEnd) Discard(off, bytes int64) error {
	n.mu.Lock()
	for i, s := range n.samples {
		n.samples[i].Discarded = s.Discarded || s.touches(off, bytes)
	}
	n.discards.add(off, bytes, n.Sessions())
	n.mu.Unlock()
	data := n.dataIn(off, bytes)
	err := n.Client.Discard(off, bytes)
	if err == nil {
		n.allocated.release(data)
		n.judge(off, bytes, data)
	}
	for _, cannot := range []unix.Errno{unix.EOPNOTSUPP, unix.EROFS, unix.EPERM} {
		if errors.Is(err, cannot) {
			return fmt.Errorf("%w: %w", loopdev.ErrCannotPunch, err)
		}
	}
	return err
}

// judge looks once whether a discard of data has freed any of it: a server may take them
// and do nothing, as qemu-nbd does unless it is told otherwise; or it may say that all is
// allocated, whatever it is asked.
func (n *nbdEnd) judge(off, bytes, dataBytes int64) {
	n.mu.Lock()
	tried := n.tried
	n.tried = tried || dataBytes > 0
	n.mu.Unlock()
	if tried || dataBytes == 0 {
		return
	}
	left, err := n.Client.AllocatedBytes(off, bytes)
	if err != nil || left < dataBytes {
		return // one that cannot be asked may be as good as it says
	}
	zeros, err := n.showsZeros(off, bytes)
	if err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isVague, n.keepsAll = zeros, !zeros
}

// showsZeros looks at a range here and there.
func (n *nbdEnd) showsZeros(off, bytes int64) (bool, error) {
	const looks = 32
	p := make([]byte, min(bytes, sampleBytes))
	for i := range int64(looks) {
		if _, err := n.ReadAt(p, off+(bytes-int64(len(p)))/looks*i); err != nil || !allZeros(p) {
			return false, err
		}
	}
	return true, nil
}

// unfreedWarning says, once, that discards free nothing.
func (n *nbdEnd) unfreedWarning() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.keepsAll || n.warned {
		return ""
	}
	n.warned = true
	return "the server takes discards and frees nothing; qemu-nbd needs --discard=unmap"
}

// spaceHint is what may give back what the end was to free; empty if it did.
func (e *end) spaceHint() string {
	n, ok := e.device.(*nbdEnd)
	if !ok {
		return ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.keepsAll {
		return ""
	}
	return "start the server so that discards free something (qemu-nbd: with --discard=unmap), or "
}

// dataIn is how many bytes of a range are data, as far as the server said when the range
// was copied. Where it cannot be asked they count as none.
func (n *nbdEnd) dataIn(off, bytes int64) (total int64) {
	for end := off + bytes; n.KnowsHoles() && off < end; {
		start, next, err := n.NextData(off)
		if err != nil {
			break
		}
		total += max(0, min(next, end)-min(start, end))
		off = next
	}
	return total
}

// WriteAt implements clone.Destination, for a migration that is brought back.
func (n *nbdEnd) WriteAt(p []byte, off int64) (int, error) {
	n.noteWrite(off, int64(len(p)))
	done, err := n.Client.WriteAt(p, off)
	if err == nil {
		n.mu.Lock()
		n.lastWrite = byteSpan{off, off + min(int64(len(p)), sampleBytes)}
		n.mu.Unlock()
	}
	return done, err
}

// Zero implements clone.Destination.
func (n *nbdEnd) Zero(off, bytes int64) error {
	n.noteWrite(off, bytes)
	return n.Client.Zero(off, bytes)
}

func (n *nbdEnd) noteWrite(off, bytes int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wrote = true
	n.samples = dropTouched(n.samples, off, bytes)
}

// Flush implements clone.Destination. It covers discards as well, again those that a
// server may have lost when it was restarted.
func (n *nbdEnd) Flush() error {
	n.flushing.Lock()
	defer n.flushing.Unlock()
	n.allocated.expire()
	n.mu.Lock()
	covered, wrote, written := n.discards, n.wrote, n.lastWrite
	n.discards, n.lastWrite = discards{}, byteSpan{}
	n.mu.Unlock()
	if err := n.flushCovering(&covered, wrote); err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		covered.spans = append(covered.spans, n.discards.spans...)
		n.discards = covered
		return err
	}
	n.sampleWritten(written)
	return nil
}

// sampleWritten makes what was written and flushed a sign of the export: what else it held
// there is overwritten by and by. A region is not written again, or with the same bytes.
func (n *nbdEnd) sampleWritten(span byteSpan) {
	if span.start == span.end {
		return
	}
	p := make([]byte, span.end-span.start)
	if _, err := n.ReadAt(p, span.start); err != nil {
		return // one sample less
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.samples = append(n.samples, sourceSample{Off: span.start, Bytes: int64(len(p)), Sum: xxh3.Hash(p)})
	if len(n.samples) > mostSamples {
		n.samples = thinOut(n.samples, sampleParts)
	}
}

// flushAttempts bounds how often a flush begins anew because the server went away.
const flushAttempts = 5

// flushCovering flushes until no connection is lost between the discards and the end of
// the flush. A server that knows no flush promises nothing for discards, and nothing has
// to be promised.
func (n *nbdEnd) flushCovering(d *discards, wrote bool) error {
	for range flushAttempts {
		session := n.Sessions()
		if len(d.spans) > 0 && d.session != session {
			if err := n.repeat(d.spans); err != nil {
				return err
			}
		}
		d.session = session
		if n.CanFlush() || wrote {
			if err := n.Client.Flush(); err != nil {
				return err
			}
		}
		if len(d.spans) == 0 || n.Sessions() == session {
			return nil
		}
	}
	return fmt.Errorf("flush %v: %w, again and again", n.URI(), nbd.ErrInterrupted)
}

// repeat discards once more. All of it is committed, and nobody reads or writes there.
func (n *nbdEnd) repeat(spans []byteSpan) error {
	for _, span := range spans {
		if err := n.Client.Discard(span.start, span.end-span.start); err != nil {
			return fmt.Errorf("repeat a discard that the server may have lost: %w", err)
		}
	}
	return nil
}
