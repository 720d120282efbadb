package journal

import (
	"database/sql"
	"errors"
	"fmt"
	"iter"

	"decant/region"
)

// writeSums records checksums, which ascend.
func writeSums(tx *sql.Tx, d Direction, sums []Checksum) error {
	for len(sums) > 0 {
		key := uint64(sums[0].Nr) / sumChunkRegions
		_, chunk, err := nextSums(tx, d, key, key)
		if err != nil {
			return err
		}
		if chunk == nil {
			chunk = &sumChunk{}
		}
		for len(sums) > 0 && uint64(sums[0].Nr)/sumChunkRegions == key {
			chunk[sums[0].Nr%sumChunkRegions] = NormalSum(sums[0].Sum)
			sums = sums[1:]
		}
		if err := putSums(tx, d, key, chunk); err != nil {
			return err
		}
	}
	return nil
}

// clearSums forgets the checksums of the regions of s.
func clearSums(tx *sql.Tx, d Direction, s *region.Set) error {
	for r := range s.Ranges() {
		first, last := sumChunks(r)
		for key := first; key <= last; key++ {
			found, chunk, err := nextSums(tx, d, key, last)
			if err != nil {
				return err
			}
			if chunk == nil {
				break
			}
			key = found
			all := region.Range{First: region.Nr(key) * sumChunkRegions, Count: sumChunkRegions}
			part := r.Intersect(all)
			clear(chunk[part.First-all.First : part.End()-all.First])
			if err := putSums(tx, d, key, chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// nextSums is the first recorded chunk of checksums from first to last, last
// included; nil if there is none.
func nextSums(q querier, d Direction, first, last uint64) (key uint64, chunk *sumChunk, err error) {
	var encoded []byte
	err = q.QueryRowContext(background, `SELECT chunk, sums FROM checksum
		WHERE direction = ? AND chunk BETWEEN ? AND ? ORDER BY chunk LIMIT 1`, d, int64(first), int64(last)).Scan(&key, &encoded)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	if chunk, err = decodeSums(encoded); err != nil {
		return 0, nil, fmt.Errorf("chunk %d: %w", key, err)
	}
	return key, chunk, nil
}

func putSums(tx *sql.Tx, d Direction, key uint64, chunk *sumChunk) error {
	encoded := chunk.encode()
	if encoded == nil {
		_, err := tx.ExecContext(background, `DELETE FROM checksum WHERE direction = ? AND chunk = ?`, d, int64(key))
		return err
	}
	_, err := tx.ExecContext(background, `INSERT INTO checksum VALUES (?, ?, ?)
		ON CONFLICT (direction, chunk) DO UPDATE SET sums = excluded.sums`, d, int64(key), encoded)
	return err
}

// Checksums yields the recorded checksums of one direction inside a range,
// ascending. An error ends it. It holds one row of them in memory, and may be left
// at any point; commits may come in between, so a caller that compares stops them
// first.
//
// A region that a transaction of this direction hydrated and that has no checksum
// holds zeros only. In direction Backward that does not hold for the regions that
// no transaction brought back: those that were never hydrated forward.
func (j *Journal) Checksums(d Direction, within region.Range) iter.Seq2[Checksum, error] {
	return func(yield func(Checksum, error) bool) {
		within = within.Intersect(j.superblock.Geometry.All())
		if within.Empty() {
			return
		}
		first, last := sumChunks(within)
		for key := first; key <= last; key++ {
			var chunk *sumChunk
			err := j.read("read checksums", func(q querier) (err error) {
				key, chunk, err = nextSums(q, d, key, last)
				return err
			})
			if err != nil {
				yield(Checksum{}, err)
				return
			}
			if chunk == nil {
				return
			}
			for i, sum := range chunk {
				nr := region.Nr(key)*sumChunkRegions + region.Nr(i)
				if sum != 0 && within.Has(nr) && !yield(Checksum{Nr: nr, Sum: sum}, nil) {
					return
				}
			}
		}
	}
}
