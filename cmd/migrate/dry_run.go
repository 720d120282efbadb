package main

import (
	"bytes"
	"context"
	"fmt"

	"decant/service"
	"decant/units"
)

// dryRun answers with the plan of a migration. A plan that preflight refuses is
// shown too, as far as it goes, since it says why.
func (p *program) dryRun(ctx context.Context, request service.Request, asJSON bool) error {
	m, err := p.openService(p.stateDir)
	if err != nil {
		return err
	}
	ctx, release := p.interruptible(ctx, p.announceStop)
	plan, refusal := m.Plan(ctx, request)
	release()
	if plan.Source == "" {
		return refusal
	}
	text := p.planText(plan)
	if asJSON {
		if text, err = marshalAnswer(plan); err != nil {
			return err
		}
	}
	if err := p.answer(text); err != nil && refusal == nil {
		return err
	}
	return refusal
}

func (p *program) planText(plan service.Plan) []byte {
	var b bytes.Buffer
	table := newFieldTable(&b)
	table.field("Source", printableName(plan.Source))
	table.field("Destination", printableName(plan.Destination))
	if plan.Resume {
		table.field("Migration", "would resume "+escapeControls(plan.ID))
	} else {
		table.field("Migration", "would start a new one")
	}
	table.field("Size", fmt.Sprintf("%s, in regions of %s", exactBytes(plan.BytesTotal), units.FormatBytes(plan.RegionBytes)))
	writeProof(table, plan.Space)
	table.flush()
	for _, warning := range plan.Warnings {
		fmt.Fprintf(&b, "Warning: %s\n", escapeControls(warning))
	}
	fmt.Fprintf(&b, "Verdict: %s\n", escapeControls(plan.Space.Verdict))
	fmt.Fprintln(&b, "Nothing was changed.")
	return b.Bytes()
}

func writeProof(table fieldTable, s service.SpaceProof) {
	table.field("To copy", exactBytes(s.DataBytes))
	if !s.Bounded {
		table.field("Extra space", "none; the destination is a block device, which has its space")
		return
	}
	table.field("Extra space", fmt.Sprintf("at most %s, of which %s for metadata and rounding", exactBytes(s.NeededExtraBytes), units.FormatBytes(s.SlackBytes)))
	table.field("Available", fmt.Sprintf("%s, besides a reserve of %s that is never touched", exactBytes(s.AvailableBytes), units.FormatBytes(s.ReserveBytes)))
	if s.SameSpace {
		table.field("Freed space", "goes to the destination: both ends take theirs from the same place")
	} else {
		table.field("Freed space", "does not help the destination: the two ends take theirs from different places")
	}
	if len(s.Stores) > 1 || len(s.Stores) == 1 && s.Stores[0].BlockBytes != 0 {
		for _, store := range s.Stores {
			table.field("Taken from", storeText(store))
		}
	}
	if s.LimitedTransactions {
		table.field("Transactions", "would be smaller than --commit-bytes, to fit into the space there is")
	}
}

// storeText is one of the stores that the destination's space comes from.
func storeText(s service.StoreProof) string {
	text := fmt.Sprintf("%s: at most %s of %s, beside a reserve of %s", printableName(s.Name),
		units.FormatBytes(s.NeededBytes), units.FormatBytes(max(0, s.AvailableBytes)), units.FormatBytes(s.ReserveBytes))
	if s.BlockBytes != 0 {
		text += fmt.Sprintf("; allocated in blocks of %s", units.FormatBytes(s.BlockBytes))
	}
	switch {
	case s.FreedReturns:
		text += "; freed space comes back to it"
	case s.FreedReturnsNot != "":
		text += "; freed space does not come back to it, " + escapeControls(s.FreedReturnsNot)
	}
	return text
}
