package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"decant/thin"
	"decant/units"
)

func (c *command) poolCommands() *cobra.Command {
	return group("pool", "Make, open, list and remove pools",
		c.poolCreateCommand(), c.poolOpenCommand(), c.poolListCommand(), c.poolShowCommand(), c.poolGrowCommand(), c.poolCloseCommand(), c.poolDestroyCommand())
}

// Flags of the kinds of pools. Those of one kind exclude the others.
const (
	dirFlag, sizeFlag          = "dir", "size"
	dataFlag, metadataFlag     = "data", "metadata"
	blockSizeFlag, lowMarkFlag = "block-size", "low-water"
)

// kinds makes a command take flags for a directory pool or for a dm-thin pool.
func kinds(cmd *cobra.Command, directory, mapper, mapperOnly []string) {
	cmd.MarkFlagsRequiredTogether(mapper...)
	cmd.MarkFlagsOneRequired(directory[0], mapper[0])
	for _, d := range directory {
		for _, m := range append(slices.Clone(mapper), mapperOnly...) {
			cmd.MarkFlagsMutuallyExclusive(d, m)
		}
	}
}

func (c *command) poolCreateCommand() *cobra.Command {
	var dir, size, blockSize string
	var o thin.MapperOptions
	cmd := &cobra.Command{
		Use: "create NAME {--data DEV --metadata DEV | --dir DIR --size BYTES}", Short: "Make a pool and register it",
		Long: `Make a pool and register it.

With --data and --metadata it is a pool of the kernel's (dm-thin) on two block
devices, which must hold nothing. The metadata takes about 50 bytes for each block
of the pool, and 2MiB at least. A full pool refuses writes; it never lets them wait.

With --dir and --size it is a directory, which is made if it is missing, and must be
empty. The volumes in it take at most the given size together.

Sizes are such as 500MiB or 1.5T (powers of 1024).`,
		Args: cobra.ExactArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			if err := thin.ValidateName(args[0]); err != nil {
				return &usageError{err}
			}
			if o.Data != "" {
				return c.createMapper(r, args[0], o, blockSize)
			}
			bytes, err := parseSize(size)
			if err != nil {
				return err
			}
			p, err := thin.CreateDirectory(r, args[0], dir, bytes)
			if err != nil {
				return err
			}
			return errors.Join(c.printPool(p), p.Close())
		}),
	}
	cmd.Flags().StringVar(&dir, dirFlag, "", "directory of a directory pool")
	cmd.Flags().StringVar(&size, sizeFlag, "", "most that all volumes of a directory pool together may take")
	cmd.Flags().StringVar(&o.Data, dataFlag, "", "block device for the data of a dm-thin pool")
	cmd.Flags().StringVar(&o.Metadata, metadataFlag, "", "block device for its metadata")
	cmd.Flags().StringVar(&blockSize, blockSizeFlag, "64KiB", "unit in which it gives out space, a multiple of 64KiB")
	cmd.Flags().Int64Var(&o.LowWaterBlocks, lowMarkFlag, 0, "number of free blocks at which the kernel raises an event (default a sixteenth of all)")
	cmd.MarkFlagsRequiredTogether(dirFlag, sizeFlag)
	kinds(cmd, []string{dirFlag, sizeFlag}, []string{dataFlag, metadataFlag}, []string{blockSizeFlag, lowMarkFlag})
	return cmd
}

func (c *command) createMapper(r thin.Registry, name string, o thin.MapperOptions, blockSize string) error {
	var err error
	if o.BlockBytes, err = parseSize(blockSize); err != nil {
		return err
	}
	if o.BlockBytes%thin.MinPoolBlockBytes != 0 || o.BlockBytes > thin.MaxPoolBlockBytes {
		return &usageError{fmt.Errorf("block size %q: must be a multiple of 64KiB, and at most 1GiB", blockSize)}
	}
	if o.LowWaterBlocks < 0 {
		return &usageError{fmt.Errorf("low water mark %d: must not be negative", o.LowWaterBlocks)}
	}
	p, err := thin.CreateMapper(r, name, o)
	if err != nil {
		return err
	}
	return errors.Join(c.printPool(p), p.Close())
}

func (c *command) poolOpenCommand() *cobra.Command {
	var dir, data, metadata string
	cmd := &cobra.Command{
		Use: "open {--data DEV --metadata DEV | --dir DIR}", Short: "Register a pool that exists; its name comes from its catalog",
		Args: cobra.NoArgs,
		RunE: c.act(func(r thin.Registry, _ []string) error {
			var p thin.Pool
			var err error
			if data != "" {
				p, err = r.OpenMapper(data, metadata)
			} else {
				p, err = r.OpenDir(dir)
			}
			if err != nil {
				return err
			}
			return errors.Join(c.printPool(p), p.Close())
		}),
	}
	cmd.Flags().StringVar(&dir, dirFlag, "", "directory of a directory pool")
	cmd.Flags().StringVar(&data, dataFlag, "", "data device of a dm-thin pool, which is made active")
	cmd.Flags().StringVar(&metadata, metadataFlag, "", "its metadata device")
	kinds(cmd, []string{dirFlag}, []string{dataFlag, metadataFlag}, nil)
	return cmd
}

func (c *command) poolGrowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "grow NAME", Short: "Make a dm-thin pool as large as its devices are now",
		Long: `Make a dm-thin pool as large as its devices are now.

Enlarge the data device first, or the metadata device, or both. A pool that was full
goes on from there.`,
		Args: cobra.ExactArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			return withPool(r, args[0], func(p thin.Pool) error {
				growing, ok := p.(interface{ Grow() error })
				if !ok {
					return notForThisKind("grow pool", args[0], "the size of a directory pool does not change")
				}
				if err := growing.Grow(); err != nil {
					return err
				}
				return c.printPool(p)
			})
		}),
	}
}

// notForThisKind refuses what only other kinds of pools can do.
func notForThisKind(op, object, state string) error {
	return &thin.Error{Op: op, Object: object, State: state, Err: thin.ErrInvalid}
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
		Use: "close NAME", Short: "Forget a pool, and deactivate it; its volumes stay as they are", Args: cobra.ExactArgs(1),
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
