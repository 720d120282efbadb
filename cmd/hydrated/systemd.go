package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"decant/service"
)

// tell sends systemd a line about this process. Where there is no systemd to be told it
// does nothing.
func tell(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd cannot be told", "state", state, "error", err)
	}
}

// handedOver are the listeners that systemd has opened for this process.
func handedOver() ([]net.Listener, error) {
	listeners, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take over the sockets of systemd: %w", err)
	}
	var out []net.Listener
	for _, l := range listeners {
		if l != nil { // a descriptor that is no socket to listen on
			out = append(out, l)
		}
	}
	return out, nil
}

// statusPeriod is how often systemd is told what goes on, at most.
const statusPeriod = 5 * time.Second

// report tells systemd that this process is alive, as often as it wants to be told, and
// what the migrations do, until ctx ends. Alive is who answers: a manager whose lock is
// never given up is not. A medium that does not answer holds up only its own migration.
func report(ctx context.Context, log *slog.Logger, m *service.Manager) {
	period := statusPeriod
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the watchdog of systemd is not understood", "error", err)
	}
	if watchdog > 0 {
		period = min(period, watchdog/3)
	}
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	told := ""
	for {
		if text := summary(m.Metrics()); text != told {
			tell(log, "STATUS="+text)
			told = text
		}
		if watchdog > 0 {
			tell(log, daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func summary(m service.Metrics) string {
	return fmt.Sprintf("%d running, %d queued, %d paused, %d stopped or failed", m.States[service.StateRunning],
		m.States[service.StateQueued], m.States[service.StatePaused], m.States[service.StateStopped]+m.States[service.StateFailed])
}
