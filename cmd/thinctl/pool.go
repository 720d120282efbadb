package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"decant/thin"
	"decant/units"
)

func (c *command) poolCommands() *cobra.Command {
	return group("pool", "Make, open, list and remove pools",
		c.poolCreateCommand(), c.poolOpenCommand(), c.poolListCommand(), c.poolShowCommand(), c.poolCloseCommand(), c.poolDestroyCommand())
}

func (c *command) poolCreateCommand() *cobra.Command {
	var dir, size string
	cmd := &cobra.Command{
		Use: "create NAME --dir DIR --size BYTES", Short: "Make a pool in a directory and register it",
		Long: `Make a pool in a directory and register it.

The directory is made if it is missing, and must be empty. The volumes in it
take at most the given size together, such as 500MiB or 1.5T (powers of 1024).`,
		Args: cobra.ExactArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			bytes, err := parseSize(size)
			if err != nil {
				return err
			}
			if err := thin.ValidateName(args[0]); err != nil {
				return &usageError{err}
			}
			p, err := thin.CreateDirectory(r, args[0], dir, bytes)
			if err != nil {
				return err
			}
			return errors.Join(c.printPool(p), p.Close())
		}),
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the pool")
	cmd.Flags().StringVar(&size, "size", "", "most that all volumes together may take")
	require(cmd, "dir", "size")
	return cmd
}

func (c *command) poolOpenCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "open --dir DIR", Short: "Register a pool that exists; its name comes from its catalog",
		Args: cobra.NoArgs,
		RunE: c.act(func(r thin.Registry, _ []string) error {
			p, err := r.OpenDir(dir)
			if err != nil {
				return err
			}
			return errors.Join(c.printPool(p), p.Close())
		}),
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the pool")
	require(cmd, "dir")
	return cmd
}

func (c *command) poolListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the registered pools", Args: cobra.NoArgs,
		RunE: c.act(func(r thin.Registry, _ []string) error {
			pools := []poolLine{}
			failed := eachPool(r, func(p thin.Pool) error {
				line, err := readPool(p)
				if err == nil {
					pools = append(pools, line)
				}
				return err
			})
			return errors.Join(c.printPools(pools), failed)
		}),
	}
}

func (c *command) poolShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one pool", Args: cobra.ExactArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			return withPool(r, args[0], c.printPool)
		}),
	}
}

func (c *command) poolCloseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "close NAME", Short: "Forget a pool; its directory and its volumes stay as they are", Args: cobra.ExactArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			if err := thin.ValidateName(args[0]); err != nil {
				return &usageError{err}
			}
			if err := r.Forget(args[0]); err != nil {
				return err
			}
			return c.printDone(named{Name: args[0]}, "closed pool "+args[0])
		}),
	}
}

func (c *command) poolDestroyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "destroy NAME", Short: "Remove a pool that has no volumes", Args: cobra.ExactArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			if err := thin.ValidateName(args[0]); err != nil {
				return &usageError{err}
			}
			p, err := r.Open(args[0])
			if err != nil {
				return err
			}
			if err := p.Destroy(); err != nil {
				return errors.Join(err, p.Close())
			}
			return c.printDone(named{Name: args[0]}, "destroyed pool "+args[0])
		}),
	}
}

// eachPool runs f with every registered pool. It goes on after a failure, and says
// at the end what has failed.
func eachPool(r thin.Registry, f func(thin.Pool) error) error {
	names, err := r.List()
	if err != nil {
		return err
	}
	var failed error
	for _, name := range names {
		failed = errors.Join(failed, withPool(r, name, f))
	}
	if failed != nil {
		return &partialError{failed}
	}
	return nil
}

// parseSize reads a size on the command line.
func parseSize(s string) (int64, error) {
	bytes, err := units.ParseBytes(s)
	if err != nil {
		return 0, &usageError{err}
	}
	if bytes == 0 {
		return 0, &usageError{fmt.Errorf("size %q: must be more than 0", s)}
	}
	return bytes, nil
}

// require makes flags mandatory.
func require(cmd *cobra.Command, flags ...string) {
	for _, flag := range flags {
		if err := cmd.MarkFlagRequired(flag); err != nil {
			panic(err) // the flag was not defined
		}
	}
}
