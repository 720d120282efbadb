package main

import (
	"bytes"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"decant/service"
	"decant/units"
)

func (p *program) verifyCommand() *cobra.Command {
	var form progressForm
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify ID",
		Short: "Read what was copied back from the destination and compare its checksums",
		Args:  oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			if asJSON && form == progressJSON {
				return usageError("take one of them", "--json and --progress=json both write to standard output")
			}
			return p.verify(cmd.Context(), args[0], form, asJSON)
		},
		ValidArgsFunction: p.completeID,
	}
	addProgressFlag(cmd, &form)
	addJSONFlag(cmd, &asJSON)
	return cmd
}

func (p *program) verify(ctx context.Context, id string, form progressForm, asJSON bool) error {
	m, err := p.open(ctx)
	if err != nil {
		return err
	}
	surviveClosedPipes()
	show := p.newReport(form)
	ctx, release := p.interruptible(ctx, func() { show.note(stopNote(m, "stopping (press again to stop at once)")) })
	if r, isRemote := m.(*remote); isRemote {
		r.note = show.note
	}
	report, failure := m.Verify(ctx, id, show.event)
	release()
	show.close()
	if failure != nil && report.RegionsChecked == 0 {
		return failure // there is nothing to report
	}
	if err := p.printVerifyReport(report, form, asJSON); err != nil && failure == nil {
		return err
	}
	return failure
}

func (p *program) printVerifyReport(report service.VerifyReport, form progressForm, asJSON bool) error {
	if asJSON {
		text, err := marshalAnswer(report)
		if err != nil {
			return err
		}
		return p.answer(text)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s: %d regions checked, %s read, %d mismatches\n",
		escapeControls(report.ID), report.RegionsChecked, units.FormatBytes(report.BytesRead), report.MismatchRegions)
	if report.WrittenRegions > 0 {
		fmt.Fprintf(&b, "%d of them were written to since they were moved, and have no checksum to compare with\n", report.WrittenRegions)
	}
	writeRanges(&b, report.Mismatches)
	if form == progressJSON { // standard output is for events, which said the same
		_, _ = p.stderr.Write(b.Bytes()) // people may have left
		return nil
	}
	return p.answer(b.Bytes())
}
