package integration

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// faultyCalls are the system calls that can fail under a program, and how. EINTR is
// there where the kernel may say it.
var faultyCalls = map[string][]string{
	"pread64":      {"EIO", "EINTR"},
	"preadv":       {"EIO"},
	"pwrite64":     {"EIO", "ENOSPC", "EINTR"},
	"pwritev":      {"EIO", "ENOSPC"},
	"fsync":        {"EIO", "ENOSPC"},
	"fdatasync":    {"EIO", "ENOSPC"},
	"syncfs":       {"EIO"},
	"fallocate":    {"EIO", "ENOSPC", "EINTR", "EOPNOTSUPP"},
	"lseek":        {"EIO"},
	"openat":       {"EIO", "EINTR", "EMFILE"},
	"openat2":      {"EIO", "EAGAIN"},
	"close":        {"EIO"},
	"ftruncate":    {"EIO", "ENOSPC", "EINTR"},
	"fsetxattr":    {"EIO", "ENOSPC"},
	"fgetxattr":    {"EIO"},
	"fremovexattr": {"EIO"},
	"renameat2":    {"EIO", "ENOSPC"},
	"rename":       {"EIO", "ENOSPC"},
	"renameat":     {"EIO", "ENOSPC"},
	"unlink":       {"EIO"},
	"unlinkat":     {"EIO"},
	"mkdirat":      {"EIO", "ENOSPC"},
	"flock":        {"EINTR", "ENOLCK"},
	"statfs":       {"EIO", "EINTR"},
	"fstatfs":      {"EIO", "EINTR"},
	"statx":        {"EIO"},
	"fstat":        {"EIO"},
	"newfstatat":   {"EIO"},
	"utimensat":    {"EIO"},
	"ioctl":        {"EIO"},
	"getdents64":   {"EIO"},
	"readlinkat":   {"EIO"},
}

// injectFlags make a run of many small transactions out of a small image.
var injectFlags = []string{"--discard-src", "--region-size=64KiB", "--commit-bytes=512KiB"}

const injectBytes = 4 * mib

// Every system call that a migration makes fails once or for good, at the first and
// at later times. The program ends in one of the ways it promises, loses nothing, and
// the same command without the fault brings a whole destination.
func TestEverySystemCallFails(t *testing.T) {
	before, during := countCalls(t, "--version"), countMove(t)
	for _, call := range slices.Sorted(maps.Keys(faultyCalls)) {
		// Counts are per thread, as those of strace are. What happens before main is
		// the loader's and not ours to survive.
		first, last := before[call]+1, during[call]
		if last < first {
			continue // never made
		}
		for _, errno := range faultyCalls[call] {
			for _, when := range moments(first, last, errno != "EINTR") {
				t.Run(fmt.Sprintf("%s %s %s", call, errno, when), func(t *testing.T) {
					t.Parallel()
					injectAndRepeat(t, call, errno, when)
				})
			}
		}
	}
}

// moments are the times at which a call fails, in the words of strace: one of them,
// or all from one on. What is interrupted is rightly tried again for ever, so that
// cannot be for good.
func moments(first, last int, forGood bool) (when []string) {
	growth := 2
	if nightly() {
		growth = 1
	}
	for n, step := first, 1; n <= last; n, step = n+step, step*growth {
		when = append(when, strconv.Itoa(n))
	}
	if forGood {
		when = append(when, fmt.Sprintf("%d+", (first+last)/2))
	}
	if forGood && nightly() {
		when = append(when, fmt.Sprintf("%d+", first))
	}
	return when
}

// countCalls traces a run and counts its calls: for each, those of the thread that
// made most.
func countCalls(t *testing.T, args ...string) map[string]int {
	t.Helper()
	s := newSite(t)
	return s.countCalls(args...)
}

func countMove(t *testing.T) map[string]int {
	t.Helper()
	s := newSite(t)
	makeImage(t, s.path("image"), injectBytes, 160, mixed)
	return s.countCalls(moveArguments(s.path("image"), s.path("moved"), injectFlags)...)
}

func (s *site) countCalls(args ...string) map[string]int {
	s.Helper()
	trace := s.path("trace")
	s.want(0, s.under([]string{"strace", "-f", "-qq", "-o", trace}, args...).wait())
	f, err := os.Open(trace)
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	most, each := map[string]int{}, map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		thread, rest, _ := strings.Cut(lines.Text(), " ")
		call, _, found := strings.Cut(strings.TrimSpace(rest), "(")
		if !found {
			continue // the second half of a call, or a signal
		}
		each[thread+call]++
		most[call] = max(most[call], each[thread+call])
	}
	if most["execve"] == 0 {
		s.Fatalf("nothing was traced: %v", most)
	}
	return most
}

func injectAndRepeat(t *testing.T, call, errno, when string) {
	t.Helper()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, injectBytes, 160, mixed)
	copyFile(t, source, s.path("as it was"))
	trace := s.path("trace")
	strace := []string{
		"strace", "-f", "--seccomp-bpf", "-qq", "-o", trace,
		"-e", "trace=" + call, "-e", fmt.Sprintf("inject=%s:error=%s:when=%s", call, errno, when),
	}
	o := s.under(strace, moveArguments(source, destination, injectFlags)...).wait()
	if !strings.Contains(readFile(t, trace), "INJECTED") {
		s.want(0, o) // the calls were shared out among the threads in another way
	}
	wantOrdinaryEnd(t, o)
	if exists(destination) {
		wantOnOneSide(t, s.path("as it was"), source, destination)
	} else {
		wantWhole(t, source, made)
	}
	if o.code == 0 {
		wantWhole(t, destination, made)
	}
	if again := s.move(source, destination, injectFlags...); again.code != 0 {
		t.Errorf("after\n%v\nthe same command ends so: %v", o, again)
		return
	}
	wantWhole(t, destination, made)
	wantEmptied(t, source, made)
}
