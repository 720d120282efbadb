// Command migrate pours disk images into thin volumes and empties the source as it
// goes. This package turns a command line into calls of the service, and events
// and answers into text; it decides nothing about data.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"decant/api/client"
	"decant/service"
)

// migrations is what the commands need of the journals; *service.Service has it.
type migrations interface {
	Plan(ctx context.Context, request service.Request) (service.Plan, error)
	Migrate(ctx context.Context, request service.Request, sink service.Sink) error
	steering
}

// steering is what is done to migrations that there are, by this process on the
// journals, or by the service (*remote).
type steering interface {
	Resume(ctx context.Context, id string, sink service.Sink) error
	Reverse(ctx context.Context, id string, sink service.Sink) error
	Verify(ctx context.Context, id string, sink service.Sink) (service.VerifyReport, error)
	Pause(ctx context.Context, id string) error
	Cancel(ctx context.Context, id string) error
	List() ([]service.Summary, error)
	Show(id string, cells int) (service.Detail, error)
	Explain(id string, offset int64) (service.Explanation, error)
}

var (
	_ migrations = (*service.Service)(nil)
	_ steering   = (*remote)(nil)
)

// program is one run of the command and the world around it.
type program struct {
	stdout, stderr io.Writer
	// stdoutColumns and stderrColumns are the widths of the terminals behind the
	// two streams right now; 0 where there is none.
	stdoutColumns, stderrColumns func() int
	unicode                      bool // the locale's encoding is UTF-8
	stateDir                     string
	serviceAddress, tokenFile    string
	openService                  func(stateDir string) (migrations, error)
	find                         func(context.Context) (*client.Client, error) // nil: there are no services
	terminal                     func() *screenTerminal                        // that a watch can have for itself; nil: none
	exitAtOnce                   func(code int)
	serveSafely                  func()
}

func main() {
	service.BecomeGuardian()
	suitRuntime(os.Getenv)
	os.Exit(newProgram(openService).run(os.Args[1:]))
}

// newProgram is a program in the world of this process.
func newProgram(open func(stateDir string) (migrations, error)) *program {
	p := &program{
		stdout:        os.Stdout,
		stderr:        os.Stderr,
		stdoutColumns: func() int { return columns(os.Stdout) },
		stderrColumns: func() int { return columns(os.Stderr) },
		unicode:       isUnicodeLocale(os.Getenv),
		openService:   open,
		exitAtOnce:    os.Exit,
		serveSafely:   serveSafely,
	}
	p.find = p.findService
	p.terminal = func() *screenTerminal { return terminal(os.Stdin, os.Stdout) }
	return p
}

func openService(stateDir string) (migrations, error) {
	s, err := service.New(stateDir)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// run executes one command line and returns the exit code.
func (p *program) run(args []string) int {
	root := p.rootCommand()
	root.SetArgs(args)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	cmd, err := root.ExecuteContextC(context.Background())
	if err == nil {
		return int(service.Success)
	}
	p.complain(err, cmd.CommandPath())
	return int(service.OutcomeOf(err))
}

// complain tells a person what went wrong and what to do. Nothing can be done
// about a standard error that takes no text, so its errors are ignored here.
func (p *program) complain(err error, commandPath string) {
	_, _ = fmt.Fprintf(p.stderr, "migrate: %s\n", escapeControls(err.Error()))
	if hint := service.HintOf(err); hint != "" {
		_, _ = fmt.Fprintf(p.stderr, "hint: %s\n", escapeControls(hint))
	}
	if service.OutcomeOf(err) == service.Usage {
		_, _ = fmt.Fprintf(p.stderr, "See '%s --help'.\n", commandPath)
	}
}

// usageError is a command line that makes no sense.
func usageError(hint, format string, args ...any) error {
	return &service.Error{Outcome: service.Usage, Problem: fmt.Sprintf(format, args...), Hint: hint}
}

// answer writes what a command was asked for to standard output. An answer that
// did not arrive is a failure of the command.
func (p *program) answer(text []byte) error {
	if _, err := p.stdout.Write(text); err != nil {
		return &service.Error{Outcome: service.Failed, Object: "standard output", Problem: "the answer could not be written", State: "nothing was changed by writing it", Err: err}
	}
	return nil
}

// columns is the width of the terminal behind f, 0 if f is none or one that
// cannot overwrite a line.
func columns(f *os.File) int {
	if os.Getenv("TERM") == "dumb" {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	if width <= 0 {
		return defaultColumns // a terminal that does not know its width, such as a serial line
	}
	return width
}

// defaultColumns is the width of what has none of its own.
const defaultColumns = 80
