package journal

import (
	"encoding/binary"
	"errors"
	"iter"

	"decant/region"
)

// The ranges of a transaction are kept as pairs of varints: the regions between
// the end of the range before and this range, and the regions in it. Only the
// first gap can be zero.

// encodeRanges encodes the regions of a set.
func encodeRanges(s *region.Set) []byte {
	out := []byte{}
	var end region.Nr
	for r := range s.Ranges() {
		out = binary.AppendUvarint(out, uint64(r.First-end))
		out = binary.AppendUvarint(out, r.Count)
		end = r.End()
	}
	return out
}

var errRanges = errors.New("list of region ranges is malformed")

// decodeRanges yields what encodeRanges encoded, ascending. With regions as the
// number of regions of the device, every range lies inside it. An error ends it.
func decodeRanges(encoded []byte, regions uint64) iter.Seq2[region.Range, error] {
	return func(yield func(region.Range, error) bool) {
		var end region.Nr
		for rest := encoded; len(rest) > 0; {
			gap, n := binary.Uvarint(rest)
			if n <= 0 || gap > regions-uint64(end) || gap == 0 && len(rest) < len(encoded) {
				yield(region.Range{}, errRanges)
				return
			}
			first := end + region.Nr(gap)
			count, m := binary.Uvarint(rest[n:])
			if m <= 0 || count == 0 || count > regions-uint64(first) {
				yield(region.Range{}, errRanges)
				return
			}
			r := region.Range{First: first, Count: count}
			if !yield(r, nil) {
				return
			}
			end, rest = r.End(), rest[n+m:]
		}
	}
}
