package client

import "decant/service"

// NewMigration is the body of POST /v1/migrations: what the command line says.
type NewMigration struct {
	Source      string     `json:"source" minLength:"1" maxLength:"4095" doc:"absolute path of a regular file, a loop device or a block device; or NAME/VOLUME; or an NBD URI"`
	Destination string     `json:"destination" minLength:"1" maxLength:"4095" doc:"NAME/VOLUME, or the absolute path of a block device or a regular file"`
	Options     NewOptions `json:"options,omitempty"`
	Priority    int        `json:"priority,omitempty" minimum:"-1000" maximum:"1000" doc:"among those that wait, higher ones run first"`
	DryRun      bool       `json:"dry_run,omitempty" doc:"preflight and space proof only; the answer is the plan, and nothing is changed"`
}

// NewOptions are the options of the command line, under their names. What is left
// out is as the command line has it without the flag.
type NewOptions struct {
	DiscardSource *bool   `json:"discard_src,omitempty" doc:"free the source as its regions become durable on the destination"`
	Verify        *bool   `json:"verify,omitempty" doc:"read every region back past the page cache before its transaction commits"`
	RemoveSource  *bool   `json:"remove_src,omitempty" doc:"unlink a regular source file in the end; needs discard_src"`
	Overwrite     *bool   `json:"overwrite,omitempty" doc:"allow a destination that holds data, which is lost"`
	ThinPool      string  `json:"thin_pool,omitempty" maxLength:"127" doc:"of LVM, to make the destination in"`
	Export        string  `json:"export,omitempty" maxLength:"107" doc:"absolute path of a Unix socket, to offer the volume over NBD while it hydrates"`
	Live          string  `json:"live,omitempty" maxLength:"127" doc:"name of a device under /dev/mapper, to use the volume by while it hydrates, and after that"`
	LiveTimeout   *Period `json:"live_timeout,omitempty" doc:"how long the live device may wait for this service"`
	Engine        string  `json:"engine,omitempty" enum:"auto,user,kernel" doc:"who copies for a live device"`
	RegionSize    *Size   `json:"region_size,omitempty"`
	Threshold     *uint64 `json:"threshold,omitempty" minimum:"1" maximum:"1048576" doc:"most regions in flight"`
	Batch         *uint64 `json:"batch,omitempty" minimum:"1" maximum:"1048576" doc:"most contiguous regions in one copy"`
	CommitPeriod  *Period `json:"commit_period,omitempty"`
	CommitBytes   *Size   `json:"commit_bytes,omitempty"`
	BWLimit       *Rate   `json:"bwlimit,omitempty"`
}

// NewMigrationOf is the body that asks for a request of the command line.
func NewMigrationOf(r service.Request) NewMigration {
	o := r.Options
	n := NewMigration{Source: r.Source, Destination: r.Destination, Options: NewOptions{
		DiscardSource: &o.DiscardSource, Verify: &o.Verify, RemoveSource: &o.RemoveSource, Overwrite: &o.Overwrite,
		ThinPool: o.ThinPool, Export: o.Export, Live: o.Live, Engine: o.Engine, Threshold: &o.ThresholdRegions, Batch: &o.BatchRegions,
		CommitPeriod: (*Period)(&o.CommitPeriod), CommitBytes: (*Size)(&o.CommitBytes), BWLimit: (*Rate)(&o.BytesPerSecond),
	}}
	if o.LiveTimeout != 0 {
		n.Options.LiveTimeout = (*Period)(&o.LiveTimeout)
	}
	if o.RegionBytesFixed {
		n.Options.RegionSize = (*Size)(&o.RegionBytes)
	}
	return n
}

// Cancellation is the body of POST .../cancel.
type Cancellation struct {
	Reverse bool `json:"reverse,omitempty" doc:"bring back to the source what was freed there already; without it such a migration is refused"`
}

// Tuning is the body of PATCH /v1/migrations/{id}: what may change while it runs.
type Tuning struct {
	BWLimit   *Rate   `json:"bwlimit,omitempty"`
	Threshold *uint64 `json:"threshold,omitempty" minimum:"1" maximum:"1048576" doc:"most regions in flight"`
	Priority  *int    `json:"priority,omitempty" minimum:"-1000" maximum:"1000" doc:"among those that wait, higher ones run first"`
}
