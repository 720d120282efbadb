package journal

import (
	"database/sql"

	"decant/region"
)

// Reverse turns the migration round: from then on its state is that of direction
// Backward, in phase Running. There, the regions that were never hydrated forward
// count as hydrated and discarded from the start, since the source still has them.
// The records of the forward direction stay, and transactions go on counting. A
// journal that runs backward already is left as it is. Durability and errors are as
// for Commit.
func (j *Journal) Reverse() (State, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	const doing = "reverse"
	if err := j.writable(doing); err != nil {
		return State{}, err
	}
	if j.state.Direction == Backward {
		return copyState(j.state), nil
	}
	kept := complement(j.state.Hydrated, j.superblock.Geometry)
	err := j.write(doing, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(background, `UPDATE state SET direction = ?, phase = ?`, Backward, string(Running)); err != nil {
			return err
		}
		for _, table := range []string{"hydrated", "discarded"} {
			if err := writeAdded(tx, table, Backward, &region.Set{}, kept); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return State{}, err
	}
	j.state = State{
		Tx: j.state.Tx, Direction: Backward, Phase: Running,
		Hydrated: kept, Discarded: kept.Clone(), PeakExtraBytes: j.state.PeakExtraBytes,
	}
	return copyState(j.state), nil
}

// complement are the regions of the device that are not in s.
func complement(s *region.Set, g region.Geometry) *region.Set {
	c := region.NewSet(g.All())
	c.Subtract(s)
	return c
}
