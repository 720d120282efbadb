// Bench measures how long migrate takes beside other programs that copy images:
// the same bytes, on the same file system, with a cold cache, in turn.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// rules are printed with every result.
const rules = `Rules
  Unless -fs says otherwise, all of it lies on an ext4 file system made for it, mounted with the default options.
  Before every run: the source is copied afresh, made durable, and the caches of the kernel are dropped.
  A run is the command and then an fsync of the destination and of its directory; both times are given.
  After every run the destination is compared with the original, byte for byte, or the bench fails.
  The programs take turns within each round, and each round begins with another one. All figures are medians.
  The ratio is the durable time of a command over that of the first command: 2.00 took twice as long.
  Memory is the largest resident set of the process (wait4), the page cache not counted.
  Extra space is the most that source and destination took beyond the source at the start: measured by
  migrate itself as it runs; for the others, which leave the source whole, the size of the destination.
`

// plan is what the command line asks for.
type plan struct {
	dir    string // where images are made
	fsType string // of a file system made there for them; empty measures the one that is there
	bin    string // where migrate is
	images []string
	rounds int
	scale  int64 // images are this many times smaller
}

func main() {
	// SIGPIPE too: who stops reading the results must not leave images behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	p, err := parse(args)
	if err != nil {
		return err
	}
	if err := p.check(); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(p.dir, "decant-bench.")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }() // what is left has a name that says what it was
	dir := scratch
	if p.fsType != "" {
		mounted, remove, failed := makeScratch(ctx, p.fsType, scratch)
		if failed != nil {
			return fmt.Errorf("make a file system for the images: %w", failed)
		}
		defer func() { err = errors.Join(err, remove()) }()
		dir = mounted
	}
	bin, err := filepath.Abs(p.bin)
	if err != nil {
		return err
	}
	b := bench{dir: dir, tools: tools(filepath.Join(bin, "migrate")), rounds: p.rounds}
	host, err := describeHost(dir)
	if err != nil {
		return err
	}
	fmt.Print(host)
	for _, name := range p.images {
		img, err := makeImage(ctx, name, filepath.Join(dir, "original"), p.scale)
		if err != nil {
			return fmt.Errorf("make the image %s: %w", name, err)
		}
		results, err := b.measure(ctx, img)
		if err != nil {
			return err
		}
		fmt.Print("\n", table(img, b.tools, results))
	}
	fmt.Print("\n", commands(b.tools), "\n", rules)
	return nil
}

func parse(args []string) (plan, error) {
	p := plan{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	scratch := os.Getenv("TMPDIR")
	if scratch == "" {
		scratch = "/var/tmp"
	}
	flags.StringVar(&p.dir, "dir", scratch, "directory to work in")
	flags.StringVar(&p.fsType, "fs", "ext4", "make a file system of this type in the directory and measure there; empty: measure the directory's own")
	flags.StringVar(&p.bin, "bin", "bin", "directory of the program migrate")
	flags.IntVar(&p.rounds, "rounds", 3, "runs of each program on each image")
	flags.Int64Var(&p.scale, "scale", 1, "make images this many times smaller")
	images := flags.String("images", strings.Join(imageNames, ","), "which images")
	if err := flags.Parse(args); err != nil {
		return p, err
	}
	if flags.NArg() > 0 {
		return p, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	p.images = strings.Split(*images, ",")
	return p, nil
}

// check finds out what would end the bench after minutes.
func (p plan) check() error {
	if p.rounds < 1 || p.scale < 1 || p.scale > 64 {
		return fmt.Errorf("-rounds %d, -scale %d: rounds have to be at least 1, the scale from 1 to 64", p.rounds, p.scale)
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(p.dir, &fs); err != nil {
		return fmt.Errorf("find the free space of %s: %w", p.dir, err)
	}
	// The original, the source and the destination, and what the file system needs.
	needBytes := 4 * largestDataBytes / p.scale
	if freeBytes := int64(fs.Bavail) * fs.Bsize; freeBytes < needBytes {
		return fmt.Errorf("%s has %d MiB free, the images need %d MiB; name another directory with -dir", p.dir, freeBytes>>20, needBytes>>20)
	}
	if err := dropCaches(); err != nil {
		return fmt.Errorf("drop the caches of the kernel, which takes root: %w", err)
	}
	return nil
}
