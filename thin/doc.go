// Package thin keeps pools of thin volumes, of several kinds.
//
// # Directory pools
//
// A directory pool is a directory with a size limit: one sparse file for each
// volume, and a catalog of them.
//
//	DIR/catalog.db   the catalog, an SQLite file
//	DIR/NAME.img     the volume NAME
//	DIR/lock         held (flock) while the pool is changed or its space is counted
//	DIR/users/*      one file for each open handle, held (flock) while it is open
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
// It is assumed that the file system has sparse files, that its flock and fsync are
// honest, and that nobody else changes files in the directory. Network file systems
// are refused.
//
// # Dm-thin pools
//
// A dm-thin pool is the kernel's, made of two block devices, and describes itself:
// its thin device 0 is the catalog, an array of records (mapper_record.go).
//
//	/dev/mapper/NAME           the pool, with the UUID DECANT-pool-POOL
//	/dev/mapper/NAME:catalog   its catalog, DECANT-catalog-POOL
//	/dev/mapper/NAME-VOLUME    an active volume, DECANT-vol-POOL-THINID
//	/run/decant/pools/POOL.*   held (flock) by changes and by open handles
//
// Devices are known by their UUIDs. A device of somebody else that has the name is
// left alone, and the volume cannot be activated.
//
// Every change is
//
//  1. the record in its trying state (creating, deleting), flushed
//  2. a message to the pool, which commits its metadata
//  3. set_transaction_id, from the number that was found to the next one
//  4. the record in its final state (active, free), flushed
//
// under the pool's lock. A record in a trying state that is seen under that lock was
// left by a crash: its thin device is deleted, if there is one, and then the record.
// Thin devices that the catalog does not know belong to somebody else. That no such
// one has the thin id is made sure before the record is written, and not only by the
// message.
//
// While a pool is made, the start of its data device says so. The kernel puts the
// first block that is written there, which is the catalog's, and so this note is
// replaced by the catalog when that is whole.
//
// A full pool refuses writes at once. One that has met an error, and may have gone
// back to an earlier state of its metadata, fails every flush of its volumes.
//
// It is assumed that a drive writes a logical block of its own whole or not at all,
// and flushes when it is told to. A record is one sector of 512 bytes. On a data
// device with blocks of 4096 bytes, the one around it is read and written back.
package thin
