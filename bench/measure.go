package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// gnuTime runs a command and tells its largest resident set. This process cannot
// ask for that itself: the kernel counts the memory of the process that starts a
// program as the program's own, and Go's is larger than that of cp.
const gnuTime = "/usr/bin/time"

// bench is a series of runs in one scratch directory.
type bench struct {
	dir    string
	tools  []tool
	rounds int
}

// result is one run of one tool.
type result struct {
	wall        time.Duration // of the command
	durable     time.Duration // until the destination had been synced
	memoryBytes int64
	extraBytes  int64
	keptBytes   int64 // what the source takes afterwards
}

// measure runs every tool in every round on an image; the results are by tool.
func (b *bench) measure(ctx context.Context, img image) ([][]result, error) {
	results := make([][]result, len(b.tools))
	for round := range b.rounds {
		for i := range b.tools {
			nr := (i + round) % len(b.tools)
			r, err := b.once(ctx, img, b.tools[nr])
			if err != nil {
				return nil, fmt.Errorf("%s on %s: %w", b.tools[nr].name, img.name, err)
			}
			results[nr] = append(results[nr], r)
		}
	}
	return results, nil
}

// once is one run from a fresh source to a checked destination.
func (b *bench) once(ctx context.Context, img image, t tool) (result, error) {
	run := filepath.Join(b.dir, "run")
	if err := os.RemoveAll(run); err != nil {
		return result{}, err
	}
	if err := os.Mkdir(run, 0o700); err != nil {
		return result{}, err
	}
	source, destination := filepath.Join(run, "source"), filepath.Join(run, "destination")
	if err := prepare(ctx, img.path, source); err != nil {
		return result{}, err
	}
	args := t.with(map[string]string{
		sourceWord: source, destinationWord: destination,
		mapWord: filepath.Join(run, "map"), stateWord: filepath.Join(run, "state"),
	})
	r, events, err := timed(ctx, args, destination)
	if err != nil {
		return r, err
	}
	if r.keptBytes, err = allocatedBytes(source); err != nil {
		return r, err
	}
	if t.migrate {
		r.extraBytes, err = peakExtraBytes(events)
	} else {
		r.extraBytes, err = allocatedBytes(destination)
	}
	if err != nil {
		return r, err
	}
	return r, equalFiles(ctx, img.path, destination)
}

// prepare makes the source and leaves nothing of it in memory.
func prepare(ctx context.Context, original, source string) error {
	if err := copySparse(ctx, original, source); err != nil {
		return err
	}
	if err := syncPaths(source, filepath.Dir(source)); err != nil {
		return err
	}
	syscall.Sync()
	return dropCaches()
}

// timed runs a command and makes the destination durable; it returns the command's
// standard output as well.
func timed(ctx context.Context, args []string, destination string) (result, []byte, error) {
	memory := destination + ".memory"
	cmd := exec.CommandContext(ctx, gnuTime, append([]string{"--format=%M", "--output=" + memory, "--"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		return result{}, nil, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	r := result{wall: time.Since(begin)}
	if err := syncPaths(destination, filepath.Dir(destination)); err != nil {
		return r, nil, err
	}
	r.durable = time.Since(begin)
	text, err := os.ReadFile(memory)
	if err != nil {
		return r, nil, err
	}
	kib, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	r.memoryBytes = kib << 10
	return r, stdout.Bytes(), err
}

// peakExtraBytes finds the counter in the last event of migrate.
func peakExtraBytes(events []byte) (int64, error) {
	lines := bytes.Split(bytes.TrimSpace(events), []byte("\n"))
	var last struct {
		Event          string `json:"event"`
		PeakExtraBytes *int64 `json:"peak_extra_bytes"`
	}
	if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil {
		return 0, fmt.Errorf("last event of migrate: %w", err)
	}
	if last.Event != "done" || last.PeakExtraBytes == nil {
		return 0, fmt.Errorf("the last event of migrate is %q", lines[len(lines)-1])
	}
	return *last.PeakExtraBytes, nil
}

func syncPaths(paths ...string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// dropCaches makes the kernel forget the clean pages and everything it knows of
// file systems.
func dropCaches() error { return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200) }

// equalFiles is nil if both files hold the same bytes.
func equalFiles(ctx context.Context, a, b string) error {
	if out, err := exec.CommandContext(ctx, "cmp", "--", a, b).CombinedOutput(); err != nil {
		return fmt.Errorf("the destination is not what the source was: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
