package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"decant/service"
)

// oneID wants the ID of a migration.
func oneID(_ *cobra.Command, args []string) error {
	return checkNames(args, "ID")
}

// checkNames wants one argument for each name, none of them empty.
func checkNames(args []string, names ...string) error {
	hint := ""
	if len(names) > 0 && names[0] == "ID" {
		hint = "the IDs are listed by: migrate list"
	}
	if len(args) > len(names) {
		return usageError("", "unexpected argument %s", printableName(args[len(names)]))
	}
	for i, name := range names {
		if i >= len(args) {
			return usageError(hint, "%s is missing", name)
		}
		if args[i] == "" {
			return usageError(hint, "%s cannot be empty", name)
		}
	}
	return nil
}

// completeID offers the migrations that there are. Completion has no way to tell
// an error, so it offers nothing then.
func (p *program) completeID(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	m, err := p.open(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, err := m.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ids := make([]cobra.Completion, 0, len(list))
	for _, s := range list {
		ids = append(ids, cobra.CompletionWithDesc(s.ID, printableName(s.Source)+" "+p.arrow()+" "+printableName(s.Destination)))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func (p *program) resumeCommand() *cobra.Command {
	var form progressForm
	cmd := &cobra.Command{
		Use:   "resume ID",
		Short: "Go on with a migration that was stopped, with the options it began with",
		Args:  oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			p.serveSafely() // it may have to serve a live device
			return p.steer(cmd.Context(), form, args[0], steering.Resume)
		},
		ValidArgsFunction: p.completeID,
	}
	addProgressFlag(cmd, &form)
	return cmd
}

func (p *program) reverseCommand() *cobra.Command {
	var form progressForm
	cmd := &cobra.Command{
		Use:   "reverse ID",
		Short: "Bring the data of a migration back to its source",
		Long: `Bring the data of a migration back to its source, whether it was stopped or has
ended. What was freed on the source is copied back and freed on the destination,
under the same safety rules. A reversal can be stopped and resumed like a migration.`,
		Args: oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.steer(cmd.Context(), form, args[0], steering.Reverse)
		},
		ValidArgsFunction: p.completeID,
	}
	addProgressFlag(cmd, &form)
	return cmd
}

// steer runs one migration that there is, by whoever may.
func (p *program) steer(ctx context.Context, form progressForm, id string, do func(steering, context.Context, string, service.Sink) error) error {
	m, err := p.open(ctx)
	if err != nil {
		return err
	}
	return p.runMigration(ctx, form, m, func(ctx context.Context, sink service.Sink) error {
		return do(m, ctx, id, sink)
	})
}

func (p *program) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pause ID",
		Short: "Stop the process that works on a migration, after it has committed",
		Args:  oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			waits := ""
			err := p.control(cmd.Context(), args[0], func(m steering, ctx context.Context, id string) error {
				err := m.Pause(ctx, id)
				if err == nil {
					waits = whatWaits(m, id)
				}
				return err
			}, "paused %[1]s; go on with: migrate resume %[1]s")
			if err == nil && waits != "" {
				_, _ = fmt.Fprintln(p.stderr, waits) // as the line before
			}
			return err
		},
		ValidArgsFunction: p.completeID,
	}
}

// whatWaits says what becomes of the users of a live device that nobody serves now. It is
// for people who have done no harm if it is not known.
func whatWaits(m steering, id string) string {
	d, err := m.Show(id, 0)
	if err != nil || d.Options.Live == "" || d.Options.Engine == service.EngineKernel || d.Phase == "done" {
		return ""
	}
	return fmt.Sprintf("whatever uses /dev/mapper/%s waits for that, at most %v", d.Options.Live, d.Options.LiveTimeout)
}

func (p *program) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID",
		Short: "Give up a migration of which nothing has been freed on the source yet",
		Args:  oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.control(cmd.Context(), args[0], steering.Cancel, "cancelled %[1]s")
		},
		ValidArgsFunction: p.completeID,
	}
}

// control does something short to one migration and says so; success is a format
// for the ID.
func (p *program) control(ctx context.Context, id string, do func(steering, context.Context, string) error, success string) error {
	m, err := p.open(ctx)
	if err != nil {
		return err
	}
	ctx, release := p.interruptible(ctx, p.announceStop)
	err = do(m, ctx, id)
	release()
	if err != nil {
		return err
	}
	// It is done, whether anybody reads this or not.
	_, _ = fmt.Fprintf(p.stderr, success+"\n", printableName(id))
	return nil
}

// announceStop is said at the first signal by commands that have nothing to commit.
func (p *program) announceStop() {
	_, _ = fmt.Fprintln(p.stderr, "stopping (press again to stop at once)") // nobody may be there to read it
}
