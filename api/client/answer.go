package client

import "decant/service"

// Info says which service this is.
type Info struct {
	Service  string `json:"service" enum:"decant"`
	Version  string `json:"version"`
	API      string `json:"api" doc:"the version of the API"`
	PID      int    `json:"pid"`
	StateDir string `json:"state_dir" doc:"where the journals are"`
}

// MigrationList is every migration in the state directory, the newest first.
type MigrationList struct {
	Migrations []service.Status `json:"migrations"`
	Total      int              `json:"total" doc:"how many there are, shown or not"`
}

// Migration is all about one migration.
type Migration struct {
	service.Status
	Map          []service.Cell        `json:"map,omitempty" doc:"with cells: the regions, down-sampled"`
	Bad          []service.BadBytes    `json:"bad,omitempty" doc:"what could not be read on the source"`
	Transactions []service.Transaction `json:"transactions" doc:"the newest first"`
	Journal      string                `json:"journal" doc:"path"`
}

// RegionMap is the state of the regions of a migration, down-sampled.
type RegionMap struct {
	ID          string         `json:"id"`
	BytesTotal  int64          `json:"bytes_total"`
	RegionBytes int64          `json:"region_bytes"`
	Regions     uint64         `json:"regions"`
	Cells       []service.Cell `json:"cells"`
}

// PoolList is every pool that the service knows.
type PoolList struct {
	Pools []service.PoolStatus `json:"pools"`
}

// ProblemType is the content type of a Problem, that of RFC 9457.
const ProblemType = "application/problem+json"

// Problem is what every request that did not succeed is answered with, after
// RFC 9457. Hint and exit code are those of the command line.
type Problem struct { //nolint:errname // what RFC 9457 calls it
	Type     string        `json:"type,omitempty" doc:"about:blank: the status says what kind of problem it is"`
	Title    string        `json:"title" doc:"the text of the status"`
	Status   int           `json:"status"`
	Detail   string        `json:"detail" doc:"what failed, on which object, and what state things are in"`
	Hint     string        `json:"hint,omitempty" doc:"what to do"`
	Outcome  string        `json:"outcome" enum:"failed,usage,stopped,refused" doc:"failed: what is whole, and where, is in detail; usage: the request makes no sense; stopped: before the end, nothing is lost; refused: nothing was changed"`
	ExitCode int           `json:"exit_code" doc:"the exit code of migrate for it"`
	Errors   []FieldErrors `json:"errors,omitempty" doc:"what is wrong with which part of the request"`
	Plan     *service.Plan `json:"plan,omitempty" doc:"what preflight had found out, when it refused"`
}

// FieldErrors is what is wrong with one part of a request.
type FieldErrors struct {
	Location string `json:"location,omitempty" doc:"such as body.options.bwlimit"`
	Message  string `json:"message"`
}

// Error implements error.
func (p *Problem) Error() string { return p.Detail }
