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
//
// # Deadlocks
//
// A process that serves a live device must never wait for that device, or it waits for
// itself, and with it everybody who uses the device:
//
//   - Its memory is locked (guardMemory), so that no page of it has to come back from a
//     disk, and the kernel knows that it is in the path of writes (BecomeFlusher): an
//     allocation in here never waits for pages that only a write through here would free.
//     The flag is one of threads, so a program sets it and starts itself anew.
//   - It does no I/O on the device, the network block device below it, or a file on them.
//     The ends are read and written past the page cache (guestCache). Journal, program,
//     output and working directory are refused on the device (checkLivePlaces).
//   - The exchange of tables at the end freezes no file system and waits for nothing but
//     I/O under way, in a thread of its own, while others answer that I/O. The wait ends
//     with a kill, so that the kernel closes the connection, and the next process can take
//     the device on.
//   - The end of serving waits for requests that have come, and those for the ends and the
//     journal only, never for their client.
//   - With the kernel engine this process serves nothing: dm-clone does. It suspends the
//     device with each commit (whileSuspended), and until it has resumed it, it does no I/O
//     but on the metadata of the dm-clone, which lies beside the journal; if it is killed
//     there, another process resumes the device (guardian).
//   - The device is under nothing that a resume has to look at first: udev leaves it alone
//     (liveRules), and the commands of LVM that package thin runs pass it over.
package service
