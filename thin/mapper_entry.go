package thin

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mapperEntry is what the registry keeps of a dm-thin pool, so that it can be made
// active again: a regular file under the pool's name.
type mapperEntry struct {
	Kind           string `json:"kind"` // KindMapper
	UUID           string `json:"uuid"`
	Data           string `json:"data"` // paths as the user gave them, absolute
	Metadata       string `json:"metadata"`
	DataKey        string `json:"data_key"` // what these devices are, whatever their names lead to
	MetadataKey    string `json:"metadata_key"`
	BlockBytes     int64  `json:"block_bytes"`
	LowWaterBlocks int64  `json:"low_water_blocks"`
}

// maxEntryBytes bounds what is read of an entry. No sensible one is longer.
const maxEntryBytes = 64 << 10

// decodeEntry reads an entry.
func decodeEntry(text []byte) (mapperEntry, error) {
	var e mapperEntry
	if err := json.Unmarshal(text, &e); err != nil {
		return e, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if e.Kind != KindMapper || !isUUID(e.UUID) || !filepath.IsAbs(e.Data) || !filepath.IsAbs(e.Metadata) ||
		checkBlockBytes(e.BlockBytes) != nil || e.LowWaterBlocks < 0 {
		return e, fmt.Errorf("%w: a value is missing or out of bounds", ErrForeign)
	}
	return e, nil
}

// isUUID says whether s is what newUUID makes. It becomes part of names of files
// and devices.
func isUUID(s string) bool {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	return err == nil && len(b) == 16 && formatUUID(b) == s
}

// mapperEntry reads the entry of that name. It is ErrNotFound if there is none, or
// none of a dm-thin pool.
func (r Registry) mapperEntry(name string) (mapperEntry, error) {
	info, err := os.Lstat(r.link(name))
	if err != nil {
		return mapperEntry{}, notFound(err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxEntryBytes {
		return mapperEntry{}, ErrNotFound
	}
	text, err := os.ReadFile(r.link(name))
	if err != nil {
		return mapperEntry{}, notFound(err)
	}
	e, err := decodeEntry(text)
	if err != nil {
		return e, &Error{
			Op: "open pool", Object: name, State: fmt.Sprintf("%s is damaged: %v", r.link(name), err), Err: err,
			Hint: "forget it with thinctl pool close " + name + " and register it with thinctl pool open --data DEV --metadata DEV",
		}
	}
	return e, nil
}

// addMapper registers a dm-thin pool, durably. An entry of the same pool is replaced.
// It is ErrExists if another pool has the name.
func (r Registry) addMapper(name string, e mapperEntry) error {
	const op = "register pool"
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return &Error{Op: op, Object: name, Err: err}
	}
	return r.locked(func() error {
		if old, err := r.mapperEntry(name); err != nil || old.UUID != e.UUID {
			if err := r.free(op, name); err != nil {
				return err
			}
		}
		temporary := filepath.Join(r.poolsDir(), ".new") // only one, under the lock
		err := os.WriteFile(temporary, append(text, '\n'), 0o600)
		if err == nil {
			err = syncPath(temporary)
		}
		if err == nil {
			err = os.Rename(temporary, r.link(name))
		}
		if err == nil {
			err = syncPath(r.poolsDir())
		}
		return wrap(err, op, name)
	})
}

// removeMapper takes the pool out of the registry if it is registered there under
// that name, durably.
func (r Registry) removeMapper(op, name, uuid string) error {
	return r.locked(func() error {
		e, err := r.mapperEntry(name)
		if errors.Is(err, ErrNotFound) || err == nil && e.UUID != uuid {
			return nil // not registered, or it is another pool's name by now
		}
		if err != nil {
			return err
		}
		return r.remove(op, name)
	})
}
