// Package loopdev reads, writes and empties image files, loop devices and block
// devices.
//
// A loop device is resolved to its backing file, and all I/O goes to that file:
// a loop device reads zeros where its backing file was cut off, the file itself
// says so. Data goes past the page cache wherever the file system allows it, so
// that a full or failing medium answers at the write and reading back tells what
// the medium holds. Device.Cached is the other way, for files.
//
// A Device is resolved once, when it is opened. From then on its descriptors are
// used and no path is looked at again, so nobody can slip in another object.
//
// Emptying a file changes its modification time, which is put back each time, so
// that it goes on to tell of changes by others. What they do in between is seen by
// watching who opens the file; see Device.KeepModified and Device.Discard.
package loopdev
