package main

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"decant/thin"
	"decant/units"
)

// poolLine is what a table shows of a pool.
type poolLine struct {
	info      thin.PoolInfo
	freeBytes int64
}

// named is the JSON of a command after which the object is not there any more.
type named struct {
	Pool string `json:"pool,omitempty"`
	Name string `json:"name"`
}

func readPool(p thin.Pool) (poolLine, error) {
	info, err := p.Info()
	if err != nil {
		return poolLine{}, err
	}
	free, err := p.FreeBytes()
	return poolLine{info: info, freeBytes: free}, err
}

func (l poolLine) usedBytes() int64 { return l.info.DataUsedBlocks * l.info.BlockBytes }

func (c *command) printPool(p thin.Pool) error {
	line, err := readPool(p)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(line.info)
	}
	fields := [][2]string{{"Name", line.info.Name}, {"Kind", line.info.Kind}}
	if line.info.Dir != "" {
		fields = append(fields, [2]string{"Directory", line.info.Dir})
	} else {
		fields = append(fields, [2]string{"Data", line.info.Data}, [2]string{"Metadata", line.info.Metadata})
	}
	return c.printFields(append(fields, [][2]string{
		{"UUID", line.info.UUID},
		{"Size", size(line.info.SizeBytes)},
		{"Used", size(line.usedBytes())},
		{"Free", size(line.freeBytes)},
		{"Block", size(line.info.BlockBytes)},
		{"Transaction", strconv.FormatUint(line.info.TransactionID, 10)},
		{"Mode", string(line.info.Mode)},
		{"Volumes", strconv.Itoa(line.info.Volumes)},
	}...))
}

func (c *command) printPools(lines []poolLine) error {
	if c.json {
		infos := make([]thin.PoolInfo, len(lines))
		for i, line := range lines {
			infos[i] = line.info
		}
		return c.printJSON(infos)
	}
	rows := [][]any{{"NAME", "KIND", "SIZE", "USED", "FREE", "VOLUMES", "PLACE"}}
	for _, l := range lines {
		rows = append(rows, []any{
			l.info.Name, l.info.Kind, units.FormatBytes(l.info.SizeBytes), units.FormatBytes(l.usedBytes()),
			units.FormatBytes(l.freeBytes), l.info.Volumes, printable(cmp.Or(l.info.Dir, l.info.Data)),
		})
	}
	return c.printTable(rows)
}

func (c *command) printVolume(v thin.VolumeInfo) error {
	if c.json {
		return c.printJSON(v)
	}
	return c.printFields([][2]string{
		{"Volume", v.Pool + "/" + v.Name},
		{"Id", strconv.FormatUint(v.ID, 10)},
		{"State", string(v.State)},
		{"Size", size(v.SizeBytes)},
		{"Mapped", size(v.MappedBytes)},
		{"Exclusive", size(v.ExclusiveBytes)},
		{"Reserved", size(v.ReservedBytes)},
		{"Origin", v.Origin},
		{"Blob", hex.EncodeToString(v.Blob)},
		{"Created", v.Created.Format(time.RFC3339)},
		{"Path", v.Path},
	})
}

func (c *command) printVolumes(volumes []thin.VolumeInfo) error {
	if c.json {
		return c.printJSON(volumes)
	}
	rows := [][]any{{"VOLUME", "ID", "SIZE", "MAPPED", "STATE", "CREATED"}}
	for _, v := range volumes {
		rows = append(rows, []any{
			v.Pool + "/" + v.Name, v.ID, units.FormatBytes(v.SizeBytes), units.FormatBytes(v.MappedBytes), v.State, v.Created.Format(time.RFC3339),
		})
	}
	return c.printTable(rows)
}

// printDone confirms a command that has nothing else to show.
func (c *command) printDone(object named, text string) error {
	if c.json {
		return c.printJSON(object)
	}
	_, err := fmt.Fprintln(c.out, text)
	return err
}

func (c *command) printJSON(v any) error {
	e := json.NewEncoder(c.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (c *command) printTable(rows [][]any) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	var failed error
	for _, row := range rows {
		for i, cell := range row {
			end := "\t"
			if i == len(row)-1 {
				end = "\n"
			}
			_, err := fmt.Fprint(w, cell, end)
			failed = errors.Join(failed, err)
		}
	}
	return errors.Join(failed, w.Flush())
}

func (c *command) printFields(fields [][2]string) error {
	rows := make([][]any, len(fields))
	for i, field := range fields {
		value := printable(field[1])
		if value == "" {
			value = "-"
		}
		rows[i] = []any{field[0] + ":", value}
	}
	return c.printTable(rows)
}

// size is bytes for people, and exactly.
func size(bytes int64) string {
	return fmt.Sprintf("%s (%d bytes)", units.FormatBytes(bytes), bytes)
}
