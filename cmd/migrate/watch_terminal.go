package main

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const (
	// enterScreen goes to the alternate screen, hides the cursor, and has long lines
	// cut; leaveScreen undoes it.
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// screenTerminal is a terminal that a watch has for itself between enter and leave. Its
// methods may be called concurrently, and more than once.
type screenTerminal struct {
	in, out *os.File

	mu    sync.Mutex
	saved *term.State // nil: it is as it was found
}

func (t *screenTerminal) enter() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil {
		return nil
	}
	saved, err := term.MakeRaw(int(t.in.Fd()))
	if err != nil {
		return err
	}
	t.saved = saved
	_, err = t.out.WriteString(enterScreen)
	return err
}

// leave leaves the terminal as it was found. Nothing can be done about one that is gone.
func (t *screenTerminal) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved == nil {
		return
	}
	_, _ = t.out.WriteString(leaveScreen)
	_ = term.Restore(int(t.in.Fd()), t.saved)
	t.saved = nil
}

// draw writes a frame, unless the terminal was left.
func (t *screenTerminal) draw(frame []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved == nil {
		return nil
	}
	_, err := t.out.Write(frame)
	return err
}

func (t *screenTerminal) size() screenSize {
	columns, rows, err := term.GetSize(int(t.out.Fd()))
	if err != nil || columns <= 0 || rows <= 0 {
		return screenSize{defaultColumns, 24} // a terminal that does not know
	}
	return screenSize{columns, rows}
}

// suspend stops this process as Ctrl-Z does, with the terminal as it was found, and
// returns when it goes on.
func (t *screenTerminal) suspend() error {
	t.leave()
	if err := unix.Kill(os.Getpid(), unix.SIGSTOP); err != nil {
		return err
	}
	return t.enter()
}

// guard is deferred by every goroutine beside the one that has entered the terminal: a
// mistake in the code must not leave it in disorder.
func (t *screenTerminal) guard() {
	if failure := recover(); failure != nil { //nolint:revive // guard is what is deferred
		t.leave()
		panic(failure)
	}
}

// key is what a person has pressed.
type key int

const (
	keyUp key = iota
	keyDown
	keyPause
	keyResume
	keyRedraw
	keySuspend
	keyQuit
)

var keyBytes = map[string]key{
	"\x1b[A": keyUp, "\x1bOA": keyUp, "k": keyUp, "\x1b[B": keyDown, "\x1bOB": keyDown, "j": keyDown,
	"p": keyPause, "r": keyResume, "q": keyQuit, "\x03": keyQuit, "\x04": keyQuit, "\x0c": keyRedraw, "\x1a": keySuspend,
}

// parseKeys takes what a terminal has sent apart, and returns what may be the beginning
// of a key. Keys without a meaning are passed over.
func parseKeys(input []byte) (keys []key, rest []byte) {
	for len(input) > 0 {
		n := 1
		if input[0] == '\x1b' {
			if n = escapeLength(input); n == 0 {
				return keys, input
			}
		}
		if k, known := keyBytes[string(input[:n])]; known {
			keys = append(keys, k)
		}
		input = input[n:]
	}
	return keys, nil
}

// longestEscape bounds what is waited for.
const longestEscape = 16

// escapeLength is how long the escape sequence is with which input begins; 0: its end
// has not come yet.
func escapeLength(input []byte) int {
	if len(input) == 1 {
		return 0
	}
	switch input[1] {
	case 'O':
		if len(input) < 3 {
			return 0
		}
		return 3
	case '[':
		for i := 2; i < min(len(input), longestEscape); i++ {
			if input[i] >= '@' && input[i] <= '~' {
				return i + 1
			}
		}
		if len(input) < longestEscape {
			return 0
		}
		return longestEscape
	}
	return 1 // the key itself, and another one
}

// readKeys sends the keys of a terminal until it is gone.
func (t *screenTerminal) readKeys(keys chan<- key) {
	defer t.guard()
	defer close(keys)
	var pending []byte
	buffer := make([]byte, 256)
	for {
		n, err := t.in.Read(buffer)
		if err != nil || n == 0 {
			return
		}
		var found []key
		found, pending = parseKeys(append(pending, buffer[:n]...))
		for _, k := range found {
			keys <- k
		}
	}
}
