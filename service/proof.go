package service

import (
	"fmt"
	"math"
)

// StoreProof is the proof for one of the stores that the destination takes its space
// from: a file system, the limit of a directory pool, a thin pool, or the file system
// with a file that a pool below keeps its data in.
type StoreProof struct {
	Kind                string `json:"kind"` // file-system, pool-limit, thin-pool
	Name                string `json:"name"`
	AvailableBytes      int64  `json:"available_bytes"`        // what may be taken, the reserve kept
	ReserveBytes        int64  `json:"reserve_bytes"`          // what is never touched
	NeededBytes         int64  `json:"needed_bytes"`           // most that will be taken at a time
	SlackBytes          int64  `json:"slack_bytes"`            // part of it, for metadata and rounding
	BlockBytes          int64  `json:"block_bytes,omitempty"`  // of a thin pool: allocated as a whole
	FreedReturns        bool   `json:"freed_space_returns"`    // what the source frees comes back to it
	LimitedTransactions bool   `json:"limited_transactions"`   // it holds less than two full transactions
	FreedReturnsNot     string `json:"not_returned,omitempty"` // why what the source frees here does not come back
	fits                bool
	hint                func(missingBytes int64) string
}

// claim is what a migration is going to take.
type claim struct {
	dataBytes        int64 // to be copied, in whole regions
	regionBytes      int64
	transactionBytes int64
	commitBytes      int64 // as the user gave it
	discards         bool
	sharedBytes      int64 // of the source: emptying it there frees nothing
	fragments        int64 // pieces of the source on its file system; 0 if it is a device itself
}

// returned says whether what the source frees comes back to a store.
type returned struct {
	isReturned bool
	why        string // not; empty where the source takes nothing of the store
}

const (
	minSlackBytes = 1 << 20
	maxSlackBytes = 64 << 20
)

// proveStore holds what a migration takes of a store against what there is.
//
// Where freed space comes back, two transactions exist twice at most, and besides them
// what is copied and does not come back: extents that others share, and the blocks of
// a pool that pieces of the source begin and end in.
func (c claim) proveStore(s supply, r returned, hint func(missingBytes int64) string) StoreProof {
	p := StoreProof{
		Kind: s.kind, Name: s.name, AvailableBytes: s.availableBytes, ReserveBytes: s.reserveBytes,
		FreedReturns: r.isReturned, FreedReturnsNot: r.why, hint: hint,
	}
	data := c.dataBytes
	if s.kind == thinPoolStore {
		p.BlockBytes = s.blockBytes
		data += c.roundingBytes(s)
	}
	if data > 0 && s.kind != limitStoreKind {
		p.SlackBytes = min(max(c.dataBytes/512, minSlackBytes), maxSlackBytes)
		p.SlackBytes = roundUp(p.SlackBytes, s.blockBytes)
	}
	p.NeededBytes = data + p.SlackBytes
	smallest := int64(math.MaxInt64)
	if c.discards && r.isReturned {
		if s.fsType == btrfs && data > 0 {
			p.SlackBytes += btrfsExtentBytes
		}
		lost := c.sharedBytes
		if s.kind == thinPoolStore {
			lost += 2 * s.blockBytes * c.fragments
		}
		p.SlackBytes += min(data, lost)
		p.NeededBytes = min(data, 2*max(c.transactionBytes, roundUp(c.regionBytes, s.blockBytes))) + p.SlackBytes
		smallest = p.SlackBytes + 2*roundUp(c.regionBytes, s.blockBytes)
	}
	p.NeededBytes = min(p.NeededBytes, s.growthBytes)
	p.fits = p.NeededBytes <= p.AvailableBytes
	p.LimitedTransactions = !p.fits && p.AvailableBytes >= smallest
	return p
}

// roundingBytes is what a thin pool allocates beyond the bytes that are written, for
// blocks that are written in part. Regions of a volume that are no multiples of the
// block have an edge on either side; a file system puts pieces wherever it likes, but
// keeps together what comes one after the other.
func (c claim) roundingBytes(s supply) int64 {
	if c.dataBytes == 0 || s.isExact && c.regionBytes%s.blockBytes == 0 {
		return 0
	}
	pieceBytes := c.regionBytes
	if !s.isExact {
		const contiguousBytes = 8 << 20
		pieceBytes = max(pieceBytes, contiguousBytes)
	}
	return 2 * s.blockBytes * ((c.dataBytes + pieceBytes - 1) / pieceBytes)
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// prove sums up the proofs of all stores: the one that is hardest to satisfy speaks for
// all. Without any store the destination has its space.
func (c claim) prove(stores []StoreProof) SpaceProof {
	p := SpaceProof{DataBytes: c.dataBytes, Stores: stores, Bounded: len(stores) > 0}
	if !p.Bounded {
		p.AvailableBytes = math.MaxInt64
		p.Verdict = "the destination is a block device, its space is its own"
		return p
	}
	hardest := stores[0]
	for _, s := range stores[1:] {
		if s.harderThan(hardest) {
			hardest = s
		}
	}
	p.NeededExtraBytes, p.SlackBytes = hardest.NeededBytes, hardest.SlackBytes
	p.AvailableBytes, p.ReserveBytes = hardest.AvailableBytes, hardest.ReserveBytes
	p.SameSpace, p.LimitedTransactions = hardest.FreedReturns, hardest.LimitedTransactions
	p.Verdict = hardest.words(c.commitBytes)
	return p
}

// harderThan compares how badly two stores do.
func (p StoreProof) harderThan(o StoreProof) bool {
	rank := func(p StoreProof) int {
		switch {
		case p.fits:
			return 0
		case p.LimitedTransactions:
			return 1
		}
		return 2
	}
	if rank(p) != rank(o) {
		return rank(p) > rank(o)
	}
	return p.NeededBytes-p.AvailableBytes > o.NeededBytes-o.AvailableBytes
}

// words is the proof as a sentence.
func (p StoreProof) words(commitBytes int64) string {
	available := fmt.Sprintf("%s are available", bytesText(p.AvailableBytes))
	if p.Kind != fileSystemStore {
		available += " in " + p.Name
	}
	switch {
	case p.LimitedTransactions:
		return fmt.Sprintf("fits: %s, so that transactions are kept smaller than %s", available, bytesText(commitBytes))
	case p.fits:
		return fmt.Sprintf("fits: at most %s of extra space, %s", bytesText(p.NeededBytes), available)
	}
	return fmt.Sprintf("does not fit: %s of extra space are needed, %s", bytesText(p.NeededBytes), available)
}
