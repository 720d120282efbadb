package service

import "time"

// EventKind names an event.
type EventKind string

// The events of a migration. Every run begins with Started and ends with one of
// Done, Stopped and FailedEvent.
const (
	Started     EventKind = "started"
	Exported    EventKind = "exported"
	Progress    EventKind = "progress"
	CommittedTx EventKind = "committed"
	Paused      EventKind = "paused"
	Warning     EventKind = "warning"
	HydratedAll EventKind = "hydrated"
	DoneEvent   EventKind = "done"
	StoppedRun  EventKind = "stopped"
	FailedEvent EventKind = "failed"
)

// Event is one line of `--progress=json`. The counters are those of the whole
// migration, not of this process.
type Event struct {
	Event EventKind `json:"event"`
	ID    string    `json:"id"`
	Time  time.Time `json:"time"`
	Phase string    `json:"phase"` // hydrating, waiting, discarding, verifying, reversing, serving, done

	BytesTotal         int64    `json:"bytes_total"`
	BytesData          int64    `json:"bytes_data"` // what has to be copied
	BytesCopied        int64    `json:"bytes_copied"`
	BytesCommitted     int64    `json:"bytes_committed"`
	BytesDiscarded     int64    `json:"bytes_discarded"`
	BytesVerified      int64    `json:"bytes_verified"`
	RateBytesPerSecond int64    `json:"rate_bytes_per_second"`
	ETASeconds         *float64 `json:"eta_seconds"` // null when unknown
	Transaction        uint64   `json:"transaction"`
	PeakExtraBytes     int64    `json:"peak_extra_bytes"`

	// Of some kinds of event only.
	Source           string   `json:"source,omitempty"`      // started
	Destination      string   `json:"destination,omitempty"` // started
	Resumed          bool     `json:"resumed,omitempty"`     // started
	Export           string   `json:"export,omitempty"`      // exported: the NBD URI
	Device           string   `json:"device,omitempty"`      // exported: path of the live device
	Message          string   `json:"message,omitempty"`     // warning, paused
	ElapsedSeconds   *float64 `json:"elapsed_seconds,omitempty"`
	SourceFreedBytes *int64   `json:"source_freed_bytes,omitempty"`
	Reason           string   `json:"reason,omitempty"` // stopped, failed
	Hint             string   `json:"hint,omitempty"`   // stopped, failed
}

// Sink takes events in order, one at a time. It must return soon.
type Sink func(Event)
