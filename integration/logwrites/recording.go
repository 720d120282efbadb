package logwrites

import "fmt"

// Medium is a range of the recorded device that stands for a disk of its own.
type Medium struct {
	Name       string
	Off, Bytes int64
	// UntornBytes is how much of its beginning is never torn. ext4 has its superblock
	// there, in two sectors under one checksum, and cannot be mounted when it is torn.
	UntornBytes int64
}

// Recording is a log of several media. It does not change, and may be used by several
// goroutines at once.
type Recording struct {
	entries []Entry
	media   []Medium
	on      []int // which of the media an entry is for, or none
}

// none is for marks: they are for no medium.
const none = -1

// NewRecording takes the entries of a log, which must not change from now on. An entry
// that is not within one of the media is an error.
func NewRecording(entries []Entry, media ...Medium) (*Recording, error) {
	r := &Recording{entries: entries, media: media, on: make([]int, len(entries))}
	for i, e := range entries {
		r.on[i] = none
		for m, medium := range media {
			if !e.Has(Mark) && e.Off >= medium.Off && e.Off-medium.Off < medium.Bytes && e.Bytes <= medium.Bytes-(e.Off-medium.Off) {
				r.on[i] = m
			}
		}
		if r.on[i] == none && !e.Has(Mark) {
			return nil, fmt.Errorf("entry %d, %d bytes at %d (%v), is not within one medium", i, e.Bytes, e.Off, e.Flags)
		}
	}
	return r, nil
}

// Len is the number of entries.
func (r *Recording) Len() int { return len(r.entries) }

// Entry is an entry by its number, which counts from 0. Its data must not be changed.
func (r *Recording) Entry(i int) Entry { return r.entries[i] }

// Entries is a copy of the list, to make another recording of it.
func (r *Recording) Entries() []Entry { return append([]Entry(nil), r.entries...) }

// Media are those that were given to NewRecording.
func (r *Recording) Media() []Medium { return append([]Medium(nil), r.media...) }

// MediumOf is the name of the medium of an entry, empty for a mark.
func (r *Recording) MediumOf(i int) string {
	if r.on[i] == none {
		return ""
	}
	return r.media[r.on[i]].Name
}

// Marks are the labels of the marks among the first entries.
func (r *Recording) Marks(first int) (labels []string) {
	for _, e := range r.entries[:first] {
		if e.Has(Mark) {
			labels = append(labels, string(e.Data))
		}
	}
	return labels
}

// Describe is an entry in words.
func (r *Recording) Describe(i int) string {
	e := r.entries[i]
	switch {
	case e.Has(Mark):
		return fmt.Sprintf("entry %d: mark %q", i, e.Data)
	case e.Has(Discard):
		return fmt.Sprintf("entry %d: %s: discard of %d bytes at %d", i, r.MediumOf(i), e.Bytes, e.Off-r.media[r.on[i]].Off)
	case e.Bytes == 0:
		return fmt.Sprintf("entry %d: %s: flush", i, r.MediumOf(i))
	}
	return fmt.Sprintf("entry %d: %s: %d bytes at %d, %v", i, r.MediumOf(i), e.Bytes, e.Off-r.media[r.on[i]].Off, e.Flags)
}
