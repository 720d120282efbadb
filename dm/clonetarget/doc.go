// Package clonetarget knows the kernel's dm-clone target: its table, its status, its
// messages, and what it keeps on its metadata device. It makes no devices and moves no
// data; that is done with package dm.
//
// # The target
//
// A clone has a source, which it only reads, a destination of at least its size, and a
// metadata device. It copies region after region to the destination, by itself while
// hydration is enabled, and at once where somebody writes. Reads go to the destination
// if their region is hydrated, else to the source. A discard of whole regions that are
// not hydrated counts as their hydration: nothing is copied.
//
// It commits like a disk with a volatile write cache: with each flush, each second when
// something has changed, when its status is asked for (dm.Control.Status), and when it
// is suspended. A commit flushes the destination before it says on the metadata device
// that regions are hydrated. Kernels before 5.7 do not do so, or not always: see
// CheckKernel.
//
// # Metadata
//
// Block 0 is the superblock, of this target's own kind. It names the root of a set of
// bits (package persistent has the form), one for each region, and the space map of the
// metadata device. A bit that is set never goes out again. A device whose first block is
// zero is formatted by the target when it meets it.
package clonetarget
