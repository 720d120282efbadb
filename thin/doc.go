// Package thin keeps pools of thin volumes. A directory pool is a directory with
// a size limit: one sparse file for each volume, and a catalog of them.
//
//	DIR/catalog.db   the catalog, an SQLite file
//	DIR/NAME.img     the volume NAME
//	DIR/lock         held (flock) while the pool is changed or its space is counted
//	DIR/users/*      one file for each open handle, held (flock) while it is open
//
// # Changes
//
// The catalog and the directory cannot change in one step. So every change is
//
//  1. a record in its trying state (creating, deleting), committed durably
//  2. the change of the directory, made durable
//  3. the record in its final state (active, gone), committed durably
//
// and all of it under DIR/lock, which the kernel releases when its holder dies. A
// record in a trying state that is seen under that lock was left behind by a
// crash, and is settled: what was being created is removed, what was being
// deleted is deleted. Opening a pool settles it, and so does every change.
//
// # Space
//
// The allocated bytes of all volumes together stay within the size of the pool.
// A handle that writes takes a grant from what is free, notes it in its file
// under DIR/users, and spends it without asking again; what the others have been
// granted is not free. A file in DIR/users that nobody holds belongs to a dead
// process, and so does its grant. Near the limit, grants end and each write is
// judged by the holes that it fills.
//
// What a file system allocates to keep track of a file's extents counts as soon
// as it is there, but cannot be foreseen; it can bring the sum a few file system
// blocks above the limit. A volume never counts for more than its own size, so a
// pool as large as its volumes takes them full.
//
// # Assumptions
//
// The file system has sparse files, its flock and fsync are honest, and nobody
// else changes files in the directory. Network file systems are refused.
package thin
