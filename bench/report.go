package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// median is the middle one of the values; of an even number, the lower of the two.
func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}

// summary is the medians of the results of one tool.
func summary(results []result) result {
	column := func(of func(result) int64) int64 {
		values := make([]int64, len(results))
		for i, r := range results {
			values[i] = of(r)
		}
		return median(values)
	}
	return result{
		wall:        time.Duration(column(func(r result) int64 { return int64(r.wall) })),
		durable:     time.Duration(column(func(r result) int64 { return int64(r.durable) })),
		memoryBytes: column(func(r result) int64 { return r.memoryBytes }),
		extraBytes:  column(func(r result) int64 { return r.extraBytes }),
		keptBytes:   column(func(r result) int64 { return r.keptBytes }),
	}
}

// table shows the results on one image.
func table(img image, all []tool, results [][]result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Image %s: %s; %s long, %s of data, rounds: %d\n",
		img.name, img.about, mib(img.bytes), mib(img.dataBytes), len(results[0]))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "command\tdurable\tratio\tMiB/s\tcommand alone\tmemory\textra space\tleft of source\t")
	first := summary(results[0])
	for i, t := range all {
		s := summary(results[i])
		_, _ = fmt.Fprintf(w, "%s\t%.2f s\t%.2f\t%.0f\t%.2f s\t%s\t%s\t%s\t\n",
			t.name, s.durable.Seconds(), s.durable.Seconds()/first.durable.Seconds(),
			float64(img.dataBytes)/(1<<20)/s.durable.Seconds(), s.wall.Seconds(),
			mib(s.memoryBytes), mib(s.extraBytes), mib(s.keptBytes))
	}
	_ = w.Flush() // into memory, as the lines above
	return b.String()
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// describeHost says on what the numbers were measured.
func describeHost(dir string) (string, error) {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	cpu, err := lineOf("/proc/cpuinfo", "model name")
	if err != nil {
		return "", err
	}
	memory, err := lineOf("/proc/meminfo", "MemTotal")
	if err != nil {
		return "", err
	}
	fs, err := exec.Command("df", "--output=fstype,source", "--", dir).Output()
	if err != nil {
		return "", fmt.Errorf("find the file system of %s: %w", dir, err)
	}
	_, where, _ := strings.Cut(strings.TrimSpace(string(fs)), "\n")
	return fmt.Sprintf("%s\nLinux %s %s, %d CPUs (%s), %s of memory, %s\n", time.Now().UTC().Format("2006-01-02 15:04 UTC"),
		strings.TrimSpace(string(kernel)), runtime.GOARCH, runtime.NumCPU(), cpu, memory, strings.Join(strings.Fields(where), " on ")), nil
}

// lineOf is the value of the first line that begins with key, or "unknown".
func lineOf(path, key string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value), nil
		}
	}
	return "unknown", nil
}
