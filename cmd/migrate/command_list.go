package main

import (
	"bytes"
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
		RunE: func(*cobra.Command, []string) error {
			return p.list(asJSON)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	addJSONFlag(cmd, &asJSON)
	return cmd
}

func (p *program) list(asJSON bool) error {
	m, err := p.openService(p.stateDir)
	if err != nil {
		return err
	}
	list, err := m.List()
	if err != nil {
		return err
	}
	if asJSON {
		if list == nil {
			list = []service.Summary{} // an array, not null
		}
		text, err := marshalAnswer(list)
		if err != nil {
			return err
		}
		return p.answer(text)
	}
	if len(list) == 0 {
		_, _ = fmt.Fprintln(p.stderr, "there are no migrations") // an answer to nobody is none
		return nil
	}
	return p.answer(p.listTable(list))
}

func (p *program) listTable(list []service.Summary) []byte {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "ID\tPHASE\tHYDRATED\tSIZE\tCOPIED\tSOURCE %s DESTINATION\n", p.arrow())
	for _, s := range list {
		hydrated, size, copied := "-", "-", "-"
		if s.Problem == "" {
			hydrated = fmt.Sprintf("%d%%", percent(float64(s.Hydrated), float64(s.Regions)))
			size, copied = units.FormatBytes(s.BytesTotal), units.FormatBytes(s.BytesCopied)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", escapeControls(s.ID), describePhase(s), hydrated, size, copied, p.describeEnds(s))
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
