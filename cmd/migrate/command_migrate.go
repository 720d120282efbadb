package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"decant/service"
)

const rootLong = `migrate copies SOURCE into DESTINATION, region by region. With --discard-src it
frees each region of the source once its copy is durable, so that an image can be
moved into a thin volume with little more space than it takes.

SOURCE is a regular file, a loop device, a block device, a volume NAME/VOLUME, or an
export of an NBD server, nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH.
DESTINATION is NAME/VOLUME, where NAME is a pool of thinctl, or else a volume group
of LVM; a block device by its absolute path; or a regular file by a path that begins
with /, ./ or ../. A missing volume is made with the size of the source, in a volume
group in its only thin pool, or the one that --thin-pool names.

With --export NBD clients can read and write the volume from the first moment on,
while it hydrates. What they have flushed is safe, whatever happens.

The same command again goes on where the last one ended. Ctrl-C commits what was
copied and ends; press it again to stop at once. Neither loses anything.

Exit codes: 0 done; 1 failed, the message says what is whole and where; 2 wrong
usage; 3 stopped before the end, nothing lost, the same command resumes; 4 refused
beforehand, nothing was changed.`

const rootExample = `  migrate --dry-run --discard-src /images/vm.raw pool/vm
  migrate --discard-src --verify /images/vm.raw pool/vm
  migrate list`

// migrateFlags are the flags of the command without a subcommand.
type migrateFlags struct {
	options  service.Options
	progress progressForm
	dryRun   bool
	json     bool
	detach   bool
}

func (p *program) rootCommand() *cobra.Command {
	f := migrateFlags{options: service.DefaultOptions()}
	root := &cobra.Command{
		Use:           "migrate [flags] SOURCE DESTINATION",
		Short:         "Move a disk image into a thin volume and empty the source on the way",
		Long:          rootLong,
		Example:       rootExample,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          checkEnds,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.migrate(cmd.Context(), f, service.Request{Source: args[0], Destination: args[1], Options: f.options})
		},
		DisableFlagsInUseLine:      true,
		SuggestionsMinimumDistance: 2,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError("", "%s", err)
	})
	flags := root.Flags()
	flags.SortFlags = false
	addOptionFlags(flags, &f.options)
	addProgressFlag(root, &f.progress)
	flags.BoolVar(&f.dryRun, "dry-run", false, "only look whether it can end well, and how much space it takes; change nothing")
	flags.BoolVar(&f.json, "json", false, "with --dry-run: write the plan as JSON")
	root.PersistentFlags().StringVar(&p.stateDir, "state-dir", "",
		"`DIR` that keeps the journals (default /var/lib/decant for root,\nelse $XDG_STATE_HOME/decant or ~/.local/state/decant)")
	flags.BoolVar(&f.detach, "detach", false, "hand the migration to hydrated and write its ID; the service has to run on this state directory")
	p.addServiceFlags(root)
	root.AddCommand(p.listCommand(), p.showCommand(), p.explainCommand(), p.verifyCommand(),
		p.reverseCommand(), p.pauseCommand(), p.resumeCommand(), p.cancelCommand(), p.watchCommand())
	return root
}

// checkEnds wants a source and a destination.
func checkEnds(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return usageError("", "SOURCE and DESTINATION are missing")
	case len(args) == 1:
		hint := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "did you mean: migrate " + strings.Join(near, ", migrate ")
		}
		return usageError(hint, "DESTINATION is missing after %s", printableName(args[0]))
	case len(args) > 2:
		return usageError("options stand before or behind the two names", "%s is one name too many; there are SOURCE and DESTINATION", printableName(args[2]))
	case args[0] == "" || args[1] == "":
		return usageError("", "SOURCE and DESTINATION cannot be empty")
	}
	return nil
}

func (p *program) migrate(ctx context.Context, f migrateFlags, request service.Request) error {
	if err := request.Options.Check(); err != nil {
		return err
	}
	if f.json && !f.dryRun {
		return usageError("for events while it runs: --progress=json", "--json needs --dry-run")
	}
	if f.detach && (f.dryRun || f.progress != progressAuto) {
		return usageError("events of a migration of the service: migrate watch ID", "--detach goes with neither --dry-run nor --progress")
	}
	if f.detach {
		return p.detach(ctx, request)
	}
	if f.dryRun {
		return p.dryRun(ctx, request, f.json)
	}
	if request.Options.Live != "" {
		p.serveSafely()
	}
	m, err := p.openService(p.stateDir)
	if err != nil {
		return err
	}
	return p.runMigration(ctx, f.progress, m, func(ctx context.Context, sink service.Sink) error {
		return m.Migrate(ctx, request, sink)
	})
}

// runMigration runs one migration in m, with progress shown and signals obeyed.
func (p *program) runMigration(ctx context.Context, form progressForm, m steering, run func(context.Context, service.Sink) error) error {
	surviveClosedPipes()
	show := p.newReport(form)
	ctx, release := p.interruptible(ctx, func() {
		show.note(stopNote(m, "stopping: committing what was copied (press again to stop at once)"))
	})
	if r, isRemote := m.(*remote); isRemote {
		r.note = show.note
	}
	err := run(ctx, show.event)
	release()
	show.end(err)
	return err
}

// stopNote is what is said when a person interrupts what m does.
func stopNote(m steering, ifHere string) string {
	if _, isRemote := m.(*remote); isRemote {
		return "leaving; the service goes on"
	}
	return ifHere
}
