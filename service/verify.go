package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zeebo/xxh3"

	"decant/journal"
	"decant/region"
)

// maxListed bounds the mismatches that a report lists one by one.
const maxListed = 1000

// Verify reads every hydrated region of the destination, past the page cache, and
// compares it with the checksum that the journal has of it. Mismatches make the
// error Failed; the report lists them. Regions that were written to through the
// migration, while it hydrated, have no checksum any more: they are read, and counted
// as written. What a user has written to the destination in another way is a
// mismatch. Nothing is changed.
func (s *Service) Verify(ctx context.Context, id string, sink Sink) (VerifyReport, error) {
	id, err := s.resolveID(id)
	if err != nil {
		return VerifyReport{}, err
	}
	j, err := journal.OpenReadOnly(s.journalPath(id))
	if err != nil {
		return VerifyReport{}, refuse(id, "its journal cannot be used", "", err)
	}
	v := &verifier{id: id, j: j, sink: sink, begun: time.Now(), report: VerifyReport{ID: id}}
	err = v.open(s)
	if err == nil {
		err = v.run(ctx)
		err = errors.Join(err, v.e.Close())
	}
	return v.report, errors.Join(err, j.Close())
}

type verifier struct {
	id     string
	j      *journal.Journal
	e      *end
	sink   Sink
	begun  time.Time
	told   time.Time
	total  int64 // bytes to be read
	report VerifyReport
}

func (v *verifier) open(s *Service) error {
	state, err := v.j.Load()
	if err != nil {
		return refuse(v.id, "its journal cannot be read", "", err)
	}
	if state.Direction == journal.Backward || state.Phase == journal.Cancelled {
		return refuse(v.id, "was given up, its destination holds nothing to verify", "", nil)
	}
	id := v.j.Superblock().Destination
	if v.e, err = s.openToRead(identityTarget(id)); err != nil {
		return openRefusal(id.Name, "the destination", err)
	}
	if v.e.Info().Key != id.Key {
		return errors.Join(refuse(id.Name, "is another object than the destination of migration "+v.id, "", nil), v.e.Close())
	}
	return nil
}

func (v *verifier) run(ctx context.Context) error {
	state, err := v.j.Load()
	if err != nil {
		return refuse(v.id, "its journal cannot be read", "", err)
	}
	g := v.j.Superblock().Geometry
	for run := range state.Hydrated.Ranges() {
		_, n := g.Bytes(run)
		v.total += n
	}
	v.tell(Started)
	// Chunk by chunk, so that the checksums in memory stay few.
	for run := range state.Hydrated.Ranges() {
		for !run.Empty() {
			part := region.Range{First: run.First, Count: min(run.Count, region.ChunkRegions)}
			if err := v.verifyPart(ctx, g, part); err != nil {
				return err
			}
			run = region.Between(part.End(), run.End())
		}
	}
	if v.report.MismatchRegions == 0 {
		v.tell(DoneEvent)
		return nil
	}
	v.tell(FailedEvent)
	return v.mismatch()
}

func (v *verifier) mismatch() error {
	first := v.report.Mismatches[0]
	return &Error{
		Outcome: Failed, Object: v.e.name,
		Problem: fmt.Sprintf("%d of %d regions are not what was written, the first at offset %d: %s", v.report.MismatchRegions, v.report.RegionsChecked, first.Offset, first.Error),
		Hint:    "harmless if the volume was written to since the migration; else see migrate explain " + v.id + " OFFSET",
	}
}

func (v *verifier) verifyPart(ctx context.Context, g region.Geometry, part region.Range) error {
	sums := map[region.Nr]uint64{}
	for s, err := range v.j.Checksums(journal.Forward, part) {
		if err != nil {
			return refuse(v.id, "its checksums cannot be read", "", err)
		}
		sums[s.Nr] = s.Sum
	}
	for nr := part.First; nr < part.End(); nr++ {
		if err := ctx.Err(); err != nil {
			return &Error{Outcome: Stopped, Object: v.id, Problem: "verification stopped", Err: context.Cause(ctx)}
		}
		sum, data := sums[nr]
		if err := v.verifyRegion(ctx, g, nr, sum, data); err != nil {
			v.report.MismatchRegions++
			if len(v.report.Mismatches) < maxListed {
				off, n := g.Bytes(region.Range{First: nr, Count: 1})
				v.report.Mismatches = append(v.report.Mismatches, BadBytes{Offset: off, Bytes: n, Error: err.Error()})
			}
		}
		v.report.RegionsChecked++
		if sum == journal.WrittenSum {
			v.report.WrittenRegions++
		}
		if time.Since(v.told) > progressPeriod {
			v.tell(Progress)
		}
	}
	return nil
}

// verifyRegion compares one region with its checksum, or with zeros if it has none.
// A region that was written to only has to be readable.
func (v *verifier) verifyRegion(ctx context.Context, g region.Geometry, nr region.Nr, sum uint64, data bool) error {
	off, n := g.Bytes(region.Range{First: nr, Count: 1})
	if !data {
		if known, err := v.e.ReadsZero(off, n); err == nil && known {
			return nil
		}
	}
	buffer := make([]byte, min(n, bufferBytes))
	var hash xxh3.Hasher
	for at, end := off, off+n; at < end; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p := buffer[:min(int64(len(buffer)), end-at)]
		if _, err := v.e.ReadAt(p, at); err != nil {
			return err
		}
		if !data && len(bytes.Trim(p, "\x00")) > 0 {
			return errors.New("holds data where zeros were written")
		}
		_, _ = hash.Write(p) // a hash in memory cannot fail
		v.report.BytesRead += int64(len(p))
		at += int64(len(p))
	}
	if data && sum != journal.WrittenSum && journal.NormalSum(hash.Sum64()) != sum {
		return errors.New("its checksum is another")
	}
	return nil
}

func (v *verifier) tell(kind EventKind) {
	v.told = time.Now()
	if v.sink == nil {
		return
	}
	elapsed := time.Since(v.begun).Seconds()
	e := Event{
		Event: kind, ID: v.id, Time: v.told, Phase: verifyingPhase,
		BytesTotal: v.total, BytesData: v.total, BytesCopied: v.report.BytesRead, BytesVerified: v.report.BytesRead,
	}
	if elapsed > 0 {
		e.RateBytesPerSecond = int64(float64(v.report.BytesRead) / elapsed)
	}
	switch kind {
	case DoneEvent:
		zero := int64(0)
		e.ElapsedSeconds, e.SourceFreedBytes, e.Phase = &elapsed, &zero, donePhase
	case FailedEvent:
		e.Reason, e.Hint = v.mismatch().Error(), HintOf(v.mismatch())
	}
	v.sink(e)
}
