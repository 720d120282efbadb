package main

import (
	"bytes"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"decant/service"
	"decant/units"
)

func (p *program) explainCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain ID OFFSET",
		Short: "Tell where the bytes at one offset are, and since when",
		Long: `Tell where the bytes at one offset of the device are, by which transaction they
got there, and whether the source was freed. OFFSET is a number of bytes or a size
such as 1GiB.`,
		Args: func(_ *cobra.Command, args []string) error {
			return checkNames(args, "ID", "OFFSET")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			offset, err := units.ParseBytes(args[1])
			if err != nil {
				return usageError("", "OFFSET: %v", err)
			}
			return p.explain(cmd.Context(), args[0], offset, asJSON)
		},
		ValidArgsFunction: p.completeID,
	}
	addJSONFlag(cmd, &asJSON)
	return cmd
}

func (p *program) explain(ctx context.Context, id string, offset int64, asJSON bool) error {
	m, err := p.open(ctx)
	if err != nil {
		return err
	}
	explanation, err := m.Explain(id, offset)
	if err != nil {
		return err
	}
	if asJSON {
		text, err := marshalAnswer(explanation)
		if err != nil {
			return err
		}
		return p.answer(text)
	}
	return p.answer(explanationText(explanation))
}

func explanationText(e service.Explanation) []byte {
	var b bytes.Buffer
	table := newFieldTable(&b)
	table.field("Migration", escapeControls(e.ID))
	table.field("Offset", exactBytes(e.Offset))
	table.field("Region", fmt.Sprintf("%d, %s from offset %d", e.Region, units.FormatBytes(e.RegionBytes), e.RegionStart))
	table.field("State", escapeControls(e.State))
	table.field("Bytes are on", printableName(e.Owner))
	if e.Transaction != 0 {
		recorded := fmt.Sprintf("by transaction %d", e.Transaction)
		if e.Committed != nil {
			recorded += ", committed " + formatTime(*e.Committed)
		}
		table.field("Recorded", recorded)
	}
	if e.DiscardedAt != nil {
		table.field("Discarded", formatTime(*e.DiscardedAt))
	}
	switch e.Checksum {
	case "":
	case "zeros":
		table.field("Content", "zeros only")
	case "written":
		table.field("Content", "written to since it was moved, no checksum")
	default:
		table.field("Checksum", "XXH3 "+escapeControls(e.Checksum))
	}
	if e.Error != "" {
		table.field("Error", escapeControls(e.Error))
	}
	table.flush()
	return b.Bytes()
}
