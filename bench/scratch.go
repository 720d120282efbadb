package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// scratchBytes is the size of a file system made for the images: three copies of
// the largest and what the file system itself needs. It is sparse.
const scratchBytes = 8 << 30

// makeScratch makes a file system of the given type in a file in dir, attached by a
// loop device past the page cache, and mounted as mount does by itself. So the
// results do not depend on the options that the host's own file systems are mounted
// with: with "discard", freeing a file costs time on the disk during the run, and
// only migrate frees any.
func makeScratch(ctx context.Context, fsType, dir string) (mountPoint string, remove func() error, err error) {
	file, mountPoint := filepath.Join(dir, "file-system"), filepath.Join(dir, "mounted")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, scratchBytes), os.Mkdir(mountPoint, 0o700)); err != nil {
		return "", nil, err
	}
	if _, err := output(ctx, "mkfs."+fsType, "-q", file); err != nil {
		return "", nil, err
	}
	loop, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", file)
	if err != nil {
		return "", nil, err
	}
	// Whatever stopped the bench, this must not be left behind.
	detach := func() error { _, err := output(context.WithoutCancel(ctx), "losetup", "--detach", loop); return err }
	if _, err := output(ctx, "mount", loop, mountPoint); err != nil {
		return "", nil, errors.Join(err, detach())
	}
	return mountPoint, func() error {
		_, err := output(context.WithoutCancel(ctx), "umount", mountPoint)
		return errors.Join(err, detach())
	}, nil
}

// output runs a command and returns what it printed, without the line's end.
func output(ctx context.Context, program string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, text)
	}
	return text, nil
}
