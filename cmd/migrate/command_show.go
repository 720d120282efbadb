package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"decant/service"
	"decant/units"
)

const (
	jsonMapCells     = 1024 // of the map in show --json
	shownRanges      = 20   // most bad ranges in text; JSON has all
	shownTransaction = 10   // most transactions in text
)

func (p *program) showCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one migration with its counters, its region map and its last transactions",
		Args:  oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.show(cmd.Context(), args[0], asJSON)
		},
		ValidArgsFunction: p.completeID,
	}
	addJSONFlag(cmd, &asJSON)
	return cmd
}

func (p *program) show(ctx context.Context, id string, asJSON bool) error {
	m, err := p.open(ctx)
	if err != nil {
		return err
	}
	cells := p.mapLayout().cells()
	if asJSON {
		cells = jsonMapCells
	}
	if r, isRemote := m.(*remote); isRemote {
		return p.showRemote(ctx, r, id, cells, asJSON)
	}
	detail, err := m.Show(id, cells)
	if err != nil {
		return err
	}
	return p.answerDetail(detail, detail, describePhase(detail.Summary), asJSON)
}

// showRemote shows what the service knows besides the journal, too.
func (p *program) showRemote(ctx context.Context, r *remote, id string, cells int, asJSON bool) error {
	migration, err := r.client.Get(ctx, id, cells)
	if err != nil {
		return err
	}
	phase := describeStatus(migration.Status)
	if migration.Reason != "" {
		phase += ": " + escapeControls(migration.Reason)
	}
	return p.answerDetail(migration, detailOf(migration), phase, asJSON)
}

// answerDetail answers with the JSON form of whole, or with detail and its phase as text.
func (p *program) answerDetail(whole any, detail service.Detail, phase string, asJSON bool) error {
	if asJSON {
		text, err := marshalAnswer(whole)
		if err != nil {
			return err
		}
		return p.answer(text)
	}
	var b bytes.Buffer
	writeCounters(&b, detail, phase)
	if len(detail.Map) > 0 {
		fmt.Fprintln(&b)
		p.mapLayout().draw(&b, detail.Map, detail.BytesTotal)
	}
	if len(detail.Bad) > 0 {
		fmt.Fprintf(&b, "\nUnreadable:\n")
		writeRanges(&b, detail.Bad)
	}
	writeTransactions(&b, detail.Transactions)
	return p.answer(b.Bytes())
}

func writeCounters(to io.Writer, d service.Detail, phase string) {
	table := newFieldTable(to)
	table.field("ID", escapeControls(d.ID))
	table.field("Source", printableName(d.Source))
	table.field("Destination", printableName(d.Destination))
	table.field("Phase", phase)
	if d.PID != 0 {
		table.field("Process", fmt.Sprint(d.PID))
	}
	if d.Problem != "" {
		table.field("Problem", escapeControls(d.Problem))
	}
	table.field("Created", formatTime(d.Created))
	table.field("Size", exactBytes(d.BytesTotal))
	table.field("Regions", fmt.Sprintf("%d of %s", d.Regions, units.FormatBytes(d.RegionBytes)))
	table.field("Hydrated", regionShare(d.Hydrated, d.Regions))
	table.field("Discarded", regionShare(d.Discarded, d.Regions))
	table.field("Copied", exactBytes(d.BytesCopied))
	table.field("Transaction", fmt.Sprint(d.Transaction))
	table.field("Extra space", "at most "+exactBytes(d.PeakExtraBytes))
	table.field("Options", describeOptions(d.Options))
	table.field("Journal", printableName(d.Journal))
	table.flush()
}

func regionShare(part, whole uint64) string {
	return fmt.Sprintf("%d%% (%d regions)", percent(float64(part), float64(whole)), part)
}

func writeTransactions(to *bytes.Buffer, transactions []service.Transaction) {
	if len(transactions) == 0 {
		return
	}
	fmt.Fprintf(to, "\nLast transactions:\n")
	t := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NUMBER\tDIRECTION\tCOMMITTED\tREGIONS\tCOPIED\tDISCARDED")
	for _, x := range transactions[:min(len(transactions), shownTransaction)] {
		discarded := "-"
		if x.DiscardedAt != nil {
			discarded = formatTime(*x.DiscardedAt)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%d\t%s\t%s\n", x.Number, escapeControls(x.Direction), formatTime(x.Committed), x.Regions, units.FormatBytes(x.CopiedBytes), discarded)
	}
	_ = t.Flush() // to memory
}

// writeRanges lists byte ranges with what is wrong in them.
func writeRanges(to *bytes.Buffer, ranges []service.BadBytes) {
	for _, r := range ranges[:min(len(ranges), shownRanges)] {
		fmt.Fprintf(to, "  offset %d, %s: %s\n", r.Offset, exactBytes(r.Bytes), escapeControls(r.Error))
	}
	if more := len(ranges) - shownRanges; more > 0 {
		fmt.Fprintf(to, "  and %d more ranges; --json lists all\n", more)
	}
}

// fieldTable writes names and values in two columns.
type fieldTable struct{ columns *tabwriter.Writer }

func newFieldTable(to io.Writer) fieldTable {
	return fieldTable{tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)}
}

func (t fieldTable) field(name, value string) { fmt.Fprintf(t.columns, "%s\t%s\n", name, value) }

// flush writes the table to memory, which does not fail.
func (t fieldTable) flush() { _ = t.columns.Flush() }
