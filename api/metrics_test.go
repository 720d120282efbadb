package api

import (
	"context"
	"strings"
	"testing"
	"time"

	"decant/service"
	"decant/thin"
)

// wantSamples wants lines in a scrape.
func wantSamples(t *testing.T, scrape string, want ...string) {
	t.Helper()
	for _, line := range want {
		if !strings.Contains("\n"+scrape, "\n"+line+"\n") {
			t.Errorf("the metrics do not say %s", line)
		}
	}
}

func TestMetricsSayWhatTheManagerSays(t *testing.T) {
	f := newFake()
	pool := func(name, kind string, used int64) service.PoolStatus {
		return service.PoolStatus{
			PoolInfo:  thin.PoolInfo{Name: name, Kind: kind, MetadataBlocks: 100, MetadataUsedBlocks: 7},
			SizeBytes: 1000, UsedBytes: used, ReservedBytes: 30,
		}
	}
	f.pools = []service.PoolStatus{pool("a", "dm-thin", 10), pool("a", "lvm", 20), pool("a", "dm-thin", 99), {PoolInfo: thin.PoolInfo{Name: "b", Kind: "lvm"}, Problem: "gone"}}
	f.metrics = service.Metrics{
		BytesCopied: 5, BytesCommitted: 4, BytesDiscarded: 3, BytesVerified: 2, Retries: 1, ExtraBytes: 77,
		States:  map[service.State]int{service.StateRunning: 2},
		Commits: service.Histogram{UpperSeconds: []float64{0.1, 1}, Counts: []uint64{3, 2, 1}, Sum: 4.5, Count: 6},
		Flushes: service.Histogram{UpperSeconds: []float64{0.1, 1}, Counts: []uint64{0, 0, 0}},
	}
	v := serveUnix(t, fakeConfig(f))
	v.do("GET", "/v1/migrations/aa11", "")
	v.do("GET", "/v1/nonsense", "")
	r := v.do("GET", "/metrics", "")
	if r.status != 200 {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	wantSamples(t, r.body,
		"decant_copied_bytes_total 5", "decant_committed_bytes_total 4", "decant_discarded_bytes_total 3", "decant_verified_bytes_total 2",
		"decant_retries_total 1", "decant_extra_bytes 77",
		`decant_migrations{state="running"} 2`, `decant_migrations{state="failed"} 0`,
		`decant_commit_seconds_bucket{le="0.1"} 3`, `decant_commit_seconds_bucket{le="1"} 5`, `decant_commit_seconds_bucket{le="+Inf"} 6`,
		"decant_commit_seconds_sum 4.5", "decant_commit_seconds_count 6", "decant_flush_seconds_count 0",
		`decant_pool_used_bytes{kind="dm-thin",pool="a"} 10`, `decant_pool_used_bytes{kind="lvm",pool="a"} 20`,
		`decant_pool_reserved_bytes{kind="dm-thin",pool="a"} 30`, `decant_pool_metadata_used_blocks{kind="lvm",pool="a"} 7`,
		`decant_pool_problem{kind="lvm",pool="b"} 1`, `decant_pool_problem{kind="lvm",pool="a"} 0`,
		`decant_api_requests_total{code="200",method="GET",route="GET /v1/migrations/{id}"} 1`,
		`decant_api_requests_total{code="404",method="GET",route="/"} 1`,
	)
	if strings.Contains(r.body, `decant_pool_size_bytes{kind="lvm",pool="b"}`) {
		t.Error("a pool that is gone has a size")
	}
}

// fault 92: no client can make labels.
func TestMetricsHaveNoLabelsOfClients(t *testing.T) {
	v := serveUnix(t, fakeConfig(newFake()))
	for _, path := range []string{"/v1/x1", "/x2", "/v1/migrations/zz1", "/v1/migrations/zz2/pause"} {
		v.do("GET", path, "")
		v.do("BREW", path, "")
	}
	for line := range strings.Lines(v.do("GET", "/metrics", "").body) {
		if strings.HasPrefix(line, "decant_api_") && (strings.Contains(line, "zz") || strings.Contains(line, "/x") || strings.Contains(line, "BREW")) {
			t.Errorf("%s", line)
		}
	}
}

// stuckPools is a manager whose pools do not answer.
type stuckPools struct {
	*fakeManager
	release chan struct{}
}

func (s *stuckPools) Pools(context.Context) ([]service.PoolStatus, error) {
	<-s.release
	return nil, nil
}

// A pool that hangs with its device holds up no scrape for long, and is asked once.
func TestMetricsDoNotWaitForPools(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the time limit")
	}
	stuck := &stuckPools{newFake(), make(chan struct{})}
	v := serveUnix(t, Config{Manager: stuck, Version: "test"})
	begun := time.Now()
	for range 2 {
		if r := v.do("GET", "/metrics", ""); r.status != 200 || !strings.Contains(r.body, "decant_copied_bytes_total") {
			t.Errorf("status %d", r.status)
		}
	}
	if took := time.Since(begun); took > 4*poolsPatience {
		t.Errorf("it took %s", took)
	}
	close(stuck.release)
}
