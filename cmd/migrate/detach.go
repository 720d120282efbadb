package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"decant/api/client"
	"decant/service"
)

// detach hands a migration to the service, and answers with its ID.
func (p *program) detach(ctx context.Context, request service.Request) error {
	c, err := p.serviceOrRefusal(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if c.IsLocal() {
		if request, err = asSeenFromRoot(request); err != nil {
			return err
		}
	}
	ctx, release := p.interruptible(ctx, p.announceStop)
	defer release()
	n, key := client.NewMigrationOf(request), rand.Text()
	status, err := c.Start(ctx, n, key)
	if errors.Is(err, client.ErrNoService) {
		// The answer may have been lost with a service that was restarted. The key
		// makes a second request one about the same migration.
		status, err = c.Start(ctx, n, key)
	}
	if err != nil {
		return err
	}
	if err := p.answer([]byte(status.ID + "\n")); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(p.stderr, "the service has it (%s); watch it with: migrate watch %s\n", describeStatus(status), printableName(status.ID)) // nobody has to read this
	return nil
}

// serviceOrRefusal is a client of the service that runs on the state directory.
func (p *program) serviceOrRefusal(ctx context.Context) (c *client.Client, err error) {
	if p.find != nil {
		c, err = p.find(ctx)
	}
	if c != nil || err != nil {
		return c, err
	}
	return nil, &service.Error{
		Outcome: service.Refused, Problem: "no service runs on this state directory, or it does not answer to this user",
		Hint: "start hydrated, or leave off --detach; members of the group of its socket may use it, see --service",
	}
}

// asSeenFromRoot makes the paths of a request absolute and free of symbolic links: the
// service works in another directory, and follows no links for others.
func asSeenFromRoot(r service.Request) (service.Request, error) {
	var err error
	for _, name := range []*string{&r.Source, &r.Destination} {
		if *name, err = absolute(*name); err != nil {
			return r, &service.Error{Outcome: service.Refused, Object: *name, Problem: "it cannot be seen where that is", Hint: "check the path", Err: err}
		}
	}
	if r.Options.Export != "" {
		r.Options.Export, err = filepath.Abs(r.Options.Export)
	}
	return r, err
}

// absolute is the path that a name means, or the name if it means something else.
func absolute(name string) (string, error) {
	if strings.Contains(name, "://") {
		return name, nil
	}
	if !strings.HasPrefix(name, "/") && !strings.HasPrefix(name, "./") && !strings.HasPrefix(name, "../") {
		if _, err := os.Lstat(name); err != nil && strings.Count(name, "/") == 1 {
			return name, nil // POOL/VOLUME
		}
	}
	path, err := filepath.Abs(name)
	if err != nil {
		return name, err
	}
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) { // it is to be made
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		return filepath.Join(dir, filepath.Base(path)), err
	}
	return target, err
}
