// Thinctl manages thin pools without LVM: pools, and the volumes in them.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"decant/thin"
)

// Exit codes.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 4 // nothing was changed
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run carries out one command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	c := &command{out: stdout}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	called, err := root.ExecuteC()
	if err == nil {
		return exitDone
	}
	// Until a command has started, all that can be wrong is how it was called.
	var usage *usageError
	if !c.started || errors.As(err, &usage) {
		complain(stderr, err.Error()+"; see "+called.CommandPath()+" --help")
		return exitUsage
	}
	complain(stderr, err.Error())
	var partial *partialError
	if thin.Refused(err) && !errors.As(err, &partial) {
		return exitRefused
	}
	return exitFailed
}

// complain writes each line of text to stderr.
func complain(stderr io.Writer, text string) {
	for line := range strings.Lines(text) {
		// Where that fails, nobody is left to be told; the exit code says it.
		_, _ = fmt.Fprintf(stderr, "thinctl: %s\n", printable(strings.TrimSuffix(line, "\n")))
	}
}

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// partialError is a command that did some of its work and failed at the rest.
type partialError struct{ err error }

func (e *partialError) Error() string { return e.err.Error() }
func (e *partialError) Unwrap() error { return e.err }

// command is one run of the program.
type command struct {
	out      io.Writer
	stateDir string
	json     bool
	started  bool
}

func (c *command) root() *cobra.Command {
	root := group("thinctl", "Thin pools without LVM", c.poolCommands(), c.createCommand(), c.listCommand(), c.showCommand(), c.deleteCommand(),
		c.activateCommand(), c.deactivateCommand())
	root.Version = version()
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.PersistentFlags().BoolVar(&c.json, "json", false, "print one JSON object or array")
	root.PersistentFlags().StringVar(&c.stateDir, "state-dir", "", "where pools are registered (default /var/lib/decant for root, else $XDG_STATE_HOME/decant)")
	return root
}

// group is a command that does nothing without a subcommand.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{
		Use: use, Short: short,
		DisableFlagsInUseLine: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("a command is missing")
			}
			return fmt.Errorf("unknown command %q", args[0])
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // Args lets nothing through
	}
	g.AddCommand(commands...)
	return g
}

// act is the body of every command: it has the registry, and says that the command
// line was in order.
func (c *command) act(f func(r thin.Registry, args []string) error) func(*cobra.Command, []string) error {
	return func(_ *cobra.Command, args []string) error {
		c.started = true
		dir := c.stateDir
		if dir == "" {
			var err error
			if dir, err = thin.DefaultStateDir(); err != nil {
				return err
			}
		}
		dir, err := filepath.Abs(dir)
		if err != nil {
			return fmt.Errorf("find the state directory: %s: %w", dir, err)
		}
		return f(thin.NewRegistry(dir), args)
	}
}

// withPool runs f with the pool of the name, if that is one.
func withPool(r thin.Registry, name string, f func(thin.Pool) error) error {
	if err := thin.ValidateName(name); err != nil {
		return &usageError{err}
	}
	p, err := r.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f(p), p.Close())
}

// withVolume runs f with the pool of POOL/VOLUME and the name of the volume.
func withVolume(r thin.Registry, arg string, f func(p thin.Pool, volume string) error) error {
	pool, volume, err := thin.SplitVolume(arg)
	if err != nil {
		return &usageError{err}
	}
	return withPool(r, pool, func(p thin.Pool) error { return f(p, volume) })
}

// printable shows control characters instead of sending them to a terminal.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
