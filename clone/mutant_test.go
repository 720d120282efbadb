package clone_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// byMachine are the tests that know nothing of the protocol but its rules.
const byMachine = "^(TestCrashAtEveryStep|TestCrashUnderConcurrentWorkers|TestEveryCallFails)$"

// byGuests are those that also have guests, and know no more of the protocol.
const byGuests = "^(TestGuestCrashAtEveryStep|TestGuestCrashUnderConcurrentWorkers|TestGuestEveryCallFails)$"

// byOutliving are those whose guests outlive the process.
const byOutliving = "^(TestOutlivingGuestsAndKillAtEveryStep|TestOutlivingGuestsUnderConcurrentWorkers)$"

// mutant is one bug planted in the protocol, and the tests that must find it.
type mutant struct{ name, file, old, new, by string }

var mutants = []mutant{
	{"none", "commit.go", "package clone", "package clone", ""},
	{
		"I1: sealed after the flush", "commit.go",
		"	sealed := c.regions.seal()\n	if err := c.Destination.Flush(); err != nil {\n		return c.abort(\"flush the destination\", err)\n	}\n",
		"	if err := c.Destination.Flush(); err != nil {\n		return c.abort(\"flush the destination\", err)\n	}\n	sealed := c.regions.seal()\n",
		byMachine,
	},
	{"I1: no flush", "commit.go", "err := c.Destination.Flush();", "err := error(nil);", byMachine},
	{
		"I1: journal before flush", "commit.go", "	if err := c.Destination.Flush(); err != nil {",
		"	if sealed.regions.Count() > 0 {\n		if _, err := c.journalCommit(sealed); err != nil {\n			return c.abort(\"early\", err)\n		}\n	}\n	if err := c.Destination.Flush(); err != nil {",
		byMachine,
	},
	{
		"I2: published before the journal", "commit.go", "	tx, err := c.journalCommit(sealed)",
		"	c.regions.publish(c.regions.tx)\n	tx, err := c.journalCommit(sealed)", byMachine,
	},
	{"I2: dirty regions handed out", "regions.go", "	done := Committed{", "	r.ready.Union(r.dirty.regions)\n	done := Committed{", byMachine},
	{"I2: sealed regions handed out", "regions.go", "	done := Committed{", "	r.ready.Union(r.sealed.regions)\n	done := Committed{", byMachine},
	{"I3: no waiting for readers", "readers.go", "for r.beingRead(run) {", "for false {", byMachine},
	{"I3: only the first region of a read counts", "readers.go", "		if run.Has(nr) {", "		if run.First == nr {", "^TestFault82DiscardWaitsForRead$"},
	{
		"I5: dirty regions are copied again", "regions.go", "	if run, ok = r.claimed.MissingRange(within); !ok {",
		"	free := r.claimed.Clone()\n	free.Subtract(r.dirty.regions)\n	if run, ok = free.MissingRange(within); !ok {", byMachine,
	},
	{"I7: read-write after a failed commit", "clone.go", "	c.mode.Store(uint32(ReadOnly))\n", "", byMachine},
	{"I7: nothing is forgotten after a failed commit", "clone.go", "	c.regions.forget()\n", "", byMachine},
	{"I7: copies end dirty after a failed commit", "regions.go", "	if r.closed {", "	if false {", "^TestHydrateDuringFailingCommit$"},
	{"I10: zeros are always skipped", "copy.go", "	case zero && clean:", "	case zero || clean && zero:", byMachine},
	{"I10: holes are always skipped", "copy.go", "		if !clean {", "		if !clean && false {", byMachine},
	{"I11: no mark", "discard.go", "err := c.Marker.Mark(c.marked);", "err := error(nil);", byMachine},
	{
		"I11: mark after the discard", "discard.go", "	if err := c.Marker.Mark(c.marked); err != nil {",
		"	defer func() { _ = c.Marker.Mark(c.marked) }()\n	if err := error(nil); err != nil {", byMachine,
	},
	{"I11: the mark may go down", "discard.go", "c.marked = max(c.marked, done.tx)", "c.marked = done.tx", "^TestMarkNeverGoesDown$"},
	{
		"I13: discards go on after a failed commit", "discard.go",
		"		if err := c.writable(); err != nil {\n			return freed, err // a commit has failed meanwhile\n		}\n", "", "^TestDiscardEndsWhenCommitFails$",
	},
	{
		"dirty regions are read from the destination", "readers.go", "	case r.hydrated.Has(nr):",
		"	case r.claimed.Has(nr) && !r.hydrating.Has(nr):", "^TestFault47ReadDuringFailingFlush$",
	},
	{"two writers in the journal", "discard.go", "	c.record.Lock()\n	defer c.record.Unlock()\n", "", byMachine},
	{
		"one owner for a whole read", "readers.go", "for part.End() < run.End() && r.owner(part.End()) == from {",
		"for part.End() < run.End() {", byMachine,
	},
	{"regions partly hole count as holes", "copy.go", "hole := c.Geometry.Covered(", "hole := c.Geometry.Touched(", byMachine},
	{"work ends before the region does", "copy.go", "return region.Between(run.First, next), nil", "return region.Between(run.First, next-1), nil", byMachine},
	{"a wrong read-back is ignored", "copy.go", "	if xxh3.Hash(back) != sum {", "	if xxh3.Hash(back) == sum+1 {", "^TestFault49VerifyFindsWrongBytes$"},
	{
		"a read-back is compared with what was in memory", "copy.go", "		return c.verify(sum, ",
		"		return c.verify(sum-sum+xxh3.Hash(p), ", "^TestFault49MemoryChangesUnderAWrite$",
	},
	{"checksums run on", "copy.go", "		s.hash.Reset()\n", "", byMachine},
	{
		"no checksum for the short last region", "copy.go", "		if off < regionOff+regionBytes {",
		"		if off%s.geometry.RegionBytes() != 0 {", byMachine,
	},
	{"a short count is success", "errors.go", "	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {", "	if err == nil || errors.Is(err, io.EOF) {", byMachine},
	{"discards are not repeated after a crash", "clone.go", "	if cfg.RepeatDiscards {", "	if cfg.RepeatDiscards && false {", byMachine},
	{"what an earlier process committed is not rechecked", "recheck.go", "	r.ready.Subtract(s)\n", "", "^TestFault38NothingIsHandedOutUnchecked$"},
	{
		"lost regions count as whole", "recheck.go", "	return sum == journal.NormalSum(found.sums[0].Sum), nil",
		"	return true, nil", "^TestFault38LostRegionsAreCopiedAgain$",
	},
	{
		"lost regions are copied again from anything", "recheck.go", "	if !whole {", "	if false && !whole {", "^TestFault38LostOnBothEnds$",
	},
	{"a failed copy keeps its regions", "copy.go", "			c.regions.release(run)\n			return copied, err\n", "			return copied, err\n", byMachine},
	{"nothing is handed out again after a failed discard", "discard.go", "		c.regions.giveBack(done)\n", "", byMachine},
}

// guestMutants are bugs in what guests do.
var guestMutants = []mutant{
	{"a partial write does not hydrate", "write.go", "	if w.off == off && w.n == n {", "	if w.off >= off {", byGuests},
	{"a partial change is lost under the copy", "copy.go", "		w.onto(p, off)\n", "", byGuests},
	{"a trimmed region is read from the source", "changes.go", "	r.changed.Add(run)\n	if data {", "	if data {\n		r.changed.Add(run)", byGuests},
	{"a trimmed region is not zeroed", "write.go", "	case clean:\n		return nil", "	case w.data == nil:\n		return nil", byGuests},
	{"zeros are sent as a hole to what holds data", "write.go", "c.send(w, op, clean)", "c.send(w, op, true)", byGuests},
	{"a changed dirty region is read from the source", "changes.go", "		r.changed.Add(one)\n", "", byGuests},
	{
		"I4: a flush with nothing to journal skips the destination", "commit.go", "	if err := c.Destination.Flush(); err != nil {",
		"	if sealed.empty() {\n		return nil\n	}\n	if err := c.Destination.Flush(); err != nil {", byGuests,
	},
	{"I4: a flush joins a commit that has begun", "commit.go", "	c.turns.begin()\n	defer func() { turn.end(err) }()", "	defer func() {\n		c.turns.begin()\n		turn.end(err)\n	}()", "^TestFlushesShareCommits$"},
	{"I4: a flush is only the destination's", "write.go", "	defer c.guests.leave()\n	return c.Commit()\n", "	defer c.guests.leave()\n	return c.Destination.Flush()\n", byGuests},
	{
		"I5: hydration copies over a guest's write", "regions.go", "	if run, ok = r.claimed.MissingRange(within); !ok {\n		return run, false, false",
		"	free := r.claimed.Clone()\n	free.Subtract(r.dirty.unsummed)\n	if run, ok = free.MissingRange(within); !ok {\n		return run, false, false", byGuests,
	},
	{"BUG_LOCK: a guest writes beside a copy", "changes.go", "	for r.hydrating.Has(within.First) && !r.closed {", "	if r.hydrating.Has(within.First) {\n		return changeInPlace, region.Range{First: within.First, Count: 1}, false\n	}\n	for false {", byGuests},
	{"I3: a single read does not count", "readers.go", "		if run.Has(nr) {", "		if run.Has(nr) && r.readers[nr] > 1 {", "^TestFault82ReadHeldAcrossTrim$"},
	{"the checksum of a dirty region stays", "changes.go", "		r.unsum(one)\n", "		r.unsummed.Add(one)\n", byGuests},
	{"the checksum of a hydrated region stays", "changes.go", "	return r.unsummed.Has(nr) && !r.hydrating.Has(nr)", "	return r.claimed.Has(nr) && !r.hydrating.Has(nr)", byGuests},
	{"a zeroed region keeps guests from announcing", "changes.go", "	if data {\n		r.unsum(run)", "	r.unsummed.Add(run)\n	if data {\n		r.unsum(run)", byGuests},
	{"changes of the cache are read after a failed flush", "regions.go", "	r.changed = region.NewSet()\n	r.dirty, r.sealed", "	r.dirty, r.sealed", "^TestGuestChangesNothingWhenReadOnly$"},
	{"in-place writes go on after a failed flush", "changes.go", "	case r.closed:\n		return changeRefused, first, false\n", "", "^TestGuestChangesNothingWhenReadOnly$"},
	{"a read that a failed flush overtook is believed", "read.go", "	if from == ownedByCache && c.regions.isClosed() {", "	if false {", "^TestFault47GuestReadOvertakenByFailingFlush$"},
	{"a guest's change trusts what is in doubt", "write.go", "		return 0, c.recheckBeforeChange(run)", "		c.regions.trust(run)\n		return 0, nil", "^TestFault38GuestChangesWhatIsInDoubt$"},
	{"regions in doubt lose their checksums", "changes.go", " && !r.doubt.Has(nr) {", " {", "^TestFault38GuestChangesWhatIsInDoubt$"},
	{"what guests wrote counts as lost", "recheck.go", "	if sum == journal.WrittenSum {\n		return true, nil", "	if sum == journal.WrittenSum {\n		return false, nil", "^TestFault38RecheckBelievesGuests$"},
	{"guests go on after a loss", "recheck.go", "	c.regions.forget()\n", "", "^TestFault38NoChangesAfterALoss$"},
	{"what somebody else has judged is judged again", "recheck.go", "	if !c.regions.inDoubt(one) {", "	if c.regions.inDoubt(one) && false {", "^TestFault38GuestOvertakesRecheck$"},
	{"a change is answered before its commit", "write.go", "	if all.Empty() || c.regions.areHydrated(all) {", "	if true {", byOutliving},
	{"what is dirty counts as safe from a kill", "changes.go", "	return r.hydrated.HasAll(run)\n", "	return r.claimed.HasAll(run)\n", byOutliving},
	{"what is about to be committed counts as safe from a kill", "changes.go", "	return r.hydrated.HasAll(run)\n", "	sure := r.hydrated.Clone()\n	sure.Union(r.sealed.regions)\n	return sure.HasAll(run)\n", "^TestOutlivingGuestsWaitForACommitUnderWay$"},
	{"only the first region of a change is made safe from a kill", "write.go", "		all := c.Geometry.Touched(w.off, w.n)\n", "		all := c.Geometry.Touched(w.off, min(w.n, 1))\n", byOutliving},
	{"a failed guest's write keeps its regions", "write.go", "		c.regions.release(run)\n", "", "^TestFault36NoSpaceForGuests$"},
}

// Every bug that is planted in the protocol is found, by tests that find nothing in
// the protocol as it is.
func TestPlantedBugs(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Fatalf("this test builds variants of the package: %v", err)
	}
	for _, mu := range slices.Concat(mutants, guestMutants) {
		t.Run(mu.name, func(t *testing.T) {
			t.Parallel()
			found, out := runMutant(t, mu)
			switch {
			case mu.by == "" && found != "":
				t.Fatalf("without a planted bug, %s failed:\n%s", found, out)
			case mu.by != "" && found == "":
				t.Fatalf("not found:\n%s", out)
			}
			t.Logf("found by %q: %q", found, firstMessage.FindString(out))
		})
	}
}

// firstMessage is what the first failure says.
var firstMessage = regexp.MustCompile(`\w+_test\.go:\d+: .*`)

var failedTest = regexp.MustCompile(`(?m)^--- FAIL: (\w+)|^panic: (.*)$`)

// runMutant builds the package with the bug and runs the tests; it says which
// failed, and what they wrote.
func runMutant(t *testing.T, mu mutant) (found, output string) {
	binary := build(t, mu)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	run, timeout := mu.by, 20*time.Second
	if run == "" { // everything, and nothing hangs
		run, timeout = ".", 4*time.Minute
	}
	cmd := exec.CommandContext(ctx, binary, "-test.run", run, "-test.skip", "^TestPlantedBugs$", "-test.short", "-test.failfast",
		"-test.timeout="+timeout.String(), "-rapid.seed=1", "-rapid.nofailfile", "-rapid.shrinktime=1ns")
	out, err := cmd.CombinedOutput()
	match := failedTest.FindStringSubmatch(string(out))
	if err != nil && match == nil {
		t.Fatalf("the tests ended with %v and no failure:\n%s", err, out)
	}
	if err == nil {
		return "", string(out)
	}
	return match[1] + match[2], string(out)
}

// build compiles the tests against the package with the bug.
func build(t *testing.T, mu mutant) string {
	t.Helper()
	dir := t.TempDir()
	original, err := filepath.Abs(mu.file)
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(code), mu.old); n != 1 {
		t.Fatalf("%s has the text to replace %d times, want 1: bring the table in step with the code", mu.file, n)
	}
	changed, overlay := filepath.Join(dir, mu.file), filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(changed, []byte(strings.Replace(string(code), mu.old, mu.new, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, list, 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "clone.test")
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-overlay="+overlay, "-o", binary, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("does not compile: %v\n%s", err, out)
	}
	return binary
}
