package metadata

import (
	"encoding/binary"

	"decant/dm/persistent"
)

// BlockBytes is the size of a metadata block. All reads are of this size, at multiples
// of it, into memory that begins at a multiple of it.
const BlockBytes = persistent.BlockBytes

// The kinds of blocks that are a pool's own, or that only a pool's are read of.
var (
	kindSuperblock = persistent.Kind{Name: "superblock", Seed: 160774, NumberAt: 8}
	kindBitmap     = persistent.Kind{Name: "space map bitmap", Seed: 240779, NumberAt: 8}
)

var le = binary.LittleEndian
