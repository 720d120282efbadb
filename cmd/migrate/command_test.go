package main

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"decant/service"
)

func TestHelpText(t *testing.T) {
	for _, name := range []string{"", "list", "show", "explain", "verify", "reverse", "pause", "resume", "cancel", "watch", "completion"} {
		t.Run("migrate "+name, func(t *testing.T) {
			w := newWorld(&fakeService{})
			if code := w.run(append(strings.Fields(name), "--help")); code != 0 {
				t.Errorf("exit code %d: %s", code, w.err.String())
			}
			if len(w.fake.calls) > 0 || w.err.Len() > 0 {
				t.Errorf("help did more than help: %q, %s", w.fake.calls, w.err.String())
			}
			golden(t, strings.TrimSuffix("help-"+name, "-"), w.out.String())
		})
	}
}

func TestWrongUsage(t *testing.T) {
	tests := []struct{ args, want string }{
		{"", "migrate: SOURCE and DESTINATION are missing"},
		{"a", "migrate: DESTINATION is missing after a"},
		{"lst", "hint: did you mean: migrate list"},
		{"a b c", "migrate: c is one name too many"},
		{"--nonsense a b", "migrate: unknown flag: --nonsense"},
		{"--export", "migrate: flag needs an argument: --export"},
		{"--live", "migrate: flag needs an argument: --live"},
		{"--live a/b a b", `--live "a/b" is no name for a device`},
		{"--live control a b", `--live "control" is no name for a device`},
		{"--live -x a b", `--live "-x" is no name for a device`},
		{"--live x --export /run/s a b", "--live and --export exclude one another"},
		{"--live x --live-timeout 300h a b", "--live-timeout 300h0m0s is not from 0s to 168h"},
		{"--engine kernel a b", "--engine kernel needs --live"},
		{"--engine fast --live x a b", `--engine "fast" is none of auto, user and kernel`},
		{"--region-size 12Q a b", `unknown unit "Q"`},
		{"--region-size 1000 a b", "--region-size 1000 is not a power of two"},
		{"--region-size 2K a b", "--region-size 2048 is not a power of two from 4 KiB"},
		{"--threshold 0 a b", "--threshold 0 is not from 1"},
		{"--threshold x a b", "not a number of regions"},
		{"--threshold -1 a b", "not a number of regions"},
		{"--batch 0 a b", "--batch 0 is not from 1"},
		{"--commit-period 5 a b", "not a time with its unit"},
		{"--commit-period 0s a b", "--commit-period 0s is not from 1ms to 1h"},
		{"--commit-bytes 1 a b", "--commit-bytes 1 is not from 4 KiB"},
		{"--bwlimit -5M a b", `rate "-5M"`},
		{"--bwlimit fast a b", `rate "fast"`},
		{"--progress loud a b", "the forms are auto, bar, plain, json, none"},
		{"--remove-src a b", "--remove-src needs --discard-src"},
		{"--json a b", "--json needs --dry-run"},
		{"list m1", "unexpected argument m1"},
		{"list --progress bar", "unknown flag: --progress"},
		{"show", "ID is missing"},
		{"show m1 m2", "unexpected argument m2"},
		{"explain m1", "OFFSET is missing"},
		{"explain m1 somewhere", `OFFSET: size "somewhere"`},
		{"explain m1 99999999999999999999", "larger than 9223372036854775807"},
		{"verify", "ID is missing"},
		{"verify m1 --json --progress json", "both write to standard output"},
		{"reverse", "ID is missing"},
		{"pause", "ID is missing"},
		{"resume", "ID is missing"},
		{"resume m1 --verify", "unknown flag: --verify"},
		{"cancel", "ID is missing"},
		{"watch m1 m2", "unexpected argument m2"},
		{"--detach --dry-run a b", "--detach goes with neither"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			w := newWorld(&fakeService{})
			if code := w.run(strings.Fields(test.args)); code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			if !strings.Contains(w.err.String(), test.want) {
				t.Errorf("standard error %q does not say %q", w.err.String(), test.want)
			}
			if !strings.HasPrefix(w.err.String(), "migrate: ") || !strings.HasSuffix(w.err.String(), " --help'.\n") {
				t.Errorf("standard error %q is not one complaint and a pointer to --help", w.err.String())
			}
			if w.out.Len() > 0 || len(w.fake.calls) > 0 {
				t.Errorf("wrong usage wrote %q and called %q", w.out.String(), w.fake.calls)
			}
		})
	}
}

func TestEmptyNamesAreWrongUsage(t *testing.T) {
	for _, args := range [][]string{{"", "b"}, {"a", ""}, {"show", ""}, {"explain", "m1", ""}} {
		w := newWorld(&fakeService{})
		if code := w.run(args); code != 2 {
			t.Errorf("%q: exit code %d, want 2", args, code)
		}
	}
}

func TestFlagsReachTheService(t *testing.T) {
	w := newWorld(&fakeService{})
	code := w.run([]string{
		"--discard-src", "--verify", "--remove-src", "--overwrite", "--region-size", "64KiB",
		"--threshold", "8", "--batch", "2", "--commit-period", "250ms", "--commit-bytes=8M", "--bwlimit", "50MiB/s",
		"--live", "vm", "--live-timeout", "2m", "--engine", "user", "--state-dir", "/state", "--progress=none", "/a", "pool/v",
	})
	want := service.Request{Source: "/a", Destination: "pool/v", Options: service.Options{
		DiscardSource: true, Verify: true, RemoveSource: true, Overwrite: true, RegionBytesFixed: true, RegionBytes: 64 << 10,
		ThresholdRegions: 8, BatchRegions: 2, CommitPeriod: 250 * time.Millisecond, CommitBytes: 8 << 20, BytesPerSecond: 50 << 20,
		Live: "vm", LiveTimeout: 2 * time.Minute, Engine: service.EngineUser,
	}}
	if code != 0 || !reflect.DeepEqual(w.fake.request, want) {
		t.Errorf("exit code %d, request %+v, want %+v (%s)", code, w.fake.request, want, w.err.String())
	}
	if w.stateDir != "/state" {
		t.Errorf("state directory %q", w.stateDir)
	}
}

func TestWithoutFlagsTheDefaultsAreTaken(t *testing.T) {
	w := newWorld(&fakeService{})
	if code := w.run([]string{"/a", "pool/v"}); code != 0 || w.fake.request.Options != service.DefaultOptions() {
		t.Errorf("exit code %d, options %+v", code, w.fake.request.Options)
	}
	if w.stateDir != "" {
		t.Errorf("state directory %q; the service chooses the default", w.stateDir)
	}
}

func TestCommandsCallTheService(t *testing.T) {
	tests := []struct{ args, want string }{
		{"/a pool/v", "migrate /a pool/v"},
		{"/a pool/v --verify", "migrate /a pool/v"},
		{"-- list pool/v", "migrate list pool/v"},
		{"--dry-run /a pool/v", "plan /a pool/v"},
		{"list", "list"},
		{"show m1", "show m1"},
		{"explain m1 1GiB", "explain m1 1073741824"},
		{"verify m1", "verify m1"},
		{"reverse m1", "reverse m1"},
		{"pause m1", "pause m1; show m1"},
		{"resume m1 --progress none", "resume m1"},
		{"cancel m1", "cancel m1"},
		{"cancel m1 --state-dir /state", "cancel m1"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			w := newWorld(&fakeService{})
			if code := w.run(strings.Fields(test.args)); code != 0 {
				t.Errorf("exit code %d: %s", code, w.err.String())
			}
			if got := strings.Join(w.fake.calls, "; "); got != test.want {
				t.Errorf("called %q, want %q", got, test.want)
			}
		})
	}
}

func TestExitCodeOfEachOutcome(t *testing.T) {
	tests := []struct {
		name string
		err  error
		code int
		want string
	}{
		{"done", nil, 0, ""},
		{"unnamed", errors.New("boom"), 1, "migrate: boom\n"},
		{
			"failed", &service.Error{Outcome: service.Failed, Object: "/a", Problem: "is lost", State: "the destination is whole"}, 1,
			"migrate: /a: is lost; the destination is whole\n",
		},
		{"usage", &service.Error{Outcome: service.Usage, Problem: "no"}, 2, "migrate: no\nSee 'migrate resume --help'.\n"},
		{"stopped", &service.Error{Outcome: service.Stopped, Problem: "no space", Hint: "make room"}, 3, "migrate: no space\nhint: make room\n"},
		{
			"refused", &service.Error{Outcome: service.Refused, Object: "/a", Problem: "is mounted", Hint: "unmount it"}, 4,
			"migrate: /a: is mounted\nhint: unmount it\n",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(&fakeService{err: test.err})
			if code := w.run([]string{"resume", "m1"}); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if w.err.String() != test.want || w.out.Len() > 0 {
				t.Errorf("standard error %q, want %q; standard output %q", w.err.String(), test.want, w.out.String())
			}
		})
	}
}

func TestEveryCommandPassesItsErrorOn(t *testing.T) {
	for _, args := range []string{"/a pool/v", "--dry-run /a pool/v", "list", "show m1", "explain m1 0", "verify m1", "reverse m1", "pause m1", "resume m1", "cancel m1"} {
		t.Run(args, func(t *testing.T) {
			w := newWorld(&fakeService{err: &service.Error{Outcome: service.Refused, Problem: "refused"}})
			if code := w.run(strings.Fields(args)); code != 4 || w.out.Len() > 0 {
				t.Errorf("exit code %d, standard output %q", code, w.out.String())
			}
			w = newWorld(&fakeService{})
			w.openService = func(string) (migrations, error) {
				return nil, &service.Error{Outcome: service.Refused, Problem: "no state directory"}
			}
			if code := w.run(strings.Fields(args)); code != 4 {
				t.Errorf("exit code %d without a service", code)
			}
		})
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestAnAnswerThatCannotBeWrittenIsAFailure(t *testing.T) {
	for _, args := range []string{"list", "list --json", "show m1", "show m1 --json", "explain m1 0", "explain m1 0 --json", "--dry-run /a b/c", "verify m1 --json"} {
		w := newWorld(&fakeService{list: []service.Summary{{ID: "m1"}}, plan: service.Plan{Source: "/a"}, verified: service.VerifyReport{ID: "m1"}})
		w.stdout = fullDisk{}
		if code := w.run(strings.Fields(args)); code != 1 || !strings.Contains(w.err.String(), "no space left") {
			t.Errorf("%s: exit code %d, standard error %q", args, code, w.err.String())
		}
	}
}

// fault 89: names with control characters
func TestComplaintsDoNotSteerTheTerminal(t *testing.T) {
	w := newWorld(&fakeService{err: &service.Error{Outcome: service.Refused, Object: "/a\x1b[2Jb\nmigrate: done", Problem: "is mounted", Hint: "unmount /a\x1b[2Jb\n"}})
	w.run([]string{"resume", "m1"})
	want := "migrate: /a\\x1b[2Jb\\nmigrate: done: is mounted\nhint: unmount /a\\x1b[2Jb\\n\n"
	if w.err.String() != want {
		t.Errorf("standard error %q, want %q", w.err.String(), want)
	}
}

func TestCompletionOffersTheIDs(t *testing.T) {
	w := newWorld(&fakeService{list: []service.Summary{{ID: "m1", Source: "/a\n", Destination: "p/v"}}})
	if code := w.run([]string{"__complete", "show", ""}); code != 0 || !strings.HasPrefix(w.out.String(), "m1\t\"/a\\n\" → p/v\n") {
		t.Errorf("exit code %d, completion %q", code, w.out.String())
	}
}

func TestVersion(t *testing.T) {
	w := newWorld(&fakeService{})
	if code := w.run([]string{"--version"}); code != 0 || !strings.HasPrefix(w.out.String(), "migrate version ") {
		t.Errorf("exit code %d, %q", code, w.out.String())
	}
}
