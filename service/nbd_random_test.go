package service

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"decant/nbd"
)

// mishaps happen to a migration from an export, one for each run, at random moments.
type mishaps struct {
	*site
	disk, other *remoteDisk
	server      *remote
	rng         *rand.Rand
}

// run runs do with one mishap in it, and says whether it came to its end.
func (m *mishaps) run(do func(context.Context, Sink) error) (done bool) {
	m.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	after, what := m.rng.IntN(12), m.rng.IntN(5)
	happens := func() {
		switch what {
		case 0: // somebody stops the program
			cancel()
		case 1: // the server is restarted, and loses what it had not flushed
			m.server.end()
			m.disk.lose()
			m.server = m.serve(nbd.Export{Device: m.disk})
		case 2: // it is gone
			m.server.end()
			m.disk.lose()
		case 3: // another image is there instead
			m.server.end()
			m.disk.lose()
			m.server = m.serve(nbd.Export{Device: m.other})
		case 4: // nothing
		}
	}
	err := do(ctx, func(e Event) {
		if e.Event == CommittedTx || e.Event == Started {
			if after == 0 {
				happens()
			}
			after--
		}
	})
	m.server.end()
	if what != 2 && what != 3 && what != 1 {
		m.disk.lose()
	}
	m.server = m.serve(nbd.Export{Device: m.disk})
	if m.other.changed() {
		m.Fatalf("after mishap %d another image was changed: %v; %v", what, m.other.changes, err)
	}
	if outcome := OutcomeOf(err); err != nil && outcome != Stopped && outcome != Refused {
		m.Fatalf("after mishap %d: %v", what, err)
	}
	return err == nil
}

// Whatever happens to the program and the server, on the way there and back, every byte
// is where it should be, and another image that came in between was not touched.
func TestExportThroughMishaps(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			const size = 6*mib + 512
			s, disk, content := remoteSite(t, size)
			s.nbdOptions.TotalTime = 300 * time.Millisecond
			other := newRemoteDisk(append(bytes.Clone(content[1:]), 1))
			m := &mishaps{site: s, disk: disk, other: other, rng: rand.New(rand.NewPCG(seed, 5))}
			m.server = s.serve(nbd.Export{Device: disk})
			o := moving()
			o.BytesPerSecond = 16 * mib
			runs := 1
			for ; !m.run(func(ctx context.Context, sink Sink) error {
				return s.Migrate(ctx, s.request(s.uri(), "moved", o), sink)
			}); runs++ {
				if runs > 60 {
					t.Fatal("it does not come to an end")
				}
			}
			s.wantContent("moved", content)
			if _, durable := disk.allocated(); durable > 0 {
				t.Errorf("%d bytes are left at the server", durable)
			}
			id := s.only()
			for ; !m.run(func(ctx context.Context, sink Sink) error { return s.Reverse(ctx, id, sink) }); runs++ {
				if runs > 120 {
					t.Fatal("it does not come back")
				}
			}
			disk.lose()
			if !bytes.Equal(disk.content(), content) {
				t.Error("the export does not hold what it held")
			}
			t.Logf("%d runs", runs)
		})
	}
}
