package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"decant/service"
)

const (
	leastTokenBytes = 16
	mostTokenBytes  = 4096
)

// CheckToken says what keeps a text from being the token of a service; nil: nothing.
func CheckToken(text string) error {
	if len(text) < leastTokenBytes || len(text) > mostTokenBytes {
		return fmt.Errorf("a token has from %d to %d characters", leastTokenBytes, mostTokenBytes)
	}
	for _, b := range []byte(text) {
		if b <= ' ' || b > '~' {
			return errors.New("a token is made of printable ASCII characters without spaces")
		}
	}
	return nil
}

// ReadTokenFile is the text of a token, one line, from a file that belongs to root or
// this user, and that others can neither read nor write. Anything else is refused with a
// *service.Error.
func ReadTokenFile(path string) (string, error) {
	text, err := readPrivate(path)
	if err == nil {
		err = CheckToken(text)
	}
	if err != nil {
		return "", &service.Error{
			Outcome: service.Refused, Object: path, Problem: "no token can be read from it",
			Hint: "make one with: (umask 077; openssl rand -hex 32 >" + path + ")", Err: err,
		}
	}
	return text, nil
}

// readPrivate is what a file holds that nobody else may use, without the end of its line.
func readPrivate(path string) (string, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }() // only read
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return "", err
	}
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return "", errors.New("not a regular file")
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return "", fmt.Errorf("it belongs to user %d", stat.Uid)
	case stat.Mode&0o027 != 0:
		return "", fmt.Errorf("others may use it: its mode is %04o, make it 0600", stat.Mode&0o7777)
	}
	text, err := io.ReadAll(io.LimitReader(file, mostTokenBytes+2))
	if err != nil {
		return "", err
	}
	return string(bytes.TrimRight(text, "\r\n")), nil
}
