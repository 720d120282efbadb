package service

import (
	"cmp"
	"fmt"
	"strings"

	"decant/journal"
	"decant/nbd"
	"decant/thin"
)

// groupVolumeKind is the kind of a volume of LVM in a journal. There it is kept apart
// from a volume of thinctl, whose pool may come to have the name of the group.
const groupVolumeKind = "lvm"

// groupTarget is the target GROUP/VOLUME, if LVM has such a volume group. The error
// says why it has none, for people.
func groupTarget(name, thinPool string) (target, error) {
	group, volume, err := thin.SplitGroupVolume(name)
	if err != nil {
		return target{}, err
	}
	if err := thin.FindGroup(group); err != nil {
		return target{}, err
	}
	return target{name: name, pool: group, volume: volume, group: true, thinPool: thinPool}, nil
}

// openPool opens the pool that the target's volume is in, or is to be made in.
func (s *Service) openPool(t target) (thin.Pool, error) {
	if !t.group {
		return s.pools.Open(t.pool)
	}
	pool, err := thin.OpenGroupFor(t.pool, t.volume, t.thinPool)
	if err != nil {
		return nil, err // and not a Pool around a nil pointer
	}
	return pool, nil
}

// identityTarget is where a journal says that an end is.
func identityTarget(id journal.Identity) target {
	t := target{name: id.Name, path: id.Path}
	switch id.Kind {
	case nbdKind:
		if u, err := nbd.ParseURI(id.Path); err == nil { // else opening the path says what is wrong
			t.export = u
		}
	case "volume":
		t.pool, t.volume, _ = splitVolume(id.Name)
	case groupVolumeKind:
		t.group = true
		t.pool, t.volume, _ = thin.SplitGroupVolume(id.Name) // opening the empty name says what is wrong
	}
	return t
}

// handedOver is a volume whose pool notes for whom it was made.
type handedOver interface {
	// Fresh: made by this program, and not handed over.
	Fresh() bool
	Keep() error
}

// isFresh says whether a run that ended before it had a journal has made the end.
func (e *end) isFresh() (bool, error) {
	v, ok := e.device.(handedOver)
	if !ok || !v.Fresh() {
		return false, nil
	}
	allocated, err := e.AllocatedBytes()
	return allocated == 0, err
}

// keep hands the end over, now that the journal knows who has made it. Where it
// fails it is a tag too many on the volume, which concerns nobody's data.
func (e *end) keep() error {
	if v, ok := e.device.(handedOver); ok {
		return v.Keep()
	}
	return nil
}

// checkDiscards refuses to empty what takes no discards. A block device of no pool
// says at the first one whether it does.
func checkDiscards(e *end) error {
	v, ok := e.device.(interface{ CheckDiscard() error })
	if !ok {
		return nil
	}
	if err := v.CheckDiscard(); err != nil {
		hint := cmp.Or(HintOf(err), "leave off --discard-src, and remove it afterwards")
		return refuse(e.name, "its space cannot be freed while it is read", hint, err)
	}
	return nil
}

// zeroTail makes what a volume has beyond the size of the source read as zeros,
// durably and for good: LVM rounds sizes up, and no region covers it.
func zeroTail(e *end, bytes int64) error {
	if e.kind != "volume" || e.Bytes() <= bytes {
		return nil
	}
	if err := e.Zero(bytes, e.Bytes()-bytes); err != nil {
		return err
	}
	return e.Flush()
}

// warnRelatives says which volumes share blocks with a source that is emptied.
func (a *attempt) warnRelatives() error {
	v, ok := a.source.device.(interface{ Relatives() ([]string, error) })
	if !ok || !a.request.Options.DiscardSource {
		return nil
	}
	names, err := v.Relatives()
	if err != nil {
		return refuse(a.source.name, "it cannot be seen whether it has snapshots", "", err)
	}
	if len(names) > 0 {
		a.plan.Warnings = append(a.plan.Warnings, fmt.Sprintf("the source may share blocks with its snapshot or origin %s; emptying it frees none of those",
			strings.Join(names, ", ")))
	}
	return nil
}
