package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"decant/thin"
)

func (c *command) createCommand() *cobra.Command {
	var size, blobFile string
	cmd := &cobra.Command{
		Use: "create POOL/VOL --size BYTES", Short: "Make a volume",
		Long: `Make a volume that reads as zeros and takes no space yet.

The size is such as 500MiB or 1.5T (powers of 1024). A blob of up to 256 bytes
is kept with the volume and means something to you only.`,
		Args: cobra.ExactArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			bytes, err := parseSize(size)
			if err != nil {
				return err
			}
			blob, err := readBlob(blobFile)
			if err != nil {
				return err
			}
			return withVolume(r, args[0], func(p thin.Pool, volume string) error {
				info, err := p.CreateVolume(volume, bytes, blob)
				if err != nil {
					return err
				}
				return c.printVolume(info)
			})
		}),
	}
	cmd.Flags().StringVar(&size, "size", "", "size of the volume")
	cmd.Flags().StringVar(&blobFile, "blob-file", "", "file whose bytes are kept with the volume, at most 256")
	require(cmd, "size")
	return cmd
}

func (c *command) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list [POOL]", Short: "List the volumes of one pool or of all", Args: cobra.MaximumNArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			volumes := []thin.VolumeInfo{}
			collect := func(p thin.Pool) error {
				some, err := p.Volumes()
				volumes = append(volumes, some...)
				return err
			}
			if len(args) == 1 {
				if err := withPool(r, args[0], collect); err != nil {
					return err
				}
				return c.printVolumes(volumes)
			}
			failed := eachPool(r, collect)
			return errors.Join(c.printVolumes(volumes), failed)
		}),
	}
}

func (c *command) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show POOL/VOL", Short: "Show one volume", Args: cobra.ExactArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			return withVolume(r, args[0], func(p thin.Pool, volume string) error {
				info, err := p.Volume(volume)
				if err != nil {
					return err
				}
				return c.printVolume(info)
			})
		}),
	}
}

func (c *command) deleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete POOL/VOL", Short: "Delete a volume that nobody uses", Args: cobra.ExactArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			return withVolume(r, args[0], func(p thin.Pool, volume string) error {
				if err := p.DeleteVolume(volume); err != nil {
					return err
				}
				return c.printDone(named{Pool: p.Name(), Name: volume}, "deleted volume "+args[0])
			})
		}),
	}
}

// activatable is a pool whose volumes are devices only while they are active.
type activatable interface {
	Activate(name string) (thin.VolumeInfo, error)
	Deactivate(name string) error
}

func (c *command) activateCommand() *cobra.Command {
	return c.activationCommand("activate", "Make the device of a volume, at /dev/mapper/POOL-VOL", func(p activatable, volume string) error {
		info, err := p.Activate(volume)
		if err != nil {
			return err
		}
		return c.printVolume(info)
	})
}

func (c *command) deactivateCommand() *cobra.Command {
	return c.activationCommand("deactivate", "Remove the device of a volume, whose data stays", func(p activatable, volume string) error {
		if err := p.Deactivate(volume); err != nil {
			return err
		}
		name := p.(thin.Pool).Name()
		return c.printDone(named{Pool: name, Name: volume}, "deactivated volume "+name+"/"+volume)
	})
}

func (c *command) activationCommand(name, short string, f func(p activatable, volume string) error) *cobra.Command {
	return &cobra.Command{
		Use: name + " POOL/VOL", Short: short, Args: cobra.ExactArgs(1),
		RunE: c.act(func(r thin.Registry, args []string) error {
			return withVolume(r, args[0], func(p thin.Pool, volume string) error {
				pool, ok := p.(activatable)
				if !ok {
					return notForThisKind(name+" volume", args[0], "volumes of a directory pool are files, which need not be activated")
				}
				return f(pool, volume)
			})
		}),
	}
}

// readBlob reads the file at path, and one byte more than can be kept at most, so
// that a larger file is refused and not read to its end.
func readBlob(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	blob, err := io.ReadAll(io.LimitReader(file, thin.MaxBlobBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	return blob, nil
}
