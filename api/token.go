package api

import (
	"crypto/sha256"
	"crypto/subtle"

	"decant/api/client"
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
	if err := client.CheckToken(text); err != nil {
		return Token{}, err
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

// LoadToken reads a token from a file that client.ReadTokenFile takes.
func LoadToken(path string) (Token, error) {
	text, err := client.ReadTokenFile(path)
	if err != nil {
		return Token{}, err
	}
	return NewToken(text)
}
