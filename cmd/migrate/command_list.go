package main

import (
	"bytes"
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"decant/service"
	"decant/units"
)

func (p *program) listCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the migrations whose journals there are",
		Args: func(_ *cobra.Command, args []string) error {
			return checkNames(args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.list(cmd.Context(), asJSON)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	addJSONFlag(cmd, &asJSON)
	return cmd
}

func (p *program) list(ctx context.Context, asJSON bool) error {
	m, err := p.open(ctx)
	if err != nil {
		return err
	}
	if r, isRemote := m.(*remote); isRemote {
		return p.listRemote(ctx, r, asJSON)
	}
	list, err := m.List()
	if err != nil {
		return err
	}
	if list == nil {
		list = []service.Summary{} // an array, not null
	}
	rows := make([]listed, 0, len(list))
	for _, s := range list {
		rows = append(rows, listed{s, describePhase(s)})
	}
	return p.answerList(list, rows, asJSON)
}

// listRemote is the list as the service has it, which knows what waits, and why.
func (p *program) listRemote(ctx context.Context, r *remote, asJSON bool) error {
	list, err := r.client.List(ctx)
	if err != nil {
		return err
	}
	rows := make([]listed, 0, len(list))
	for _, s := range list {
		rows = append(rows, listed{s.Summary, describeStatus(s)})
	}
	return p.answerList(list, rows, asJSON)
}

// listed is one line of the list.
type listed struct {
	service.Summary
	phase string
}

func (p *program) answerList(list any, rows []listed, asJSON bool) error {
	if asJSON {
		text, err := marshalAnswer(list)
		if err != nil {
			return err
		}
		return p.answer(text)
	}
	if len(rows) == 0 {
		_, _ = fmt.Fprintln(p.stderr, "there are no migrations") // an answer to nobody is none
		return nil
	}
	return p.answer(p.listTable(rows))
}

func (p *program) listTable(list []listed) []byte {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "ID\tPHASE\tHYDRATED\tSIZE\tCOPIED\tSOURCE %s DESTINATION\n", p.arrow())
	for _, s := range list {
		hydrated, size, copied := "-", "-", "-"
		if s.Problem == "" {
			hydrated = fmt.Sprintf("%d%%", percent(float64(s.Hydrated), float64(s.Regions)))
			size, copied = units.FormatBytes(s.BytesTotal), units.FormatBytes(s.BytesCopied)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", escapeControls(s.ID), s.phase, hydrated, size, copied, p.describeEnds(s.Summary))
	}
	_ = t.Flush() // to memory
	for _, s := range list {
		if s.Problem != "" {
			fmt.Fprintf(&b, "%s: %s\n", escapeControls(s.ID), escapeControls(s.Problem))
		}
	}
	return b.Bytes()
}

func (p *program) describeEnds(s service.Summary) string {
	if s.Source == "" && s.Destination == "" {
		return "-"
	}
	return printableName(s.Source) + " " + p.arrow() + " " + printableName(s.Destination)
}

// describePhase says how far a migration has come, which way it goes, and whether
// a process works on it.
func describePhase(s service.Summary) string {
	text := escapeControls(s.Phase)
	if s.Problem != "" {
		text = "unusable"
	} else if s.Phase == "running" {
		text = escapeControls(s.Direction)
		if !s.Active {
			return text + ", stopped"
		}
	}
	if s.Active {
		text += ", active"
	}
	return text
}

// describeStatus is describePhase for what the service knows.
func describeStatus(s service.Status) string {
	if s.Problem != "" {
		return "unusable"
	}
	if s.Phase != "running" {
		if s.State == service.StateQueued || s.State == service.StateRunning {
			return escapeControls(s.Phase) + ", " + string(s.State) // it is verified, or to be brought back
		}
		return escapeControls(s.Phase)
	}
	text := escapeControls(s.Direction) + ", "
	switch s.State {
	case service.StateQueued:
		return text + fmt.Sprintf("queued at place %d", s.Position)
	case service.StateExternal:
		return text + "run by another process"
	default:
		return text + escapeControls(string(s.State))
	}
}
