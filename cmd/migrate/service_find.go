package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"decant/api/client"
	"decant/service"
)

const (
	// defaultSocket is where hydrated listens if nothing else is said.
	defaultSocket = "/run/decant/hydrated.sock"
	// noService is what --service says to leave services alone.
	noService = "none"

	serviceVariable = "DECANT_SERVICE"
	tokenVariable   = "DECANT_TOKEN_FILE"

	// servicePatience is how long a service has to say which one it is.
	servicePatience = 3 * time.Second
)

func (p *program) addServiceFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringVar(&p.serviceAddress, "service", "",
		"`SOCKET` of hydrated, or https://HOST:PORT, or none (default $DECANT_SERVICE, else\n"+defaultSocket+" if the service there has this state directory)")
	flags.StringVar(&p.tokenFile, "token-file", "", "`FILE` with the token of a service on the network (default $DECANT_TOKEN_FILE)")
}

// findService is a client of the service that runs on the state directory, or nil. One
// that was named, by the flag or in the environment, has to be there; without the flag
// --state-dir it is taken for the right one.
func (p *program) findService(ctx context.Context) (*client.Client, error) {
	address, named := firstOf(p.serviceAddress, serviceFromEnvironment(), defaultSocket)
	if address == noService {
		return nil, nil //nolint:nilnil // no service is no error
	}
	c, err := p.newClient(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, servicePatience)
	defer cancel()
	info, err := c.Info(ctx)
	if err == nil && !p.isOurs(c, info, named) {
		err = &service.Error{
			Outcome: service.Usage, Object: address, Problem: "that service works on the journals in " + info.StateDir,
			Hint: "give --state-dir " + info.StateDir + ", or leave it off",
		}
	}
	if err == nil {
		return c, nil
	}
	c.Close()
	if named {
		return nil, err
	}
	return nil, nil //nolint:nilnil // the default one is not there, or not for us
}

func serviceFromEnvironment() string { return os.Getenv(serviceVariable) }

func (p *program) newClient(address string) (*client.Client, error) {
	tokenFile, _ := firstOf(p.tokenFile, os.Getenv(tokenVariable), "")
	if tokenFile == "" || !strings.Contains(address, "://") {
		return client.New(address, "")
	}
	token, err := client.ReadTokenFile(tokenFile)
	if err != nil {
		return nil, err
	}
	return client.New(address, token)
}

// firstOf is the first that is not empty; named says that it is not the last.
func firstOf(flag, variable, fallback string) (text string, named bool) {
	switch {
	case flag != "":
		return flag, true
	case variable != "":
		return variable, true
	}
	return fallback, false
}

// isOurs says whether a service is the one that is meant. The state directory of one on
// another machine says nothing here; and who has no state directory, as a member of the
// group of the service may not, means the service.
func (p *program) isOurs(c *client.Client, info client.Info, named bool) bool {
	if !c.IsLocal() || named && p.stateDir == "" {
		return true
	}
	s, err := service.New(p.stateDir)
	if err != nil {
		return false
	}
	if _, err := os.Stat(s.StateDir()); p.stateDir == "" && errors.Is(err, fs.ErrNotExist) {
		return true // a user without journals of their own
	}
	return isSameDir(s.StateDir(), info.StateDir)
}

func isSameDir(a, b string) bool {
	if a == b {
		return true
	}
	aStat, aErr := os.Stat(a)
	bStat, bErr := os.Stat(b)
	return aErr == nil && bErr == nil && os.SameFile(aStat, bStat)
}

// open is what the commands that name a migration talk to: the service that runs on the
// state directory, or else the journals.
func (p *program) open(ctx context.Context) (steering, error) {
	if p.find != nil {
		c, err := p.find(ctx)
		if err != nil {
			return nil, err
		}
		if c != nil {
			return &remote{client: c}, nil
		}
	}
	return p.openService(p.stateDir)
}
