package api

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"decant/api/client"
	"decant/service"
)

// requestOf is the migration that n asks for.
func requestOf(n client.NewMigration) (service.Request, error) {
	o := service.DefaultOptions()
	given(&o.DiscardSource, n.Options.DiscardSource)
	given(&o.Verify, n.Options.Verify)
	given(&o.RemoveSource, n.Options.RemoveSource)
	given(&o.Overwrite, n.Options.Overwrite)
	given(&o.ThresholdRegions, n.Options.Threshold)
	given(&o.BatchRegions, n.Options.Batch)
	given(&o.RegionBytes, (*int64)(n.Options.RegionSize))
	given(&o.CommitBytes, (*int64)(n.Options.CommitBytes))
	given(&o.BytesPerSecond, (*int64)(n.Options.BWLimit))
	given(&o.CommitPeriod, (*time.Duration)(n.Options.CommitPeriod))
	o.RegionBytesFixed = n.Options.RegionSize != nil
	given(&o.LiveTimeout, (*time.Duration)(n.Options.LiveTimeout))
	o.ThinPool, o.Export, o.Live = n.Options.ThinPool, n.Options.Export, n.Options.Live
	if n.Options.Engine != "" {
		o.Engine = n.Options.Engine
	}
	for _, end := range []struct{ what, name string }{{"source", n.Source}, {"destination", n.Destination}, {"options.thin_pool", n.Options.ThinPool}, {"options.export", n.Options.Export}, {"options.live", n.Options.Live}} {
		if err := checkName(end.what, end.name); err != nil {
			return service.Request{}, err
		}
	}
	return service.Request{Source: n.Source, Destination: n.Destination, Options: o}, o.Check()
}

func given[T any](to *T, value *T) {
	if value != nil {
		*to = *value
	}
}

// checkName refuses names that could steer a terminal or a log, and those that JSON has
// made into others: what is no UTF-8 arrives as U+FFFD. All else is judged by the
// manager, which knows what requests may name.
func checkName(what, name string) error {
	wrong := func(problem, hint string) error {
		return &service.Error{Outcome: service.Usage, Object: what, Problem: problem, Hint: hint}
	}
	switch {
	case strings.ContainsFunc(name, unicode.IsControl):
		return wrong("it holds control characters", "")
	case strings.ContainsRune(name, utf8.RuneError):
		return wrong("it is not UTF-8, or came here as something else than it was", "rename the file, or use the command line")
	}
	return nil
}
