package journal

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"decant/region"
)

// Commit records a transaction and gives its number. It returns nil only if the
// record survives a power loss.
//
// After ErrInvalid and ErrFull nothing was recorded and the journal is as before.
// After any other error it takes no further change and has to be opened anew: after
// ErrUnknownOutcome the transaction may have been recorded or not.
//
// The regions may be hydrated already, as when they are written once more; what
// the journal knows of their content is then what this transaction says. A
// transaction without regions is recorded as well.
func (j *Journal) Commit(t Transaction) (TxID, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	doing := fmt.Sprintf("commit transaction %d", j.state.Tx+1)
	if err := j.writable(doing); err != nil {
		return 0, err
	}
	if t.Hydrated == nil {
		t.Hydrated = &region.Set{}
	}
	if err := t.check(j.superblock.Geometry); err != nil {
		return 0, j.fault(doing, ErrInvalid, err)
	}
	number, d := j.state.Tx+1, j.state.Direction
	fresh, again := split(t.Hydrated, j.state.Hydrated)
	peak := max(j.state.PeakExtraBytes, t.PeakExtraBytes)
	err := j.write(doing, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(background, `INSERT INTO tx VALUES (?, ?, ?, NULL, ?, ?, ?)`,
			number, d, time.Now().UnixNano(), int64(fresh.Count()), t.CopiedBytes, encodeRanges(fresh)); err != nil {
			return err
		}
		if err := writeAdded(tx, "hydrated", d, j.state.Hydrated, fresh); err != nil {
			return err
		}
		if err := clearSums(tx, d, again); err != nil {
			return err
		}
		if err := writeSums(tx, d, t.Checksums); err != nil {
			return err
		}
		if peak == j.state.PeakExtraBytes {
			return nil
		}
		_, err := tx.ExecContext(background, `UPDATE state SET peak_extra_bytes = ?`, peak)
		return err
	})
	if err != nil {
		return 0, err
	}
	j.state.Tx, j.state.PeakExtraBytes = number, peak
	j.state.CopiedBytes += t.CopiedBytes
	j.state.Hydrated.Union(fresh)
	return number, nil
}

// check says whether the transaction makes sense on a device of this geometry.
func (t Transaction) check(g region.Geometry) error {
	if outside(t.Hydrated, g) {
		return fmt.Errorf("regions behind the last, which is %d", g.Regions()-1)
	}
	if t.CopiedBytes < 0 {
		return fmt.Errorf("%d bytes copied", t.CopiedBytes)
	}
	for i, sum := range t.Checksums {
		if !t.Hydrated.Has(sum.Nr) {
			return fmt.Errorf("a checksum of region %d, which is not in the transaction", sum.Nr)
		}
		if i > 0 && sum.Nr <= t.Checksums[i-1].Nr {
			return fmt.Errorf("the checksum of region %d comes after that of %d", sum.Nr, t.Checksums[i-1].Nr)
		}
	}
	return nil
}

// split divides the regions of s into those that known lacks and the others.
func split(s, known *region.Set) (fresh, again *region.Set) {
	fresh, again = &region.Set{}, s.Clone()
	for r := range s.Ranges() {
		for rest := r; ; {
			missing, found := known.MissingRange(rest)
			if !found {
				break
			}
			fresh.Add(missing)
			again.Remove(missing)
			rest = region.Between(missing.End(), r.End())
		}
	}
	return fresh, again
}

// writeAdded writes the chunks of known that change when the regions of added come
// to it. The cost grows with the chunks that added touches.
func writeAdded(tx *sql.Tx, table string, d Direction, known, added *region.Set) (err error) {
	put, err := tx.PrepareContext(background, `INSERT INTO `+table+` VALUES (?, ?, ?)
		ON CONFLICT (direction, chunk) DO UPDATE SET bits = excluded.bits`)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, put.Close()) }()
	for key := range added.Chunks() {
		chunk := &region.Set{}
		for _, s := range []*region.Set{known, added} {
			encoded := s.EncodeChunk(key)
			if encoded == nil {
				continue
			}
			if err := chunk.AddChunk(key, encoded); err != nil {
				return err
			}
		}
		if _, err := put.ExecContext(background, d, int64(key), chunk.EncodeChunk(key)); err != nil {
			return err
		}
	}
	return nil
}
