// Package persistent reads what the kernel's device-mapper keeps on the metadata devices
// of its targets: blocks of 4096 bytes with a checksum and their own number, B-trees of
// such blocks, and arrays and sets of bits on top of these. It is what the formats of
// several targets have in common; where their trees hang and what they mean is the
// business of the packages for one target. It only reads, and it can read while the
// target is in use: see Consistently.
//
// # Format
//
//	block    a checksum (CRC-32C, combined with a number that tells the kind of block),
//	         and its own number; all numbers are little-endian
//	B-tree   inner nodes lead from a key to a block, leaves from a key to a value
//	array    a B-tree from 0, 1, 2, ... to blocks with the next values, packed
//	bits     an array of 64-bit words, the first bit is the least significant one
//
// # Trust
//
// Every block is checked before it is used: checksum, own number, number and size of
// entries, their order, and that they lie in the range which the node above gives them;
// block numbers and tree depth are bounded. What is wrong is a CorruptError. Memory is
// bounded by the depth of the trees and a small cache.
package persistent
