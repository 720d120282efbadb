//go:build testkernel

package dm

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func run(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
}

const (
	poolBlockBytes = 64 << 10
	poolBlocks     = 64
	poolLowWater   = 32 // blocks
)

// newPool makes a blank thin pool named "pool", with an event when half of it is used.
func newPool(t *testing.T, c *Control) {
	t.Helper()
	metadata, _ := disks(t)
	must(t, pwrite(metadata, 0, 0)) // a pool is made where the superblock is zero
	activate(t, c, "pool", poolTable(t, "1 error_if_no_space"))
}

func poolTable(t *testing.T, features string) Target {
	t.Helper()
	metadata, data := disks(t)
	return Target{
		0, poolBlocks * poolBlockBytes / SectorBytes, "thin-pool",
		fmt.Sprintf("%s %s %d %d %s", metadata, data, poolBlockBytes/SectorBytes, poolLowWater, features),
	}
}

func send(t *testing.T, c *Control, message string) {
	t.Helper()
	if answer, err := c.Message("pool", 0, message); err != nil || answer != "" {
		t.Fatalf("%s: %q, %v", message, answer, err)
	}
}

func newThin(t *testing.T, c *Control, name string, id int) string {
	t.Helper()
	return activate(t, c, name, Target{0, poolBlocks * poolBlockBytes / SectorBytes, "thin", fmt.Sprintf("%s %d", Path("pool"), id)})
}

// usedBlocks is from "TRANSACTION USED/TOTAL-METADATA USED/TOTAL-DATA ...".
func usedBlocks(t *testing.T, c *Control) (transaction uint64, used, total int) {
	t.Helper()
	status, err := c.Status("pool")
	must(t, err)
	var metadataUsed, metadataTotal int
	if _, err := fmt.Sscanf(status[0].Params, "%d %d/%d %d/%d", &transaction, &metadataUsed, &metadataTotal, &used, &total); err != nil {
		t.Fatalf("status %q: %v", status[0].Params, err)
	}
	return transaction, used, total
}

func wantUsed(t *testing.T, c *Control, want int) {
	t.Helper()
	if _, used, total := usedBlocks(t, c); used != want || total != poolBlocks {
		t.Errorf("%d of %d blocks used, want %d of %d", used, total, want, poolBlocks)
	}
}

func TestKernelPoolMessages(t *testing.T) {
	c := open(t)
	newPool(t, c)
	send(t, c, "create_thin 0")
	volume := newThin(t, c, "thin0", 0)
	must(t, pwrite(volume, 0, 1))
	wantUsed(t, c, 1)

	must(t, c.Suspend("thin0", SuspendOptions{}))
	send(t, c, "create_snap 1 0")
	must(t, c.Resume("thin0"))
	snapshot := newThin(t, c, "thin1", 1)
	must(t, pwrite(volume, 0, 2))
	wantByte(t, snapshot, 0, 1)
	wantByte(t, volume, 0, 2)
	wantUsed(t, c, 2)

	must(t, c.Remove("thin1"))
	send(t, c, "delete 1")
	wantUsed(t, c, 1)

	send(t, c, "set_transaction_id 0 7")
	if transaction, _, _ := usedBlocks(t, c); transaction != 7 {
		t.Errorf("transaction %d", transaction)
	}
}

// fault 40: the pool's answers to ids and transactions that are not as expected.
func TestKernelFault40PoolRefuses(t *testing.T) {
	c := open(t)
	newPool(t, c)
	send(t, c, "create_thin 5")
	for message, want := range map[string]unix.Errno{
		"create_thin 5":          unix.EEXIST,
		"create_snap 5 5":        unix.EEXIST,
		"create_snap 6 99":       unix.ENODATA,
		"delete 99":              unix.ENODATA,
		"set_transaction_id 3 4": unix.EINVAL,
		"nonsense":               unix.EINVAL,
	} {
		t.Run(message, func(t *testing.T) {
			_, err := c.Message("pool", 0, message)
			wantErrno(t, err, want)
		})
	}
}

func TestKernelMessageWithAnswer(t *testing.T) {
	c := open(t)
	activate(t, c, "stats", zero(64*mib))
	answer, err := c.Message("stats", 0, "@stats_create - /2000")
	must(t, err)
	if answer != "0" {
		t.Errorf("the first region got id %q", answer)
	}
	if answer, err = c.Message("stats", 0, "@stats_list"); err != nil || !strings.HasPrefix(answer, "0: 0+") {
		t.Errorf("list %q, %v", answer, err)
	}
	if _, err := c.Message("stats", 0, "@stats_print 0"); !errors.Is(err, ErrAnswerTooLong) {
		t.Errorf("2000 lines: %v", err)
	}
}

// dirtyHalf writes as many blocks as the pool has above its low water mark.
func dirtyHalf(t *testing.T, volume string) {
	t.Helper()
	for i := range int64(poolBlocks - poolLowWater + 1) {
		must(t, pwrite(volume, i*poolBlockBytes, 1))
	}
}

// fault 35: a write that a full pool queues never completes, so a suspend that flushes
// would wait for it; one with NoFlush does not. Told to refuse, the pool fails the write.
func TestKernelFault35SuspendWithoutSpace(t *testing.T) {
	c := open(t)
	newPool(t, c)
	must(t, c.Load("pool", []Target{poolTable(t, "0")}))
	must(t, c.Resume("pool"))
	send(t, c, "create_thin 0")
	send(t, c, "create_thin 1")
	full, extra := newThin(t, c, "thin0", 0), newThin(t, c, "thin1", 1)
	for i := range int64(poolBlocks) {
		must(t, pwrite(full, i*poolBlockBytes, 1))
	}
	written := async(func() error { return pwrite(extra, 0, 1) })
	time.Sleep(200 * time.Millisecond)
	suspended := async(func() error { return c.Suspend("thin1", SuspendOptions{NoFlush: true}) })
	must(t, within(t, 5*time.Second, "suspend without flush", suspended))
	must(t, c.Resume("thin1"))

	must(t, c.Load("pool", []Target{poolTable(t, "1 error_if_no_space")}))
	must(t, within(t, 5*time.Second, "exchange of the pool's table", async(func() error { return c.ResumeNoFlush("pool") })))
	if err := within(t, 5*time.Second, "queued write", written); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("the queued write: %v", err)
	}
}

type event struct {
	number uint32
	err    error
}

// fault 35: the low water mark is an event, which wakes whoever waits for it.
func TestKernelFault35LowWaterIsAnEvent(t *testing.T) {
	waits := map[string]func(c *Control, ctx context.Context, after uint32) (uint32, error){
		"ioctl": func(c *Control, _ context.Context, after uint32) (uint32, error) { return c.WaitEvent("pool", after) },
		"poll": func(c *Control, ctx context.Context, after uint32) (uint32, error) {
			return c.WaitEventContext(ctx, "pool", after)
		},
	}
	for name, wait := range waits {
		t.Run(name, func(t *testing.T) {
			c := open(t)
			newPool(t, c)
			send(t, c, "create_thin 0")
			volume := newThin(t, c, "thin0", 0)
			before, err := c.Info("pool")
			must(t, err)

			woken := make(chan event, 1)
			go func() {
				number, err := wait(c, t.Context(), before.EventNumber)
				woken <- event{number, err}
			}()
			select {
			case e := <-woken:
				t.Fatalf("woken without an event: %+v", e)
			case <-time.After(200 * time.Millisecond):
			}
			dirtyHalf(t, volume)
			e := within(t, 10*time.Second, "event", woken)
			if e.err != nil || e.number <= before.EventNumber {
				t.Errorf("event %d after %d, %v", e.number, before.EventNumber, e.err)
			}
			// An event of the past does not have to be waited for.
			if number, err := wait(c, t.Context(), before.EventNumber); err != nil || number < e.number {
				t.Errorf("once more: event %d, %v", number, err)
			}
		})
	}
}

func TestKernelWaitEndsWithContext(t *testing.T) {
	c := open(t)
	activate(t, c, "quiet", zero(mib))
	info, err := c.Info("quiet")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := async(func() error { _, err := c.WaitEventContext(ctx, "quiet", info.EventNumber); return err })
	time.Sleep(50 * time.Millisecond)
	cancel()
	if err := within(t, 5*time.Second, "cancelled wait", done); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A wait does not keep a device from being removed; the removal ends the wait.
func TestKernelRemoveEndsWait(t *testing.T) {
	c := open(t)
	for name, wait := range map[string]func(after uint32) error{
		"ioctl": func(after uint32) error { _, err := c.WaitEvent("brief", after); return err },
		"poll":  func(after uint32) error { _, err := c.WaitEventContext(t.Context(), "brief", after); return err },
	} {
		t.Run(name, func(t *testing.T) {
			activate(t, c, "brief", zero(mib))
			info, err := c.Info("brief")
			must(t, err)
			waited := async(func() error { return wait(info.EventNumber) })
			time.Sleep(50 * time.Millisecond)
			removed := async(func() error { return c.Remove("brief") })
			must(t, within(t, 5*time.Second, "remove", removed))
			if err := within(t, 5*time.Second, "wait", waited); err != nil && !errors.Is(err, unix.ENXIO) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A Watch whose Wait was cancelled can be used again, and loses no event between Arm
// and Wait.
func TestKernelWatch(t *testing.T) {
	c := open(t)
	activate(t, c, "watched", zero(mib))
	w, err := c.Watch()
	must(t, err)
	defer func() { must(t, w.Close()) }()

	must(t, w.Arm())
	for range 3 {
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := w.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nothing happened, got %v", err)
		}
		cancel()
	}
	must(t, w.Arm())
	t.Cleanup(func() { must(t, c.Remove("renamed")) })
	must(t, c.Rename("watched", "renamed")) // which is an event
	must(t, within(t, 5*time.Second, "event between Arm and Wait", async(func() error { return w.Wait(t.Context()) })))

	must(t, w.Arm()) // the event is of the past now
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing happened since, got %v", err)
	}
}
