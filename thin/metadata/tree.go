package metadata

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

// tree is a B-tree: inner nodes lead from a key to the child that holds it and what
// follows, leaves lead from a key to a value.
type tree struct {
	blocks     *blocks
	holder     uint64 // the block that names the root
	root       uint64
	valueBytes uint32
	// seen, if there is one, says of each node whether what hangs on it is shared.
	seen func(block uint64) (shared bool)
	// skipShared leaves out what is shared.
	skipShared bool
}

// entry of a leaf.
type entry struct {
	key    uint64
	value  []byte // not to be written to
	block  uint64 // the leaf
	last   bool   // of the leaf
	shared bool   // as tree.seen says of the leaf or a node above it
}

// node is a checked one.
type node struct {
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

func (t *tree) load(p place) (*node, error) {
	if p.depth >= maxDepth {
		return nil, corrupt(p.parent, "the tree from block %d on is deeper than %d nodes", t.root, maxDepth)
	}
	bytes, err := t.blocks.follow(p.parent, p.block, kindNode)
	if err != nil {
		return nil, err
	}
	n := &node{block: p.block, bytes: bytes}
	if err := n.checkShape(t.valueBytes); err != nil {
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
		return corrupt(n.block, "its flags %#x are neither those of an inner node nor those of a leaf", flags)
	}
	if size != want {
		return corrupt(n.block, "its values have %d bytes and not %d", size, want)
	}
	if most > (BlockBytes-nodeHeaderBytes)/(keyBytes+size) {
		return corrupt(n.block, "it says that it has room for %d entries, which is more than a block has", most)
	}
	if entries > most {
		return corrupt(n.block, "it has %d entries and room for %d", entries, most)
	}
	n.entries, n.max, n.size = int(entries), int(most), int(size)
	return nil
}

func (n *node) checkKeys(p place) error {
	if n.entries == 0 && (p.depth > 0 || !n.leaf) {
		return corrupt(n.block, "it has no entries, and is not the only node of its tree")
	}
	for i := range n.entries {
		key := n.key(i)
		if i > 0 && key <= n.key(i-1) {
			return corrupt(n.block, "its key %d does not come after its key %d", key, n.key(i-1))
		}
		if key < p.first || key > p.last {
			return corrupt(n.block, "its key %d is not between %d and %d, where block %d has it hang", key, p.first, p.last, p.parent)
		}
	}
	return nil
}

// entries calls yield for the entries with keys not below from, in order, until it says
// that it has enough.
func (t *tree) entries(from uint64, yield func(entry) (more bool, err error)) error {
	root := place{parent: t.holder, block: t.root, last: math.MaxUint64}
	_, err := t.walk(root, from, yield)
	return err
}

func (t *tree) walk(p place, from uint64, yield func(entry) (bool, error)) (more bool, err error) {
	if t.seen != nil && t.seen(p.block) {
		p.shared = true
	}
	if p.shared && t.skipShared {
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
			more, err = yield(entry{n.key(i), n.value(i), n.block, i+1 == n.entries, p.shared})
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

// lookup finds one key.
func (t *tree) lookup(key uint64) (e entry, found bool, err error) {
	err = t.entries(key, func(next entry) (bool, error) {
		e, found = next, next.key == key
		return false, nil
	})
	return e, found, err
}
