package journal

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"

	"decant/region"
)

// Load is the state of the direction in which the migration runs. The sets belong
// to the caller. Once a change has left the journal unusable, it fails for the same
// reason.
func (j *Journal) Load() (State, error) {
	if j.readOnly {
		var s State
		err := j.read("load", func(q querier) (err error) {
			s, err = readState(q, j.superblock.Geometry)
			return err
		})
		return s, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return State{}, j.fault("load", nil, sql.ErrConnDone)
	}
	if j.broken != nil {
		return State{}, j.fault("load", j.broken.Reason, j.broken.Cause)
	}
	return copyState(j.state), nil
}

func copyState(s State) State {
	s.Hydrated, s.Discarded = s.Hydrated.Clone(), s.Discarded.Clone()
	return s
}

func readSuperblock(q querier) (sb Superblock, err error) {
	var deviceBytes, regionBytes, created int64
	err = q.QueryRowContext(background, `SELECT id, device_bytes, region_bytes, source_start_bytes, created_ns, options FROM superblock`).
		Scan(&sb.ID, &deviceBytes, &regionBytes, &sb.SourceStartBytes, &created, &sb.Options)
	if err != nil {
		return sb, fmt.Errorf("superblock: %w", err)
	}
	sb.Created = kept(created)
	if sb.Geometry, err = region.NewGeometry(deviceBytes, regionBytes); err != nil {
		return sb, fmt.Errorf("superblock: %w", err)
	}
	if sb.Source, err = readIdentity(q, sourceSide); err != nil {
		return sb, fmt.Errorf("identity of the source: %w", err)
	}
	if sb.Destination, err = readIdentity(q, destinationSide); err != nil {
		return sb, fmt.Errorf("identity of the destination: %w", err)
	}
	return sb, nil
}

func readIdentity(q querier, side int) (id Identity, err error) {
	err = q.QueryRowContext(background, `SELECT kind, name, path, key, bytes, start_bytes, modified_ns FROM identity WHERE side = ?`, side).
		Scan(&id.Kind, &id.Name, &id.Path, &id.Key, &id.Bytes, &id.Offset, &id.ModifiedNanoseconds)
	return id, err
}

func readState(q querier, g region.Geometry) (s State, err error) {
	err = q.QueryRowContext(background, `SELECT direction, phase, peak_extra_bytes FROM state`).
		Scan(&s.Direction, &s.Phase, &s.PeakExtraBytes)
	if err != nil {
		return s, fmt.Errorf("state: %w", err)
	}
	if s.Direction > Backward || !s.Phase.known() {
		return s, fmt.Errorf("state: direction %d, phase %q", s.Direction, s.Phase)
	}
	if err = q.QueryRowContext(background, `SELECT coalesce(max(number), 0) FROM tx`).Scan(&s.Tx); err != nil {
		return s, fmt.Errorf("transactions: %w", err)
	}
	err = q.QueryRowContext(background, `SELECT coalesce(sum(copied_bytes), 0) FROM tx WHERE direction = ?`, s.Direction).
		Scan(&s.CopiedBytes)
	if err != nil {
		return s, fmt.Errorf("transactions: %w", err)
	}
	if s.Hydrated, err = readSet(q, "hydrated", s.Direction, g); err != nil {
		return s, err
	}
	s.Discarded, err = readSet(q, "discarded", s.Direction, g)
	return s, err
}

// readSet reads a set from one of the two tables of bitmaps. What it accepts is
// exactly what is written there.
func readSet(q querier, table string, d Direction, g region.Geometry) (s *region.Set, err error) {
	rows, err := q.QueryContext(background, `SELECT chunk, bits FROM `+table+` WHERE direction = ?`, d)
	if err != nil {
		return nil, fmt.Errorf("%s regions: %w", table, err)
	}
	defer closeRows(rows, &err)
	s = &region.Set{}
	for rows.Next() {
		var key uint64
		var encoded sql.RawBytes
		if err := rows.Scan(&key, &encoded); err != nil {
			return nil, fmt.Errorf("%s regions: %w", table, err)
		}
		if key >= chunks(g) {
			return nil, fmt.Errorf("%s regions: chunk %d of %d", table, key, chunks(g))
		}
		if err := s.AddChunk(key, encoded); err != nil {
			return nil, fmt.Errorf("%s regions: %w", table, err)
		}
		if !bytes.Equal(encoded, s.EncodeChunk(key)) {
			return nil, fmt.Errorf("%s regions: chunk %d is malformed", table, key)
		}
	}
	if outside(s, g) {
		return nil, errors.Join(rows.Err(), fmt.Errorf("%s regions: some lie outside the device", table))
	}
	return s, rows.Err()
}

// chunks is the number of chunks of a set over the whole device.
func chunks(g region.Geometry) uint64 {
	return (g.Regions() + region.ChunkRegions - 1) / region.ChunkRegions
}

// outside says whether some region of s lies behind the end of the device.
func outside(s *region.Set, g region.Geometry) bool {
	for key := range s.Chunks() {
		if key >= chunks(g) {
			return true
		}
	}
	return s.HasAny(region.Between(region.Nr(g.Regions()), region.Nr(chunks(g)*region.ChunkRegions)))
}
