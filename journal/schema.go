package journal

// applicationID marks a SQLite file as a journal: "dcnt".
const applicationID = 0x64636e74

// schemaVersion is kept as the user_version of the file.
const schemaVersion = 1

// schema is version 1. No table has a row for each region. The generation of the
// state counts the changes of the file, so that a writer notices another one. The regions of the
// transactions and the bitmaps say the same twice, so that a bit that flips in
// either is found when the journal is opened.
//
// A change makes version 2, with a step here that brings version 1 there.
var schema = []string{
	`CREATE TABLE superblock (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	id TEXT NOT NULL,
	device_bytes INTEGER NOT NULL,
	region_bytes INTEGER NOT NULL,
	source_start_bytes INTEGER NOT NULL,
	created_ns INTEGER NOT NULL,
	options BLOB NOT NULL
) STRICT`,
	`CREATE TABLE identity (
	side INTEGER PRIMARY KEY CHECK (side IN (0, 1)),
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	path TEXT NOT NULL,
	key TEXT NOT NULL,
	bytes INTEGER NOT NULL,
	start_bytes INTEGER NOT NULL,
	modified_ns INTEGER NOT NULL
) STRICT`,
	`CREATE TABLE state (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	direction INTEGER NOT NULL,
	phase TEXT NOT NULL,
	generation INTEGER NOT NULL,
	peak_extra_bytes INTEGER NOT NULL,
	options BLOB NOT NULL
) STRICT`,
	`CREATE TABLE tx (
	number INTEGER PRIMARY KEY,
	direction INTEGER NOT NULL,
	committed_ns INTEGER NOT NULL,
	discarded_ns INTEGER,
	regions INTEGER NOT NULL,
	copied_bytes INTEGER NOT NULL,
	ranges BLOB NOT NULL
) STRICT`,
	`CREATE INDEX tx_undiscarded ON tx (number) WHERE discarded_ns IS NULL`,
	`CREATE TABLE hydrated (
	direction INTEGER NOT NULL,
	chunk INTEGER NOT NULL,
	bits BLOB NOT NULL,
	PRIMARY KEY (direction, chunk)
) STRICT`,
	`CREATE TABLE discarded (
	direction INTEGER NOT NULL,
	chunk INTEGER NOT NULL,
	bits BLOB NOT NULL,
	PRIMARY KEY (direction, chunk)
) STRICT`,
	`CREATE TABLE checksum (
	direction INTEGER NOT NULL,
	chunk INTEGER NOT NULL,
	sums BLOB NOT NULL,
	PRIMARY KEY (direction, chunk)
) STRICT`,
	`CREATE TABLE bad (
	first_region INTEGER PRIMARY KEY,
	regions INTEGER NOT NULL,
	error TEXT NOT NULL
) STRICT`,
}

// The sides of the table identity.
const (
	sourceSide = iota
	destinationSide
)
