package service

import (
	"context"
	"path/filepath"
	"sync"

	"decant/nbd"
)

// export offers the volume over NBD on a Unix socket. Its clients have to be of the user
// that this process runs as, or root.
type export struct {
	path string

	server  *nbd.Server
	end     context.CancelFunc
	serving sync.WaitGroup
	err     error // of serving; read after that
}

func (x *export) check(*attempt) error {
	if err := nbd.CheckUnix(x.path); err != nil {
		return refuse(x.path, "the volume cannot be exported there", "", err)
	}
	return nil
}

func (x *export) open(ctx context.Context, r *reporter) error {
	var err error
	if x.server, err = nbd.NewServer(nbd.Config{Exports: []nbd.Export{r.export("")}}); err != nil {
		return err
	}
	// A name that the protocol cannot carry is no name for clients; then they use none.
	_ = x.server.AddExport(r.export(r.m.destination.volumeName()))
	ln, err := nbd.ListenUnix(x.path)
	if err != nil {
		return err
	}
	ctx, x.end = context.WithCancel(ctx)
	x.serving.Go(func() { x.err = x.server.Serve(ctx, ln) })
	uri := nbd.URI{Network: "unix", Address: x.path}
	r.tell(Exported, func(e *Event) { e.Export = uri.String() })
	return nil
}

// finish waits for the last client. Others may come as long as there is one.
func (x *export) finish(context.Context, error) error {
	x.server.StopWhenIdle()
	x.serving.Wait() // ends with the context as well
	return x.err
}

func (x *export) close() error {
	if x.end != nil {
		x.end()
	}
	x.serving.Wait()
	return x.err
}

// export is the volume under a name.
func (r *reporter) export(name string) nbd.Export {
	return nbd.Export{
		Name:          name,
		Description:   "migration " + r.m.id,
		Device:        r.volume,
		Hydrates:      true,
		MinBlockBytes: minBlockBytes(r.m.destination, r.volume.Bytes()),
	}
}

// volumeName is what clients may call the volume, besides by no name.
func (e *end) volumeName() string {
	if e.target.volume != "" {
		return e.target.volume
	}
	return filepath.Base(e.Info().Path)
}

// minBlockBytes is the unit in which guests may read and write: what the destination can
// write at once, but no more than lets them reach the end of the volume.
func minBlockBytes(destination *end, bytes int64) int64 {
	const most = 64 << 10 // of the protocol
	unit := max(1, min(most, destination.Info().LogicalBlockBytes))
	for bytes%unit != 0 {
		unit /= 2
	}
	return unit
}
