package api

import (
	"context"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"decant/service"
)

// metrics are what Prometheus can ask for. No label has more values than there are
// routes, states or pools: a client cannot make any.
type metrics struct {
	registry       *prometheus.Registry
	requests       *prometheus.CounterVec
	seconds        *prometheus.HistogramVec
	refusedStreams prometheus.Counter
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "decant_api_requests_total", Help: "Requests to the API by route, method and status.",
		}, []string{"route", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "decant_api_request_seconds", Help: "Time that requests to the API took, event streams left out.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60},
		}, []string{"route"}),
		refusedStreams: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "decant_api_event_streams_refused_total", Help: "Event streams that were refused because there were too many.",
		}),
	}
	m.registry.MustRegister(m.requests, m.seconds, m.refusedStreams,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "decant_api_event_streams", Help: "Event streams that are open.",
		}, func() float64 { return float64(len(s.subscribers)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "decant_api_connections", Help: "Connections that are open.",
		}, func() float64 { return float64(len(s.slots)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "decant_build_info", Help: "1, with the version of the service and of Go as labels.",
			ConstLabels: prometheus.Labels{"version": s.Config.Version, "goversion": runtime.Version()},
		}, func() float64 { return 1 }),
		&managerCollector{manager: s.Manager, pools: &poolWatch{manager: s.Manager}})
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 30 * time.Second})
}

// request counts one.
func (m *metrics) request(route, method string, status int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch:
	default:
		method = "other"
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	if !isStream(route) {
		m.seconds.WithLabelValues(route).Observe(took.Seconds())
	}
}

func isStream(route string) bool {
	return route == "GET /v1/events" || route == "GET /v1/migrations/{id}/events"
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("decant_"+name, help, labels, nil)
}

// What the manager counts.
var (
	descCopied     = desc("copied_bytes_total", "Bytes that migrations have copied since the service was started.")
	descCommitted  = desc("committed_bytes_total", "Bytes that are recorded durably as hydrated, since the service was started.")
	descDiscarded  = desc("discarded_bytes_total", "Bytes that were discarded on sources since the service was started.")
	descVerified   = desc("verified_bytes_total", "Bytes that were read back and compared since the service was started.")
	descRetries    = desc("retries_total", "Runs that were begun again after one had stopped.")
	descEvents     = desc("events_total", "Events of migrations.")
	descTooSlow    = desc("event_readers_too_slow_total", "Readers of events that lost some because they were too slow.")
	descReaders    = desc("event_readers", "Readers of events.")
	descTooMany    = desc("migrations_refused_total", "Requests for migrations that were refused because too many were unfinished.")
	descExtra      = desc("extra_bytes", "Most space that the running migrations have taken together, beyond what their sources took.")
	descMigrations = desc("migrations", "Migrations by state.", "state")
	descCommit     = desc("commit_seconds", "Time that commits of metadata transactions took.")
	descFlush      = desc("flush_seconds", "Time that flushes of destinations took.")
)

// What pools tell.
var (
	descPoolSize     = desc("pool_size_bytes", "Size of the pool's data.", "pool", "kind")
	descPoolUsed     = desc("pool_used_bytes", "Data that is allocated in the pool.", "pool", "kind")
	descPoolReserved = desc("pool_reserved_bytes", "Data that is promised to volumes and not allocated by them yet.", "pool", "kind")
	descPoolMeta     = desc("pool_metadata_blocks", "Blocks of the pool's metadata.", "pool", "kind")
	descPoolMetaUsed = desc("pool_metadata_used_blocks", "Blocks of the pool's metadata that are in use.", "pool", "kind")
	descPoolProblem  = desc("pool_problem", "1 if the pool cannot be looked at, 0 if it can.", "pool", "kind")
)

var allStates = []service.State{
	service.StateQueued, service.StateRunning, service.StatePaused, service.StateStopped, service.StateFailed,
	service.StateDone, service.StateCancelled, service.StateReversed, service.StateExternal,
}

// managerCollector asks the manager when it is asked.
type managerCollector struct {
	manager Manager
	pools   *poolWatch
}

// Describe implements prometheus.Collector.
func (c *managerCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descCopied, descCommitted, descDiscarded, descVerified, descRetries, descEvents, descTooSlow, descReaders, descTooMany,
		descExtra, descMigrations, descCommit, descFlush,
		descPoolSize, descPoolUsed, descPoolReserved, descPoolMeta, descPoolMetaUsed, descPoolProblem,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *managerCollector) Collect(out chan<- prometheus.Metric) {
	m := c.manager.Metrics()
	for _, v := range []struct {
		desc  *prometheus.Desc
		kind  prometheus.ValueType
		value float64
	}{
		{descCopied, prometheus.CounterValue, float64(m.BytesCopied)},
		{descCommitted, prometheus.CounterValue, float64(m.BytesCommitted)},
		{descDiscarded, prometheus.CounterValue, float64(m.BytesDiscarded)},
		{descVerified, prometheus.CounterValue, float64(m.BytesVerified)},
		{descRetries, prometheus.CounterValue, float64(m.Retries)},
		{descEvents, prometheus.CounterValue, float64(m.Events)},
		{descTooSlow, prometheus.CounterValue, float64(m.SubscribersTooSlow)},
		{descTooMany, prometheus.CounterValue, float64(m.RefusedForTooManyNow)},
		{descReaders, prometheus.GaugeValue, float64(m.Subscribers)},
		{descExtra, prometheus.GaugeValue, float64(m.ExtraBytes)},
	} {
		out <- prometheus.MustNewConstMetric(v.desc, v.kind, v.value)
	}
	for _, state := range allStates {
		out <- prometheus.MustNewConstMetric(descMigrations, prometheus.GaugeValue, float64(m.States[state]), string(state))
	}
	out <- histogram(descCommit, m.Commits)
	out <- histogram(descFlush, m.Flushes)
	seen := map[[2]string]bool{}
	for _, p := range c.pools.current() {
		key := [2]string{p.Name, p.Kind}
		if !seen[key] { // a metric that came twice would spoil all of them
			collectPool(out, p)
		}
		seen[key] = true
	}
}

func histogram(d *prometheus.Desc, h service.Histogram) prometheus.Metric {
	buckets := make(map[float64]uint64, len(h.UpperSeconds))
	var below uint64
	for i, upper := range h.UpperSeconds {
		below += h.Counts[i]
		buckets[upper] = below
	}
	return prometheus.MustNewConstHistogram(d, h.Count, h.Sum, buckets)
}

func collectPool(out chan<- prometheus.Metric, p service.PoolStatus) {
	gauge := func(d *prometheus.Desc, value float64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, p.Name, p.Kind)
	}
	if p.Problem != "" {
		gauge(descPoolProblem, 1)
		return
	}
	gauge(descPoolProblem, 0)
	gauge(descPoolSize, float64(p.SizeBytes))
	gauge(descPoolUsed, float64(p.UsedBytes))
	gauge(descPoolReserved, float64(p.ReservedBytes))
	if p.MetadataBlocks > 0 {
		gauge(descPoolMeta, float64(p.MetadataBlocks))
		gauge(descPoolMetaUsed, float64(p.MetadataUsedBlocks))
	}
}

const (
	poolsFreshFor   = 10 * time.Second
	poolsPatience   = 5 * time.Second
	poolsForgotten  = 5 * time.Minute
	poolLookTimeout = time.Minute
)

// poolWatch looks at the pools, which may take commands and may hang with a device:
// one look at a time, whoever asks, and nobody waits for it longer than poolsPatience.
type poolWatch struct {
	manager Manager

	mu      sync.Mutex
	pools   []service.PoolStatus
	taken   time.Time
	looking chan struct{} // closed when the look that is under way has ended; nil: none is
}

// current is the pools as of the last look, none if that was too long ago.
func (w *poolWatch) current() []service.PoolStatus {
	w.mu.Lock()
	if time.Since(w.taken) < poolsFreshFor {
		defer w.mu.Unlock()
		return w.pools
	}
	if w.looking == nil {
		w.looking = make(chan struct{})
		go w.look(w.looking)
	}
	looking := w.looking
	w.mu.Unlock()
	select {
	case <-looking:
	case <-time.After(poolsPatience):
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.taken) > poolsForgotten {
		return nil
	}
	return w.pools
}

func (w *poolWatch) look(done chan struct{}) {
	ctx, cancel := context.WithTimeout(background, poolLookTimeout)
	defer cancel()
	pools, err := w.manager.Pools(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.pools, w.taken = pools, time.Now()
	}
	w.looking = nil
	close(done)
}
