// Command hydrated is the service that runs migrations in the background. This package
// reads its configuration, and ties the manager of package service to the API, to
// systemd and to signals.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"decant/service"
)

const long = `hydrated runs migrations in the background: those that clients ask for, and every
unfinished one whose journal it finds when it starts. It answers on a Unix socket, to
migrate(1) and to whatever speaks HTTP.

It needs no configuration. What can be set stands in /etc/decant/hydrated.conf, as
lines of the form key = value, where the keys are the flags without their dashes.

SIGTERM has all migrations commit, and ends the service; they go on when it is started
again. A second SIGTERM ends it at once, which loses nothing either. SIGHUP reads the
limits and the level of the log from the configuration again.`

func main() {
	service.BecomeGuardian()
	os.Exit(run(os.Args[1:]))
}

// run executes one command line and returns the exit code.
func run(args []string) int {
	cmd := command(args)
	cmd.SetArgs(args)
	err := cmd.Execute()
	if err == nil {
		return int(service.Success)
	}
	// Nothing can be done about a standard error that takes no text.
	_, _ = fmt.Fprintf(os.Stderr, "hydrated: %s\n", err)
	if hint := service.HintOf(err); hint != "" {
		_, _ = fmt.Fprintf(os.Stderr, "hint: %s\n", hint)
	}
	return int(service.OutcomeOf(err))
}

// invocation is a command line.
type invocation struct {
	config
	configPath string
	onlyCheck  bool
}

func addFlags(flags *pflag.FlagSet, i *invocation) {
	*i = invocation{config: defaults(), configPath: defaultConfig}
	flags.SortFlags = false
	flags.StringVar(&i.configPath, "config", i.configPath, "`FILE` with the configuration")
	flags.BoolVar(&i.onlyCheck, "check", false, "only read the configuration and say what is wrong with it")
	addSettings(flags, &i.config)
}

// complete adds the file of the configuration to what the command line has said.
func (i *invocation) complete(flags *pflag.FlagSet) error {
	if !filepath.IsAbs(i.configPath) { // it is read again from another directory
		return usageError("config is not an absolute path: %.200q", i.configPath)
	}
	if err := loadConfig(flags, i.configPath); err != nil {
		return err
	}
	return i.check()
}

func command(args []string) *cobra.Command {
	var i invocation
	cmd := &cobra.Command{
		Use:           "hydrated [flags]",
		Short:         "Run migrations in the background",
		Long:          long,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("unexpected argument %.100q", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := i.complete(cmd.Flags()); err != nil || i.onlyCheck {
				return err
			}
			return serve(i.config, func() (config, error) { return again(args) })
		},
	}
	addFlags(cmd.Flags(), &i)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError("%s", err) })
	return cmd
}

// again reads the configuration anew, under the same command line.
func again(args []string) (config, error) {
	var i invocation
	flags := pflag.NewFlagSet("hydrated", pflag.ContinueOnError)
	addFlags(flags, &i)
	if err := flags.Parse(args); err != nil {
		return i.config, usageError("%s", err)
	}
	err := i.complete(flags)
	return i.config, err
}
