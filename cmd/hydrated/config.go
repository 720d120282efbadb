package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"decant/service"
)

// defaultConfig is where the configuration is, if there is one.
const defaultConfig = "/etc/decant/hydrated.conf"

// config is what can be set, by flags or in the file of the configuration, where a key
// is a flag without its dashes.
type config struct {
	stateDir       string
	socket         string
	group          string
	running        int
	runningPerDisk int
	waiting        int
	roots          []string
	historyEvents  int
	logLevel       slog.Level
	network        networkConfig
}

// networkConfig is for clients on the network; without an address there are none.
type networkConfig struct {
	listen         string
	tokenFile      string
	tlsCertificate string
	tlsKey         string
	hosts          []string
}

// levelFlag is a flag that takes the level of a log.
type levelFlag struct{ *slog.Level }

func (f levelFlag) String() string {
	if f.Level == nil {
		return "" // pflag asks a zero value for it
	}
	return strings.ToLower(f.Level.String())
}
func (f levelFlag) Type() string { return "LEVEL" }

func (f levelFlag) Set(text string) error {
	switch strings.ToLower(text) {
	case "debug", "info", "warn", "error":
		return f.UnmarshalText([]byte(text))
	}
	return errors.New("the levels are debug, info, warn and error")
}

// addSettings gives flags everything that can be set; the values of c are the defaults.
func addSettings(flags *pflag.FlagSet, c *config) {
	flags.StringVar(&c.stateDir, "state-dir", c.stateDir, "`DIR` that keeps the journals (default /var/lib/decant for root,\nelse $XDG_STATE_HOME/decant or ~/.local/state/decant)")
	flags.StringVar(&c.socket, "socket", c.socket, "`PATH` of the socket of the API; where systemd hands sockets over, those are used")
	flags.StringVar(&c.group, "group", c.group, "`NAME` of the group whose members may use the socket beside root; empty: none")
	flags.IntVar(&c.running, "running", c.running, "`N` of migrations at a time, at most")
	flags.IntVar(&c.runningPerDisk, "running-per-disk", c.runningPerDisk, "`N` of migrations at a time, at most, that share a disk under either end")
	flags.IntVar(&c.waiting, "waiting", c.waiting, "`N` of unfinished migrations altogether, at most; requests for more are refused")
	flags.StringArrayVar(&c.roots, "root", c.roots, "`DIR` that paths in requests have to lie below; may be given several times;\nwithout it they may lie anywhere")
	flags.IntVar(&c.historyEvents, "history-events", c.historyEvents, "`N` of events that are kept for clients who come late or were cut off")
	flags.Var(levelFlag{&c.logLevel}, "log-level", "debug, info, warn or error")
	n := &c.network
	flags.StringVar(&n.listen, "listen", n.listen, "`ADDRESS`:PORT to serve the API and the page on, besides the socket; needs --token-file")
	flags.StringVar(&n.tokenFile, "token-file", n.tokenFile, "`FILE` with the token that clients on the network have to show; readable by its owner only")
	flags.StringVar(&n.tlsCertificate, "tls-certificate", n.tlsCertificate, "`FILE` with the certificate for clients on the network, in PEM")
	flags.StringVar(&n.tlsKey, "tls-key", n.tlsKey, "`FILE` with its key, in PEM")
	flags.StringArrayVar(&n.hosts, "host", n.hosts, "`NAME` by which clients on the network may call this host; may be given several times")
}

func defaults() config {
	return config{
		socket: "/run/decant/hydrated.sock", group: "decant",
		running: 4, runningPerDisk: 1, waiting: 1000, historyEvents: 4096,
	}
}

func (c config) check() error {
	for name, n := range map[string]int{
		"running": c.running, "running-per-disk": c.runningPerDisk, "waiting": c.waiting, "history-events": c.historyEvents,
	} {
		if n < 1 || n > 1<<20 {
			return usageError("%s is not from 1 to %d", name, 1<<20)
		}
	}
	// The service works in the root directory: a relative path would mean another one.
	for name, path := range map[string]string{
		"state-dir": c.stateDir, "socket": c.socket,
		"token-file": c.network.tokenFile, "tls-certificate": c.network.tlsCertificate, "tls-key": c.network.tlsKey,
	} {
		if path != "" && !filepath.IsAbs(path) {
			return usageError("%s is not an absolute path: %.200q", name, path)
		}
	}
	switch n := c.network; {
	case n.listen != "" && n.tokenFile == "":
		return usageError("listen needs token-file: whoever can reach the port could steer everything")
	case n.listen == "" && (n.tokenFile != "" || n.tlsCertificate != "" || len(n.hosts) > 0):
		return usageError("token-file, tls-certificate and host are for clients on the network, and need listen")
	case (n.tlsCertificate == "") != (n.tlsKey == ""):
		return usageError("tls-certificate and tls-key need one another")
	}
	return nil
}

// setting is one line of the file.
type setting struct {
	line       int
	key, value string
}

const (
	mostConfigBytes = 1 << 20
	mostConfigLine  = 8 << 10
)

// parseConfig reads lines of the form key = value. Empty lines, and those that begin
// with #, say nothing; a value goes to the end of its line, without the space around it.
func parseConfig(r io.Reader) ([]setting, error) {
	var all []setting
	lines := bufio.NewScanner(io.LimitReader(r, mostConfigBytes+1))
	lines.Buffer(nil, mostConfigLine)
	total := 0
	for n := 1; lines.Scan(); n++ {
		if total += len(lines.Bytes()) + 1; total > mostConfigBytes {
			return nil, fmt.Errorf("it has more than %d bytes", mostConfigBytes)
		}
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		key, value, found := strings.Cut(text, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch {
		case !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl):
			return nil, fmt.Errorf("line %d: holds control characters, or is no UTF-8", n)
		case !found || key == "":
			return nil, fmt.Errorf("line %d: is not of the form key = value", n)
		}
		all = append(all, setting{line: n, key: key, value: value})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line after the first %d bytes: %w", total, err)
	}
	return all, nil
}

// applyConfig sets what the file says, except for what the command line has said.
func applyConfig(flags *pflag.FlagSet, settings []setting) error {
	given := map[string]bool{}
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	seen := map[string]int{}
	for _, s := range settings {
		f := flags.Lookup(s.key)
		if f == nil || notInFile[s.key] {
			return fmt.Errorf("line %d: there is no key %.100q", s.line, s.key)
		}
		if before := seen[s.key]; before > 0 && f.Value.Type() != "stringArray" {
			return fmt.Errorf("line %d: %s is set in line %d already", s.line, s.key, before)
		}
		seen[s.key] = s.line
		if given[s.key] {
			continue
		}
		if err := flags.Set(s.key, s.value); err != nil {
			return fmt.Errorf("line %d: %w", s.line, err)
		}
	}
	return nil
}

// notInFile are flags that make no sense in the file.
var notInFile = map[string]bool{"config": true, "check": true, "help": true, "version": true}

// loadConfig reads the file at path into flags. The default one need not be there.
func loadConfig(flags *pflag.FlagSet, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && !flags.Changed("config") {
		return nil
	}
	refused := func(err error) error {
		return &service.Error{
			Outcome: service.Refused, Object: path, Problem: "the configuration cannot be used",
			Hint: "the keys are described in hydrated(8)", Err: err,
		}
	}
	if err != nil {
		return refused(err)
	}
	defer func() { _ = f.Close() }() // only read
	settings, err := parseConfig(f)
	if err == nil {
		err = applyConfig(flags, settings)
	}
	if err != nil {
		return refused(err)
	}
	return nil
}

func usageError(format string, args ...any) error {
	return &service.Error{Outcome: service.Usage, Problem: fmt.Sprintf(format, args...)}
}
