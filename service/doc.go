// Package service runs migrations: it finds out what the two ends are, refuses what
// cannot end well, and wires devices, journal, clone and the background run
// together. It is the only place where the concrete types meet.
//
// The functions that the programs call:
//
//	New(stateDir) (*Service, error)
//	(*Service).Plan(ctx, Request) (Plan, error)                  preflight; changes nothing
//	(*Service).Migrate(ctx, Request, Sink) error                 starts or resumes
//	(*Service).Resume(ctx, id, Sink) error
//	(*Service).Reverse(ctx, id, Sink) error
//	(*Service).Verify(ctx, id, Sink) (VerifyReport, error)
//	(*Service).Pause(ctx, id) error                              stops the process that runs it
//	(*Service).Cancel(ctx, id) error
//	(*Service).List() ([]Summary, error)
//	(*Service).Show(id, cells) (Detail, error)
//	(*Service).Explain(id, offset) (Explanation, error)
//
// Every error that they return is an *Error.
package service
