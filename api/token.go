package api

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
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

// Token is a secret that clients on the network have to show. It does not show
// itself in logs.
type Token struct{ digest *[sha256.Size]byte }

// String implements fmt.Stringer.
func (Token) String() string { return "(a token)" }

// GoString implements fmt.GoStringer.
func (Token) GoString() string { return "(a token)" }

// IsSet says whether there is a token.
func (t Token) IsSet() bool { return t.digest != nil }

// NewToken is the token that text spells.
func NewToken(text string) (Token, error) {
	if len(text) < leastTokenBytes || len(text) > mostTokenBytes {
		return Token{}, fmt.Errorf("a token has from %d to %d characters", leastTokenBytes, mostTokenBytes)
	}
	for _, b := range []byte(text) {
		if b <= ' ' || b > '~' {
			return Token{}, errors.New("a token is made of printable ASCII characters without spaces")
		}
	}
	digest := sha256.Sum256([]byte(text))
	return Token{&digest}, nil
}

// matches says whether text is the token, in a time that does not tell how much of
// it is right.
func (t Token) matches(text string) bool {
	if t.digest == nil {
		return false
	}
	digest := sha256.Sum256([]byte(text))
	return subtle.ConstantTimeCompare(t.digest[:], digest[:]) == 1
}

// LoadToken reads a token, one line, from a file that belongs to root or this user,
// and that others can neither read nor write.
func LoadToken(path string) (Token, error) {
	text, err := ReadTokenFile(path)
	if err != nil {
		return Token{}, err
	}
	token, err := NewToken(text)
	if err != nil {
		return Token{}, refuseToken(path, err)
	}
	return token, nil
}

func refuseToken(path string, cause error) error {
	return &service.Error{
		Outcome: service.Refused, Object: path, Problem: "no token can be read from it",
		Hint: "make one with: (umask 077; openssl rand -hex 32 >" + path + ")", Err: cause,
	}
}

// ReadTokenFile is the text of a token, for a client that has to send it.
func ReadTokenFile(path string) (string, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", refuseToken(path, err)
	}
	defer func() { _ = file.Close() }() // only read
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return "", refuseToken(path, err)
	}
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return "", refuseToken(path, errors.New("not a regular file"))
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return "", refuseToken(path, fmt.Errorf("it belongs to user %d", stat.Uid))
	case stat.Mode&0o027 != 0:
		return "", refuseToken(path, fmt.Errorf("others may use it: its mode is %04o, make it 0600", stat.Mode&0o7777))
	}
	text, err := io.ReadAll(io.LimitReader(file, mostTokenBytes+2))
	if err != nil {
		return "", refuseToken(path, err)
	}
	return string(bytes.TrimRight(text, "\r\n")), nil
}
