// Package metadata reads the metadata device of a dm-thin pool: which thin devices
// there are, which data blocks they map, and which of those they share. It only reads,
// it needs no device-mapper and no tools, and it can read while the pool is in use.
//
// # Format
//
// The device is an array of blocks of 4096 bytes, little-endian throughout. Every block
// begins with a checksum (CRC-32C, combined with a number that tells the kind of block)
// and holds its own number. Block 0 is the superblock. From it hang
//
//	device_details_root   a B-tree: thin id -> blocks mapped, when made, when snapshotted
//	data_mapping_root     a B-tree: thin id -> root of a B-tree:
//	                      virtual block -> data block (40 bits), time (24 bits)
//	data_space_map        a B-tree of bitmaps, two bits for each data block: its
//	                      reference count, or 3 where a second B-tree has it
//	metadata_space_map    the same for metadata blocks; not needed for reading
//	held_root             a copy of the superblock, if a metadata snapshot is held
//
// A snapshot is made by entering the same root for a second thin id; a node is copied
// when one of those that share it is changed. The reference count of a data block is
// the number of leaf nodes that name it, so it says nothing about devices that share
// the leaf itself. Sharing counts both.
//
// # Time
//
// A pool has a clock that a snapshot advances. A mapping carries the time at which its
// block was allocated, a device the time of its last snapshot. The kernel takes a block
// for shared if it is older than that: see Device.BreaksSharing.
//
// # Reading while the pool is in use
//
// The root must be one whose blocks stay as they are for as long as they are read:
// either that of a held metadata snapshot (message reserve_metadata_snap to the pool,
// then Options.Held), or the last committed one, for as long as it is the last: see
// Consistently.
//
// # Trust
//
// Every block is checked before it is used: checksum, own number, number and size of
// entries, their order, and that they lie in the range which the node above gives them;
// block numbers and tree depth are bounded. What is wrong is a CorruptError. Memory is
// bounded by the depth of the trees and a small cache; only Sharing takes more.
package metadata
