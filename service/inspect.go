package service

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"decant/journal"
	"decant/region"
)

// List is a summary of every migration in the state directory, also of those whose
// journal cannot be used.
func (s *Service) List() ([]Summary, error) {
	all, err := s.lookAll()
	if err != nil {
		return nil, err
	}
	list := make([]Summary, 0, len(all))
	for _, k := range all {
		list = append(list, s.summary(k))
	}
	return list, nil
}

func (s *Service) summary(k known) Summary {
	sum := Summary{ID: k.id, Source: k.superblock.Source.Name, Destination: k.superblock.Destination.Name}
	sum.sourcePath, sum.destinationPath = requestName(k.superblock.Source), requestName(k.superblock.Destination)
	for _, end := range []journal.Identity{k.superblock.Source, k.superblock.Destination} {
		if end.Kind == groupVolumeKind {
			sum.groupVolumes = append(sum.groupVolumes, end.Name)
		}
	}
	if held, active := s.held(k.id); active {
		sum.PID, sum.Active, sum.Service = held.PID, true, held.Holder == serviceHolder
	}
	if k.err != nil {
		sum.Problem = k.err.Error()
		return sum
	}
	g := k.superblock.Geometry
	sum.Phase, sum.Direction = string(k.state.Phase), directionName(k.state.Direction)
	sum.BytesTotal, sum.RegionBytes, sum.Regions = g.DeviceBytes(), g.RegionBytes(), g.Regions()
	sum.Hydrated, sum.Discarded = k.state.Hydrated.Count(), k.state.Discarded.Count()
	sum.BytesCopied, sum.Transaction = k.state.CopiedBytes, uint64(k.state.Tx)
	sum.PeakExtraBytes, sum.Created = k.state.PeakExtraBytes, k.superblock.Created
	return sum
}

func directionName(d journal.Direction) string {
	if d == journal.Backward {
		return "backward"
	}
	return "forward"
}

// held says who has the migration's lock, if anybody has.
func (s *Service) held(id string) (held *journal.LockedError, is bool) {
	is = errors.As(journal.Holder(s.lockPath(id)), &held)
	return held, is
}

// open opens one journal to look at it.
func (s *Service) openJournalToRead(id string) (*journal.Journal, known, error) {
	id, err := s.resolveID(id)
	if err != nil {
		return nil, known{}, err
	}
	k := s.look(id)
	if k.err != nil {
		return nil, k, refuse(id, "its journal cannot be read", "", k.err)
	}
	j, err := journal.OpenReadOnly(s.journalPath(id))
	if err != nil {
		return nil, k, refuse(id, "its journal cannot be read", "", err)
	}
	return j, k, nil
}

// Show is all about one migration, with a map of the given number of cells.
func (s *Service) Show(id string, cells int) (Detail, error) {
	j, k, err := s.openJournalToRead(id)
	if err != nil {
		return Detail{}, err
	}
	d, err := s.detail(j, k, cells)
	return d, errors.Join(err, j.Close())
}

func (s *Service) detail(j *journal.Journal, k known, cells int) (Detail, error) {
	d := Detail{Summary: s.summary(k), Journal: s.journalPath(k.id)}
	d.Options = k.record.Options
	bad, err := j.Bad()
	if err != nil {
		return d, refuse(k.id, "its list of bad regions cannot be read", "", err)
	}
	g := k.superblock.Geometry
	badSet := region.NewSet()
	for _, b := range bad {
		badSet.Add(b.Range)
		off, n := g.Bytes(b.Range)
		d.Bad = append(d.Bad, BadBytes{Offset: off, Bytes: n, Error: b.Error})
	}
	d.Map = regionMap(g, k.state, badSet, cells)
	list, err := j.Transactions(20)
	if err != nil {
		return d, refuse(k.id, "its transactions cannot be read", "", err)
	}
	for _, t := range list {
		d.Transactions = append(d.Transactions, Transaction{
			Number: uint64(t.Tx), Direction: directionName(t.Direction), Committed: t.Committed,
			DiscardedAt: timeOrNil(t.DiscardedAt), Regions: t.Regions, CopiedBytes: t.CopiedBytes,
		})
	}
	return d, nil
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// regionMap draws the regions into cells of equal size.
func regionMap(g region.Geometry, s journal.State, bad *region.Set, cells int) []Cell {
	n := min(uint64(max(0, cells)), g.Regions())
	list := make([]Cell, 0, n)
	for i := range n {
		part := cellRange(g.Regions(), i, n)
		hydrated := s.Hydrated.CountIn(part)
		cell := Cell{State: "partial", Hydrated: float64(hydrated) / float64(part.Count)}
		switch {
		case bad.HasAny(part):
			cell.State = "bad"
		case hydrated == 0:
			cell.State = "unhydrated"
		case s.Discarded.HasAll(part):
			cell.State = "discarded"
		case hydrated == part.Count:
			cell.State = "hydrated"
		}
		list = append(list, cell)
	}
	return list
}

// cellRange is the regions of cell i of n.
func cellRange(regions, i, n uint64) region.Range {
	return region.Between(region.Nr(regions*i/n), region.Nr(regions*(i+1)/n))
}

// Explain is all that the journal knows of the region at an offset of the device.
func (s *Service) Explain(id string, offset int64) (Explanation, error) {
	j, k, err := s.openJournalToRead(id)
	if err != nil {
		return Explanation{}, err
	}
	x, err := explain(j, k, offset)
	return x, errors.Join(err, j.Close())
}

func explain(j *journal.Journal, k known, offset int64) (Explanation, error) {
	g := k.superblock.Geometry
	if offset < 0 || offset >= g.DeviceBytes() {
		return Explanation{}, &Error{
			Outcome: Usage, Object: strconv.FormatInt(offset, 10),
			Problem: fmt.Sprintf("is not on the device, which has %d bytes", g.DeviceBytes()),
		}
	}
	at := g.Touched(offset, 1)
	start, n := g.Bytes(at)
	x := Explanation{ID: k.id, Offset: offset, Region: uint64(at.First), RegionStart: start, RegionBytes: n}
	r, err := j.Region(at.First)
	if err != nil {
		return x, refuse(k.id, "the region cannot be looked up", "", err)
	}
	giver, taker := k.superblock.Source, k.superblock.Destination
	if k.state.Direction == journal.Backward {
		giver, taker = taker, giver
	}
	x.State, x.Owner = "unhydrated", giver.Path
	if r.Hydrated {
		x.State, x.Owner, x.Checksum = "hydrated", taker.Path, "zeros"
	}
	if r.Discarded {
		x.State = "discarded"
	}
	switch {
	case r.HasSum && r.Sum == journal.WrittenSum:
		x.Checksum = "written"
	case r.HasSum && r.Sum != 0:
		x.Checksum = fmt.Sprintf("%016x", r.Sum)
	}
	x.Transaction = uint64(r.Tx)
	x.Committed, x.DiscardedAt = timeOrNil(r.Committed), timeOrNil(r.DiscardedAt)
	return x, x.addBad(j, at.First)
}

func (x *Explanation) addBad(j *journal.Journal, nr region.Nr) error {
	bad, err := j.Bad()
	if err != nil {
		return refuse(x.ID, "its list of bad regions cannot be read", "", err)
	}
	for _, b := range bad {
		if b.Range.Has(nr) && !strings.HasPrefix(x.State, "hydrated") {
			x.State, x.Error = "bad", b.Error
		}
	}
	return nil
}
