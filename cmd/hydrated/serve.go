package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"decant/service"
)

// goodbye is how long clients have to take their last answers when the service ends.
const goodbye = 3 * time.Second

// serve is the service, from its start to its end. reload reads the configuration anew.
func serve(c config, reload func() (config, error)) error {
	serveSafely()
	if err := harden(); err != nil {
		return refused("this process cannot be set up", err)
	}
	level := new(slog.LevelVar)
	level.Set(c.logLevel)
	lines := newPatientWriter(os.Stderr)
	defer lines.close()
	log := newLogger(lines, level)

	s, err := service.New(c.stateDir)
	if err != nil {
		return err
	}
	manager, err := service.NewManager(s, service.ManagerConfig{
		Running: c.running, RunningPerDisk: c.runningPerDisk, Waiting: c.waiting,
		Roots: c.roots, HistoryEvents: c.historyEvents, Log: log,
	})
	if err != nil {
		return err
	}
	server, err := newServer(c, s.StateDir(), manager, log)
	if err != nil {
		return errors.Join(err, manager.Close())
	}
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	var beside sync.WaitGroup
	defer beside.Wait()
	done := make(chan struct{})
	defer close(done)
	beside.Go(func() {
		obeySignals(done, log, stop, func() { reconfigure(reload, manager, level, log) })
	})
	beside.Go(func() { report(ctx, log, manager) })
	return work(ctx, stop, manager, server, log)
}

// work runs the manager and the server until ctx ends, or one of them does by itself,
// which is an error.
func work(ctx context.Context, stop context.CancelCauseFunc, manager *service.Manager, server *server, log *slog.Logger) error {
	var serving sync.WaitGroup
	var failed error
	serving.Go(func() {
		if failed = server.serve(); failed != nil {
			stop(failed)
		}
	})
	log.Info("hydrated is ready", "version", version(), "pid", os.Getpid())
	tell(log, daemon.SdNotifyReady)
	err := manager.Run(ctx)
	tell(log, daemon.SdNotifyStopping)
	farewell, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	if shutErr := server.api.Shutdown(farewell); shutErr != nil {
		log.Info("connections were cut off", "error", shutErr)
	}
	serving.Wait()
	if err == nil {
		err = failed
	}
	log.Info("hydrated has ended; unfinished migrations go on when it is started again")
	return err
}

// reconfigure takes over what may change while migrations run.
func reconfigure(reload func() (config, error), m *service.Manager, level *slog.LevelVar, log *slog.Logger) {
	tell(log, "RELOADING=1")
	defer tell(log, daemon.SdNotifyReady)
	c, err := reload()
	if err != nil {
		log.Error("the configuration is left as it was", "error", err)
		return
	}
	level.Set(c.logLevel)
	m.SetLimits(c.running, c.runningPerDisk, c.waiting)
	log.Info("limits and log level were read again", "running", c.running, "running_per_disk", c.runningPerDisk, "waiting", c.waiting)
}

func refused(problem string, err error) error {
	return &service.Error{Outcome: service.Refused, Problem: problem, Err: err}
}
