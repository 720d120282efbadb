package journal_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/region"
)

// fault 57: an index in shared memory is what a full file system kills a process by.
func TestFault57NoIndexInSharedMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	without := func(when string) {
		t.Helper()
		if found, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*-shm")); err != nil || len(found) > 0 {
			t.Errorf("%s: %v, %v", when, found, err)
		}
	}
	j := mustCreate(t, path, superblock(t))
	without("made")
	commit(t, j, regions(0, 5))
	without("committed")
	mustLook(t, path)
	without("looked at")
	mustClose(t, j)
	without("closed")
	mustLook(t, path)
	without("closed and looked at")
	j = mustOpen(t, path)
	commit(t, j, regions(5, 5))
	without("opened again")
}

// writing lets another process commit until the test ends. What it gives is the last
// transaction that the other process has acknowledged.
func writing(t *testing.T, path string) (*atomic.Uint64, *exec.Cmd) {
	t.Helper()
	cmd := childCommand("commit", path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked := &atomic.Uint64{}
	begun, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			tx, err := strconv.ParseUint(lines.Text(), 10, 64)
			if err != nil {
				return // torn by the kill
			}
			if acked.Swap(tx) == 0 {
				close(begun)
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill() // an error means that it is dead already
		<-ended
		_ = cmd.Wait() // it was killed
	})
	select {
	case <-begun:
	case <-time.After(30 * time.Second):
		t.Fatal("the other process commits nothing")
	}
	return acked, cmd
}

// While another process commits, and copies its log back again and again, every look
// shows what was acknowledged before it, and is free of contradictions.
func TestLookBesideAnotherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	mustClose(t, mustCreate(t, path, superblockOf(t, 1<<40, 1<<20)))
	acked, _ := writing(t, path)
	header, restarts, looks := "", 0, 0
	for deadline := time.Now().Add(30 * time.Second); restarts < 4 || looks < 100; looks++ {
		if time.Now().After(deadline) {
			t.Fatalf("%d looks, the log began anew %d times, %d transactions", looks, restarts, acked.Load())
		}
		before := acked.Load()
		r := mustLook(t, path)
		s := load(t, r)
		if uint64(s.Tx) < before {
			t.Fatalf("transaction %d was acknowledged, a look shows %d", before, s.Tx)
		}
		want := &region.Set{}
		for tx := journal.TxID(1); tx <= s.Tx; tx++ {
			want.Add(ofTransaction(tx))
		}
		if !s.Hydrated.Equal(want) {
			t.Fatalf("%d regions hydrated, want %d", s.Hydrated.Count(), want.Count())
		}
		mustClose(t, r) // checks it
		log, err := os.Open(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		now := make([]byte, 32)
		if _, err := log.ReadAt(now, 0); err != nil {
			t.Fatal(err)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		if string(now) != header {
			header = string(now)
			restarts++
		}
	}
}

// A stopped process has acknowledged exactly what a look must show.
func TestLookShowsTheLastCommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	mustClose(t, mustCreate(t, path, superblockOf(t, 1<<40, 1<<20)))
	acked, cmd := writing(t, path)
	for range 20 {
		time.Sleep(10 * time.Millisecond)
		if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Millisecond) // it stops and its last line is read
		before := acked.Load()
		if s := load(t, mustLook(t, path)); uint64(s.Tx) != before && uint64(s.Tx) != before+1 {
			t.Errorf("transaction %d was acknowledged, a look shows %d", before, s.Tx)
		}
		if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
}

// A look in the process of the writer, while it commits, opens and closes.
func TestLookBesideWriterOfThisProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	mustClose(t, mustCreate(t, path, superblockOf(t, 1<<40, 1<<20)))
	var acked atomic.Uint64
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- openAndCommit(path, &acked, stop) }()
	for begun := time.Now(); time.Since(begun) < 2*time.Second; {
		before := acked.Load()
		r, err := journal.OpenReadOnly(path)
		if err != nil {
			t.Error(err)
			break
		}
		if s := load(t, r); uint64(s.Tx) < before {
			t.Errorf("transaction %d was acknowledged, a look shows %d", before, s.Tx)
		}
		mustClose(t, r)
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// openAndCommit commits ten transactions at an opening until it is stopped. Another
// process must find the lock held each time.
func openAndCommit(path string, acked *atomic.Uint64, stop chan struct{}) error {
	for round := 0; ; round++ {
		select {
		case <-stop:
			return nil
		default:
		}
		j, err := journal.Open(path)
		for range 10 {
			if err != nil {
				break
			}
			var tx journal.TxID
			tx, err = j.Commit(journal.Transaction{Hydrated: region.NewSet(ofTransaction(journal.TxID(acked.Load() + 1)))})
			acked.Store(max(acked.Load(), uint64(tx)))
		}
		if err == nil && round%10 == 0 {
			var holder []byte
			if holder, err = childCommand("lock", path).Output(); err == nil && string(holder) != strconv.Itoa(os.Getpid()) {
				err = fmt.Errorf("process %s has the lock", holder)
			}
		}
		if j != nil {
			err = errors.Join(err, j.Close())
		}
		if err != nil {
			return err
		}
	}
}

// A reader of a journal that nobody writes to does not keep a writer out.
func TestLookKeepsNoWriterOut(t *testing.T) {
	path := written(t)
	r := mustLook(t, path)
	begun := time.Now()
	j := mustOpen(t, path)
	commit(t, j, regions(300, 5))
	mustClose(t, j)
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("the writer waited %v", took)
	}
	if s := load(t, r); s.Tx != 40 {
		t.Errorf("the reader sees transaction %d", s.Tx)
	}
}

func TestLookLeavesNothingBehind(t *testing.T) {
	path := written(t)
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	before := beside(t, path)
	r := mustLook(t, path)
	load(t, r)
	for _, when := range []string{"open", "closed"} {
		if found := beside(t, filepath.Join(temporary, "x")); found != "" {
			t.Errorf("%s: %s", when, found)
		}
		if after := beside(t, path); after != before {
			t.Errorf("%s: there is %s where there was %s", when, after, before)
		}
		mustClose(t, r)
	}
	overwrite(t, path, func(b []byte) []byte { return append(make([]byte, 4096), b[4096:]...) })
	if r, err := journal.OpenReadOnly(path); err == nil {
		r.Close() // the test fails here
		t.Error("opened without its first page")
	}
	if found := beside(t, filepath.Join(temporary, "x")); found != "" {
		t.Errorf("refused: %s", found)
	}
}

// beside lists the directory of path.
func beside(t *testing.T, path string) string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestNoRoomForALook(t *testing.T) {
	path := written(t)
	temporary := mount(t, "tmpfs", "tmpfs", "size=64k")
	t.Setenv("TMPDIR", temporary)
	_, err := journal.OpenReadOnly(path)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "set TMPDIR") || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
	if found := beside(t, filepath.Join(temporary, "x")); found != "" {
		t.Error(found)
	}
}
