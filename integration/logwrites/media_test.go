package logwrites_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"decant/integration/logwrites"
	"decant/journal"
	"decant/loopdev"
	"decant/region"
)

// sourceFacts is what a state says of the source.
type sourceFacts struct {
	whole       wholeRegions
	dataRegions int           // that are not zeros
	mark        *loopdev.Mark // nil: it has none
	modified    time.Time
	err         error // the file system is damaged, or has lost the image
}

// source mounts, as it were, the file system with the image: the file system's journal
// is replayed, all of it is checked, and the image read.
func (c *checker) source(part logwrites.Part) sourceFacts {
	return c.sources.get(part.Key(), func() (s sourceFacts) {
		s.err = c.inScratch(part, sourceMedium, func(dir, path string) error {
			if err := checkExt4(path); err != nil {
				return err
			}
			image, mark := filepath.Join(dir, "image"), filepath.Join(dir, "mark")
			said, err := debugfs(dir, path,
				"dump /"+imageName+" "+image,
				"ea_get -f "+mark+" /"+imageName+" user.decant.mark",
				"stat /"+imageName)
			if err != nil {
				return err
			}
			content, err := os.ReadFile(image)
			if err != nil || int64(len(content)) != imageBytes {
				return fmt.Errorf("the image has %d bytes (%w); debugfs: %s", len(content), err, said)
			}
			s.whole = compare(content, c.image)
			zero := compare(content, make([]byte, imageBytes))
			for _, isZero := range zero {
				if !isZero {
					s.dataRegions++
				}
			}
			if s.modified, err = modified(said); err != nil {
				return err
			}
			s.mark, err = readMark(mark)
			return err
		})
		return s
	})
}

// readMark is nil if there is no mark.
func readMark(path string) (*loopdev.Mark, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(text) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	mark := &loopdev.Mark{}
	if err := json.Unmarshal(text, mark); err != nil {
		return nil, fmt.Errorf("the mark %q: %w", text, err)
	}
	return mark, nil
}

// unchangedSince follows the rule by which a resume tells changes of its own from
// those of others: see loopdev.Device.UnchangedSince.
func (s sourceFacts) unchangedSince(kept time.Time) bool {
	return s.modified.Equal(kept) || s.mark != nil && s.mark.Discarding &&
		s.modified.After(s.mark.Since.Add(-time.Second)) && s.modified.Before(s.mark.Since.Add(100*time.Millisecond))
}

// checkExt4 does what a mount does, and finds all that is wrong with the file system.
func checkExt4(path string) error {
	out, err := exec.Command("e2fsck", "-fp", path).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 1) {
		return fmt.Errorf("e2fsck: %w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if !ordinary.MatchString(line) {
			return fmt.Errorf("e2fsck had to repair the file system: %s", out)
		}
	}
	return nil
}

// ordinary is what e2fsck says of a mount after a power cut, and of a file system
// that could be laid out better.
var ordinary = regexp.MustCompile(`: (recovering journal|Clearing orphaned inode .*|Setting free (blocks|inodes) count to .*|` +
	`Inode \d+ extent tree .* could be (shorter|narrower)\.  IGNORED\.|\d+/\d+ files .*)\n$`)

// debugfs runs commands on a file system and returns what it says.
func debugfs(dir, path string, commands ...string) (string, error) {
	list := filepath.Join(dir, "commands")
	if err := os.WriteFile(list, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		return "", err
	}
	out, err := exec.Command("debugfs", "-f", list, path).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("debugfs: %w: %s", err, out)
	}
	return string(out), nil
}

// mtimeLine is a time in seconds and, shifted by two bits, nanoseconds, both in
// hexadecimal.
var mtimeLine = regexp.MustCompile(`(?m)^ *mtime: 0x([0-9a-f]+):([0-9a-f]+) `)

func modified(stat string) (time.Time, error) {
	found := mtimeLine.FindStringSubmatch(stat)
	if found == nil {
		return time.Time{}, fmt.Errorf("debugfs tells no modification time: %s", stat)
	}
	seconds, err := strconv.ParseInt(found[1], 16, 64)
	extra, extraErr := strconv.ParseInt(found[2], 16, 64)
	return time.Unix(seconds, extra>>2), errors.Join(err, extraErr)
}

// journalFacts is what a state says of the journal.
type journalFacts struct {
	exists         bool
	id             string
	tx             journal.TxID
	phase          journal.Phase
	hydrated       *region.Set
	recordedBy     [regions]journal.TxID // 0: by none
	sourceModified time.Time
	err            error // the file system or the journal is damaged
}

// journal mounts the file system with the journal, and opens it as a resume would.
func (c *checker) journal(part logwrites.Part) journalFacts {
	return c.journals.get(part.Key(), func() (j journalFacts) {
		j.err = c.inScratch(part, journalMedium, func(dir, path string) error {
			if err := checkExt4(path); err != nil {
				return err
			}
			said, err := debugfs(dir, path, "rdump /"+stateName+" "+dir)
			if err != nil {
				return err
			}
			paths, err := filepath.Glob(filepath.Join(dir, stateName, "*.db"))
			switch {
			case err != nil:
				return err
			case len(paths) > 1:
				return fmt.Errorf("there are the journals %v", paths)
			case len(paths) == 0:
				return nil
			}
			if err := j.read(paths[0]); err != nil {
				return fmt.Errorf("%w; debugfs: %s", err, said)
			}
			return nil
		})
		return j
	})
}

func (j *journalFacts) read(path string) (err error) {
	opened, err := journal.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	if err := opened.Check(); err != nil {
		return err
	}
	state, err := opened.Load()
	if err != nil {
		return err
	}
	for nr := range j.recordedBy {
		record, err := opened.Region(region.Nr(nr))
		if err != nil {
			return err
		}
		j.recordedBy[nr] = record.Tx
	}
	superblock := opened.Superblock()
	j.exists, j.id, j.tx, j.phase, j.hydrated = true, superblock.ID, state.Tx, state.Phase, state.Hydrated
	j.sourceModified = time.Unix(0, superblock.Source.ModifiedNanoseconds)
	return nil
}

// mappingFacts is what the metadata of the pool says of the volume.
type mappingFacts struct {
	blocks [regions]int64 // of the data device; unmapped if there is none
	err    error
}

const unmapped = -1

// mapping checks the metadata and reads them.
func (c *checker) mapping(part logwrites.Part) mappingFacts {
	return c.mappings.get(part.Key(), func() (m mappingFacts) {
		m.err = c.inScratch(part, metadataMedium, func(_, path string) error {
			if out, err := exec.Command("thin_check", path).CombinedOutput(); err != nil {
				return fmt.Errorf("thin_check: %w: %s", err, out)
			}
			out, err := exec.Command("thin_dump", path).Output()
			if err != nil {
				return fmt.Errorf("thin_dump: %w", err)
			}
			m.blocks, err = parseMapping(out)
			return err
		})
		return m
	})
}

// parseMapping reads what thin_dump says of the only volume of the pool.
func parseMapping(dump []byte) (blocks [regions]int64, err error) {
	var pool struct {
		BlockSectors int64 `xml:"data_block_size,attr"`
		Devices      []struct {
			Ranges []struct {
				Origin int64 `xml:"origin_begin,attr"`
				Data   int64 `xml:"data_begin,attr"`
				Length int64 `xml:"length,attr"`
			} `xml:"range_mapping"`
			Singles []struct {
				Origin int64 `xml:"origin_block,attr"`
				Data   int64 `xml:"data_block,attr"`
			} `xml:"single_mapping"`
		} `xml:"device"`
	}
	if err := xml.Unmarshal(dump, &pool); err != nil {
		return blocks, err
	}
	if len(pool.Devices) != 1 || pool.BlockSectors*512 != regionBytes {
		return blocks, fmt.Errorf("the pool has %d volumes and blocks of %d sectors", len(pool.Devices), pool.BlockSectors)
	}
	for nr := range blocks {
		blocks[nr] = unmapped
	}
	volume := pool.Devices[0]
	for _, s := range volume.Singles {
		blocks[s.Origin] = s.Data
	}
	for _, r := range volume.Ranges {
		for i := range r.Length {
			blocks[r.Origin+i] = r.Data + i
		}
	}
	return blocks, nil
}

// volume reads the volume as the pool would.
func (c *checker) volume(state logwrites.State) (wholeRegions, error) {
	metadata, data := state.On(metadataMedium), state.On(dataMedium)
	mapped := c.mapping(metadata)
	if mapped.err != nil {
		return wholeRegions{}, mapped.err
	}
	return c.volumes.get(metadata.Key()+data.Key(), func() wholeRegions {
		var pool memory
		for _, m := range media {
			if m.Name == dataMedium {
				pool = make(memory, m.Bytes)
			}
		}
		if err := data.WriteTo(pool); err != nil {
			panic(err) // an entry is within its medium, or there is no recording
		}
		content := make([]byte, imageBytes)
		for nr, block := range mapped.blocks {
			if block != unmapped {
				copy(content[int64(nr)*regionBytes:][:regionBytes], pool[block*regionBytes:])
			}
		}
		return compare(content, c.image)
	}), nil
}
