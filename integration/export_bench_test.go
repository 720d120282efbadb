package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkExport compares the export with qemu-nbd serving a copy of the same file raw,
// for fio's random reads and writes of 4 KiB: on hydrated regions, and on such while
// others hydrate. The servers take turns in each round; the figures are medians.
func BenchmarkExport(b *testing.B) {
	const imageBytes, workBytes, rounds = 512 * mib, 64 * mib, 3
	s := newSite(b)
	source, destination, raw := s.path("image"), s.path("moved"), s.path("raw")
	makeImage(b, source, imageBytes, 1, solid)
	do(b, "cp", "--sparse=never", source, raw)
	servers := []server{{name: "decant, while it hydrates"}, {name: "decant"}}
	for _, args := range [][]string{{"--cache=none", "--aio=native"}, {"--cache=none", "--aio=threads"}, {"--cache=writeback"}} {
		servers = append(servers, serveWithQemu(b, raw, args...))
	}
	for range b.N {
		r, uri := s.startExport(source, destination, "--discard-src", "--bwlimit=12MiB/s")
		stay := s.connect(uri)
		r.await("the regions to work on", func(e event) bool { return e.BytesCommitted >= workBytes })
		servers[0].uri, servers[1].uri = uri, uri
		results := map[string]map[string]float64{}
		compare := func(servers []server) {
			for _, load := range loads {
				if results[load.name] == nil {
					results[load.name] = map[string]float64{}
				}
				for name, iops := range load.measure(b, servers, workBytes, rounds) {
					results[load.name][name] = iops
				}
			}
		}
		begun := time.Now()
		compare(servers[:1])
		if r.hasHydrated() {
			b.Fatalf("all was hydrated before the measurements during hydration had ended, after %v", time.Since(begun))
		}
		r.await("the end of hydration", func(e event) bool { return e.Event == "hydrated" })
		compare(servers[1:])
		stay.Close()
		b.Log("\n" + exportTable(servers, results))
		<-r.ended // which wait may have no patience for any more
		s.want(0, r.outcome())
		remove(b, destination, source)
		do(b, "cp", "--sparse=never", raw, source)
	}
}

// server is where fio finds an export.
type server struct{ name, uri string }

// serveWithQemu serves a file until the benchmark ends.
func serveWithQemu(b *testing.B, path string, flags ...string) server {
	b.Helper()
	dir, err := os.MkdirTemp("", "q") //nolint:usetesting // the path of a socket has to be short
	if err != nil {
		b.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	args := append([]string{"--persistent", "--format=raw", "--shared=8", "--discard=unmap", "--socket=" + socket}, flags...)
	cmd := exec.Command("qemu-nbd", append(args, path)...)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		os.RemoveAll(dir)
	})
	for begun := time.Now(); !exists(socket); time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > patience {
			b.Fatal("qemu-nbd serves nothing")
		}
	}
	return server{"qemu-nbd " + strings.Join(flags, " "), "nbd+unix:///?socket=" + socket}
}

// load is what fio does.
type load struct {
	name, rw string
	depth    int
}

var loads = []load{
	{"read, one at a time", "randread", 1},
	{"read, 16 at a time", "randread", 16},
	{"write, one at a time", "randwrite", 1},
	{"write, 16 at a time", "randwrite", 16},
}

// measure is the median of each server's requests in a second. They take turns, each
// round begins with another one.
func (l load) measure(b *testing.B, servers []server, workBytes int64, rounds int) map[string]float64 {
	all := map[string][]float64{}
	for round := range rounds {
		for i := range servers {
			s := servers[(i+round)%len(servers)]
			all[s.name] = append(all[s.name], l.once(b, s.uri, workBytes))
		}
	}
	medians := map[string]float64{}
	for name, iops := range all {
		slices.Sort(iops)
		medians[name] = iops[len(iops)/2]
	}
	return medians
}

func (l load) once(b *testing.B, uri string, workBytes int64) float64 {
	out := filepath.Join(b.TempDir(), "fio.json")
	client(b, "fio", "--name=x", "--ioengine=nbd", "--uri="+uri, "--rw="+l.rw, "--bs=4k", fmt.Sprintf("--iodepth=%d", l.depth),
		fmt.Sprintf("--size=%d", workBytes), "--time_based", "--runtime=2", "--output-format=json", "--output="+out)
	text, err := os.ReadFile(out)
	if err != nil {
		b.Fatal(err)
	}
	var report struct {
		Jobs []struct {
			Read, Write struct{ IOPS float64 }
		}
	}
	if err := json.Unmarshal(text, &report); err != nil || len(report.Jobs) != 1 {
		b.Fatalf("%v in %s", err, text)
	}
	return report.Jobs[0].Read.IOPS + report.Jobs[0].Write.IOPS
}

// hasHydrated says whether the event has come.
func (r *running) hasHydrated() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.result.events, func(e event) bool { return e.Event == "hydrated" })
}

// exportTable shows requests in a second, and how many of the best qemu-nbd's that is.
func exportTable(servers []server, results map[string]map[string]float64) string {
	var t strings.Builder
	fmt.Fprintf(&t, "%-40s", "4 KiB requests in a second")
	for _, l := range loads {
		fmt.Fprintf(&t, "%22s", l.name)
	}
	for _, s := range servers {
		fmt.Fprintf(&t, "\n%-40s", s.name)
		for _, l := range loads {
			best := 0.0
			for name, iops := range results[l.name] {
				if strings.HasPrefix(name, "qemu-nbd") {
					best = max(best, iops)
				}
			}
			fmt.Fprintf(&t, "%15.0f (%.2f)", results[l.name][s.name], results[l.name][s.name]/best)
		}
	}
	return t.String() + "\n"
}
