package persistent

import "math"

const (
	nodeHeaderBytes = 32
	keyBytes        = 8
	childBytes      = 8
	flagInternal    = 1
	flagLeaf        = 2
	// maxDepth is far more than a tree that fits on the largest device has.
	maxDepth = 32
)

// Tree is a B-tree: inner nodes lead from a key to the child that holds it and what
// follows, leaves lead from a key to a value.
type Tree struct {
	Blocks     *Blocks
	Holder     uint64 // the block that names the root
	Root       uint64
	ValueBytes uint32
	// Seen, if there is one, says of each node whether what hangs on it is shared.
	Seen func(block uint64) (shared bool)
	// SkipShared leaves out what is shared.
	SkipShared bool
}

// Entry of a leaf.
type Entry struct {
	Key    uint64
	Value  []byte // not to be written to
	Block  uint64 // the leaf
	Last   bool   // of the leaf
	Shared bool   // as Tree.Seen says of the leaf or a node above it
}

// node is a checked one.
type node struct {
	format  *Format
	block   uint64
	leaf    bool
	entries int
	max     int
	size    int // of a value
	bytes   []byte
}

func (n *node) key(i int) uint64 { return le.Uint64(n.bytes[nodeHeaderBytes+i*keyBytes:]) }

func (n *node) value(i int) []byte {
	at := nodeHeaderBytes + n.max*keyBytes + i*n.size
	return n.bytes[at : at+n.size : at+n.size]
}

// index of the last key that is not above this one; -1 if all are.
func (n *node) index(key uint64) int {
	low, high := 0, n.entries
	for low < high {
		if mid := (low + high) / 2; n.key(mid) <= key {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low - 1
}

// place is where in a tree a node hangs.
type place struct {
	parent, block uint64
	first, last   uint64 // the keys that it may hold
	depth         int    // of the root: 0
	shared        bool
}

func (t *Tree) load(p place) (*node, error) {
	if p.depth >= maxDepth {
		return nil, t.Blocks.format.Corrupt(p.parent, "the tree from block %d on is deeper than %d nodes", t.Root, maxDepth)
	}
	bytes, err := t.Blocks.Follow(p.parent, p.block, KindNode)
	if err != nil {
		return nil, err
	}
	n := &node{format: t.Blocks.format, block: p.block, bytes: bytes}
	if err := n.checkShape(t.ValueBytes); err != nil {
		return nil, err
	}
	return n, n.checkKeys(p)
}

func (n *node) checkShape(leafValueBytes uint32) error {
	flags, entries := le.Uint32(n.bytes[4:]), le.Uint32(n.bytes[16:])
	most, size := le.Uint32(n.bytes[20:]), le.Uint32(n.bytes[24:])
	want := uint32(childBytes)
	switch flags {
	case flagInternal:
	case flagLeaf:
		n.leaf = true
		want = leafValueBytes
	default:
		return n.format.Corrupt(n.block, "its flags %#x are neither those of an inner node nor those of a leaf", flags)
	}
	if size != want {
		return n.format.Corrupt(n.block, "its values have %d bytes and not %d", size, want)
	}
	if most > (BlockBytes-nodeHeaderBytes)/(keyBytes+size) {
		return n.format.Corrupt(n.block, "it says that it has room for %d entries, which is more than a block has", most)
	}
	if entries > most {
		return n.format.Corrupt(n.block, "it has %d entries and room for %d", entries, most)
	}
	n.entries, n.max, n.size = int(entries), int(most), int(size)
	return nil
}

func (n *node) checkKeys(p place) error {
	if n.entries == 0 && (p.depth > 0 || !n.leaf) {
		return n.format.Corrupt(n.block, "it has no entries, and is not the only node of its tree")
	}
	for i := range n.entries {
		key := n.key(i)
		if i > 0 && key <= n.key(i-1) {
			return n.format.Corrupt(n.block, "its key %d does not come after its key %d", key, n.key(i-1))
		}
		if key < p.first || key > p.last {
			return n.format.Corrupt(n.block, "its key %d is not between %d and %d, where block %d has it hang", key, p.first, p.last, p.parent)
		}
	}
	return nil
}

// Entries calls yield for the entries with keys not below from, in order, until it says
// that it has enough.
func (t *Tree) Entries(from uint64, yield func(Entry) (more bool, err error)) error {
	root := place{parent: t.Holder, block: t.Root, last: math.MaxUint64}
	_, err := t.walk(root, from, yield)
	return err
}

func (t *Tree) walk(p place, from uint64, yield func(Entry) (bool, error)) (more bool, err error) {
	if t.Seen != nil && t.Seen(p.block) {
		p.shared = true
	}
	if p.shared && t.SkipShared {
		return true, nil
	}
	n, err := t.load(p)
	if err != nil {
		return false, err
	}
	i := n.index(from)
	if i < 0 || n.leaf && n.key(i) < from {
		i++
	}
	for ; i < n.entries; i++ {
		if n.leaf {
			more, err = yield(Entry{n.key(i), n.value(i), n.block, i+1 == n.entries, p.shared})
		} else {
			more, err = t.walk(n.child(i, p), from, yield)
		}
		if !more || err != nil {
			return false, err
		}
	}
	return true, nil
}

func (n *node) child(i int, p place) place {
	c := place{
		parent: n.block, block: le.Uint64(n.value(i)), depth: p.depth + 1, shared: p.shared,
		first: n.key(i), last: p.last,
	}
	if i+1 < n.entries {
		c.last = n.key(i+1) - 1
	}
	return c
}

// Lookup finds one key.
func (t *Tree) Lookup(key uint64) (e Entry, found bool, err error) {
	err = t.Entries(key, func(next Entry) (bool, error) {
		e, found = next, next.Key == key
		return false, nil
	})
	return e, found, err
}
