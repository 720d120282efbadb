package service

import (
	"time"

	"decant/loopdev"
)

// ground is what an end is made of below volumes and formats: what can be asked of it
// besides its bytes. On this host it is a *loopdev.Device. An export of an NBD server
// has its bytes elsewhere, and answers what is true of it without knowing more: nobody
// is seen to use it, it lies on nothing, and it has no time of modification.
type ground interface {
	Info() loopdev.Info
	// UsedBy lists who else is seen to use it.
	UsedBy() ([]loopdev.Use, error)
	// Place is the file system that it lies on; nil if there is none.
	Place() (*loopdev.Place, error)
	// Fragments is in how many pieces it lies there.
	Fragments() (int64, error)
	// Trim makes that file system give back what it has freed.
	Trim(minBytes int64) (int64, error)
	Resize(bytes int64) error
	// Stacked is which live devices of this program lie on it, and Share lets one be put
	// there.
	Stacked() ([]string, error)
	Share() error

	// The time of modification, which what decant does to a source leaves as it is.
	UnchangedSince(t time.Time) (bool, error)
	KeepModified(t time.Time)
	SetModified(t time.Time) error
}

var (
	_ ground = (*loopdev.Device)(nil)
	_ ground = (*nbdEnd)(nil)
)

// overlap says why a source and a destination must not be those of one migration: they
// are the same bytes, or one lies on the other. It is empty where that is not known.
func overlap(source, destination ground) (string, error) {
	to, ok := destination.(*loopdev.Device)
	if !ok {
		return "", nil // no destination is anything else
	}
	switch from := source.(type) {
	case *loopdev.Device:
		return loopdev.Overlap(from, to)
	case *nbdEnd:
		return from.overlap(to)
	}
	return "", nil
}

// onFile says whether the bytes of an end are those of a file of this host.
func onFile(info loopdev.Info) bool { return info.BackingPath != "" }
