package service

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const gib = 1 << 30

// The arithmetic of the proof, store by store.
func TestProofOfStores(t *testing.T) {
	t.Parallel()
	const block, slack = 64 * kib, minSlackBytes
	disk := supply{kind: fileSystemStore, name: "a disk", availableBytes: 100 * mib, blockBytes: 1, growthBytes: math.MaxInt64}
	pool := supply{kind: thinPoolStore, name: "pool vg/tp", availableBytes: 100 * mib, blockBytes: block, growthBytes: math.MaxInt64, isExact: true}
	above := pool
	above.isExact = false
	limit := supply{kind: limitStoreKind, name: "pool tank", availableBytes: 100 * mib, blockBytes: 1, growthBytes: math.MaxInt64}
	back, gone := returned{isReturned: true}, returned{}
	moving := claim{dataBytes: 580 * mib, regionBytes: mib, transactionBytes: 16 * mib, commitBytes: 16 * mib, discards: true}
	with := func(change func(*claim)) claim { c := moving; change(&c); return c }
	holding := func(s supply, change func(*supply)) supply { change(&s); return s }
	dataSlack := int64(580*mib/512) / block * block // more than the least
	if dataSlack < 580*mib/512 {
		dataSlack += block
	}
	for name, c := range map[string]struct {
		claim   claim
		supply  supply
		back    returned
		needed  int64
		fits    bool
		limited bool
	}{
		"two transactions of a file system":  {moving, disk, back, 32*mib + 580*mib/512, true, false},
		"all of another file system":         {moving, disk, gone, 580*mib + 580*mib/512, false, false},
		"the source is kept":                 {with(func(c *claim) { c.discards = false }), disk, back, 580*mib + 580*mib/512, false, false},
		"two transactions of a pool":         {moving, pool, back, 32*mib + dataSlack, true, false},
		"all of another pool":                {moving, pool, gone, 580*mib + dataSlack, false, false},
		"pieces of the source in the pool":   {with(func(c *claim) { c.fragments = 10 }), pool, back, 32*mib + dataSlack + 20*block, true, false},
		"extents that others share":          {with(func(c *claim) { c.sharedBytes = 90 * mib }), disk, back, 122*mib + 580*mib/512, false, true},
		"shared is more than there is":       {with(func(c *claim) { c.sharedBytes = gib }), disk, back, 612*mib + 580*mib/512, false, false},
		"smaller transactions":               {with(func(c *claim) { c.transactionBytes = 64 * mib }), pool, back, 128*mib + dataSlack, false, true},
		"not even one region":                {moving, holding(pool, func(s *supply) { s.availableBytes = 3 * mib }), back, 32*mib + dataSlack, false, false},
		"little data":                        {with(func(c *claim) { c.dataBytes = 3 * mib }), disk, back, 3*mib + slack, true, false},
		"no data at all":                     {with(func(c *claim) { c.dataBytes = 0 }), pool, gone, 0, true, false},
		"the limit of a pool is exact":       {with(func(c *claim) { c.dataBytes = 100 * mib }), limit, gone, 100 * mib, true, false},
		"one byte above the limit":           {with(func(c *claim) { c.dataBytes = 100*mib + 1 }), limit, gone, 100*mib + 1, false, false},
		"a file that can grow by little":     {moving, holding(disk, func(s *supply) { s.growthBytes = 5 * mib }), gone, 5 * mib, true, false},
		"a negative supply":                  {with(func(c *claim) { c.dataBytes = mib }), holding(pool, func(s *supply) { s.availableBytes = -mib }), back, 2 * mib, false, false},
		"btrfs keeps extents":                {moving, holding(disk, func(s *supply) { s.fsType = btrfs }), back, 32*mib + 580*mib/512 + btrfsExtentBytes, false, false},
		"a file above a pool has edges":      {moving, above, gone, 580*mib + 73*2*block + dataSlack, false, false},
		"regions that are no whole blocks":   {with(func(c *claim) { c.dataBytes = 10 * mib }), holding(pool, func(s *supply) { s.blockBytes = 192 * kib }), gone, 10*mib + 10*2*192*kib + 6*192*kib, true, false},
		"blocks that are larger than a move": {with(func(c *claim) { c.dataBytes, c.regionBytes, c.transactionBytes = 64*mib, 64*mib, 64*mib }), holding(pool, func(s *supply) { s.blockBytes = 64 * mib }), gone, 128 * mib, false, false},
	} {
		p := c.claim.proveStore(c.supply, c.back, nil)
		if p.NeededBytes != c.needed || p.fits != c.fits || p.LimitedTransactions != c.limited {
			t.Errorf("%s: %+v (fits %v), want %d, %v, %v", name, p, p.fits, c.needed, c.fits, c.limited)
		}
	}
}

// The store that is hardest to satisfy speaks for all, wherever it stands.
func TestProofOfTheScarcestStore(t *testing.T) {
	t.Parallel()
	c := claim{dataBytes: mib, commitBytes: mib}
	wide := StoreProof{Kind: fileSystemStore, Name: "wide", AvailableBytes: 100, NeededBytes: 10, fits: true}
	tight := StoreProof{Kind: thinPoolStore, Name: "pool vg/tight", AvailableBytes: 100, NeededBytes: 90, fits: true, FreedReturns: true}
	limited := StoreProof{Kind: thinPoolStore, Name: "limited", AvailableBytes: 50, NeededBytes: 90, LimitedTransactions: true}
	short := StoreProof{Kind: fileSystemStore, Name: "short", AvailableBytes: 80, NeededBytes: 90}
	for _, x := range []struct {
		stores []StoreProof
		want   StoreProof
		says   string
	}{
		{[]StoreProof{wide}, wide, "fits: at most 10 B"},
		{[]StoreProof{wide, tight}, tight, "in pool vg/tight"},
		{[]StoreProof{tight, limited, wide}, limited, "transactions are kept smaller"},
		{[]StoreProof{limited, short, tight}, short, "does not fit"},
	} {
		p := c.prove(x.stores)
		if p.NeededExtraBytes != x.want.NeededBytes || p.AvailableBytes != x.want.AvailableBytes || p.SameSpace != x.want.FreedReturns ||
			p.LimitedTransactions != x.want.LimitedTransactions || !p.Bounded || !strings.Contains(p.Verdict, x.says) || len(p.Stores) != len(x.stores) {
			t.Errorf("%+v: %+v", x.stores, p)
		}
	}
	if p := c.prove(nil); p.Bounded || p.AvailableBytes != math.MaxInt64 {
		t.Errorf("without a store: %+v", p)
	}
}

// More data, larger blocks and more pieces never need less.
func TestProofIsMonotonous(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := claim{
			dataBytes:        rapid.Int64Range(0, 1<<40).Draw(t, "data"),
			regionBytes:      1 << rapid.IntRange(12, 30).Draw(t, "region"),
			transactionBytes: rapid.Int64Range(1<<12, 1<<32).Draw(t, "transaction"),
			discards:         rapid.Bool().Draw(t, "discards"),
			sharedBytes:      rapid.Int64Range(0, 1<<40).Draw(t, "shared"),
			fragments:        rapid.Int64Range(0, 1<<20).Draw(t, "fragments"),
		}
		s := supply{
			kind: thinPoolStore, blockBytes: 64 * kib * rapid.Int64Range(1, 1<<14).Draw(t, "blocks"),
			growthBytes: math.MaxInt64, isExact: rapid.Bool().Draw(t, "exact"),
		}
		r := returned{isReturned: rapid.Bool().Draw(t, "returned")}
		before := c.proveStore(s, r, nil)
		if before.NeededBytes < min(c.dataBytes, 2*c.transactionBytes) || before.NeededBytes < 0 {
			t.Fatalf("%+v of %+v", before, c)
		}
		more := c
		more.dataBytes += rapid.Int64Range(0, 1<<30).Draw(t, "more data")
		more.fragments += rapid.Int64Range(0, 100).Draw(t, "more fragments")
		if after := more.proveStore(s, r, nil); after.NeededBytes < before.NeededBytes {
			t.Errorf("%+v, then %+v", before, after)
		}
		never := r
		never.isReturned = false
		if after := c.proveStore(s, never, nil); after.NeededBytes < min(before.NeededBytes, c.dataBytes) {
			t.Errorf("%+v with, %+v without what is freed", before, after)
		}
	})
}
