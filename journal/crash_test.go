package journal_test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/region"
)

// child is what a re-executed test binary does in place of tests.
func child(work, path string) {
	switch work {
	case "lock":
		printLockHolder(path)
	case "commit":
		commitUntilKilled(path)
	case "open":
		_, err := journal.Open(path)
		fmt.Print(errors.Is(err, journal.ErrOtherWriter))
	}
}

// ofTransaction are the regions that transaction tx of the child hydrates.
func ofTransaction(tx journal.TxID) region.Range {
	return regions(region.Nr(tx)*3, 2)
}

// commitUntilKilled prints the number of every transaction once it is committed.
func commitUntilKilled(path string) {
	var s journal.State
	j, err := journal.Open(path)
	if err == nil {
		s, err = j.Load()
	}
	for err == nil {
		next := ofTransaction(s.Tx + 1)
		s.Tx, err = j.Commit(journal.Transaction{
			Hydrated:  region.NewSet(next),
			Checksums: []journal.Checksum{{Nr: next.First, Sum: uint64(next.First)}},
		})
		if err == nil {
			fmt.Println(s.Tx)
			err = j.MarkDiscarded([]region.Range{next})
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func childCommand(work, path string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "JOURNAL_TEST_CHILD="+work, "JOURNAL_TEST_PATH="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

// fault 63: a process that is killed at any instruction loses nothing that it has
// acknowledged.
func TestKilledWhileCommitting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	mustClose(t, mustCreate(t, path, superblockOf(t, 1<<40, 1<<20)))
	rng := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for round := range 25 {
		acked := killWhileCommitting(t, path, time.Duration(rng.IntN(40_000))*time.Microsecond)
		j := mustOpen(t, path)
		s := load(t, j)
		if s.Tx < acked || s.Tx > acked+1 {
			t.Fatalf("round %d: transaction %d was acknowledged, the journal has %d", round, acked, s.Tx)
		}
		want := &region.Set{}
		for tx := journal.TxID(1); tx <= s.Tx; tx++ {
			want.Add(ofTransaction(tx))
		}
		if !s.Hydrated.Equal(want) {
			t.Fatalf("round %d: %d regions hydrated, want %d", round, s.Hydrated.Count(), want.Count())
		}
		mustClose(t, j)
	}
}

// killWhileCommitting lets a child commit, kills it a while after its first
// commit, and gives the last transaction that it acknowledged.
func killWhileCommitting(t *testing.T, path string, after time.Duration) (acked journal.TxID) {
	t.Helper()
	cmd := childCommand("commit", path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		tx, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			break // torn by the kill
		}
		if acked == 0 {
			time.AfterFunc(after, func() { cmd.Process.Kill() }) // an error means that it is dead already
		}
		acked = journal.TxID(tx)
	}
	if err := cmd.Wait(); err == nil || acked == 0 {
		t.Fatalf("the child acknowledged %d and ended with %v", acked, err)
	}
	return acked
}

// fault 60: whoever opens a journal that is open for writing, in this process or in
// another one, is sent away, and the one that has it goes on.
func TestFault60SecondWriterIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	j := mustCreate(t, path, superblock(t))
	for i, open := range []func() string{
		func() string {
			_, err := journal.Open(path)
			return fmt.Sprint(errors.Is(err, journal.ErrOtherWriter))
		},
		func() string { return childOutput(t, "open", path) },
	} {
		commit(t, j, regions(region.Nr(i), 1))
		if got := open(); got != "true" {
			t.Errorf("opening %d: refused for the other writer: %s", i, got)
		}
		commit(t, j, regions(region.Nr(i)+100, 1))
	}
	mustClose(t, j)
	if s := load(t, mustOpen(t, path)); s.Tx != 4 {
		t.Errorf("transaction %d", s.Tx)
	}
}

func childOutput(t *testing.T, work, path string) string {
	t.Helper()
	out, err := childCommand(work, path).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// fault 61: a second opening of the file in this process, closed again, must not
// drop the lock of the first: it is what keeps another process from taking the log
// away when it closes the file. Only another process can see whether it is there.
func TestFault61LocksSurviveAnotherOpening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	j := mustCreate(t, path, superblock(t))
	commit(t, j, regions(0, 1))
	for range 2 {
		if got := childOutput(t, "lock", path); got != strconv.Itoa(os.Getpid()) {
			t.Fatalf("the lock is held by process %s; this is %d", got, os.Getpid())
		}
		r, err := journal.OpenReadOnly(path)
		if err != nil {
			t.Fatal(err)
		}
		load(t, r)
		mustClose(t, r)
	}
}

// printLockHolder prints the process that keeps this one from locking the bytes
// that every connection of SQLite locks.
func printLockHolder(path string) {
	const sharedFirst, sharedBytes = 0x40000000 + 2, 510
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: sharedFirst, Len: sharedBytes}
	if err == nil {
		err = unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(lock.Pid)
}
