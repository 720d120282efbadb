package service

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"decant/dm"
	"decant/dm/clonetarget"
)

// guardianVariable holds the id of the migration whose live device a guardian looks
// after, and makes a process of this program one.
const guardianVariable = "DECANT_GUARDIAN"

// guardian is a process that waits for the end of this one, and sees to it then that the
// live device is not left suspended, nor copying in the background with nobody to watch.
// The latter it sees to once a second as well: this process may have been stopped. It has
// nothing on the device itself, and is in a session of its own, so that what ends this
// process from a terminal does not end it too.
type guardian struct {
	cmd *exec.Cmd
	end io.Closer // of the pipe that ends with this process
}

// startGuardian needs a program that calls BecomeGuardian first of all.
func startGuardian(id string) (*guardian, error) {
	cmd := exec.Command("/proc/self/exe") // also if its file has been replaced since
	cmd.Args[0] = "decant-guardian"
	cmd.Env = append(os.Environ(), guardianVariable+"="+id)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	end, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, end.Close())
	}
	return &guardian{cmd: cmd, end: end}, nil
}

// stop has the guardian look once more, and waits for its end. How it ends is of no
// interest: it was there for an end that did not come.
func (g *guardian) stop() {
	_ = g.end.Close()
	_ = g.cmd.Wait()
}

// BecomeGuardian makes this process a guardian if it was started as one by another
// process of the same program, and does not return then. A program calls it first of all.
func BecomeGuardian() {
	id := os.Getenv(guardianVariable)
	if id == "" {
		return
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with the other process, whatever became of it
		close(ended)
	}()
	os.Exit(int(guardLive(id, ended)))
}

// guardLive is the work of a guardian.
func guardLive(id string, ended <-chan struct{}) Outcome {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			if err := releaseLive(id); err != nil {
				return Failed
			}
			return Success
		case <-tick.C:
			// Who works on the device enables it again. What fails is tried again.
			_ = onLive(id, quietClone)
		}
	}
}

// onLive does something with the live device of a migration if there is one.
func onLive(id string, do func(*liveDevice, dm.Info) error) (err error) {
	d, err := openLiveDevice("", id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	info, found, err := d.find()
	if err != nil || !found || !info.ActiveTable {
		return err
	}
	return do(d, info)
}

// releaseLive lets I/O of a live device go on, and lets nothing be copied in the background.
func releaseLive(id string) error {
	return onLive(id, func(d *liveDevice, info dm.Info) error {
		if info.Suspended {
			// A table that was loaded takes effect by this: it was meant to.
			if err := d.control.Resume(info.Name, liveRules...); err != nil {
				return err
			}
		}
		return quietClone(d, info)
	})
}

// quietClone lets a dm-clone begin no copy in the background.
func quietClone(d *liveDevice, info dm.Info) error {
	table, err := d.control.Table(info.Name)
	if err != nil || len(table) != 1 || table[0].Type != clonetarget.Type {
		return err
	}
	_, err = d.control.Message(info.Name, 0, clonetarget.Disable)
	return err
}
