package thin

import (
	"fmt"
	"strings"
)

// MaxNameBytes is the longest name that a pool or a volume may have.
const MaxNameBytes = 100

// nameCharacters are all that a name may be made of. None of them means anything
// to a shell, a path or a device-mapper name.
const nameCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

// ValidateName says what is wrong with the name of a pool or a volume, or returns
// nil. A valid name is one path element, is no option, and is not hidden. The
// error is an *Error with ErrInvalid.
func ValidateName(name string) error {
	var state string
	switch {
	case name == "":
		state = "is empty"
	case len(name) > MaxNameBytes:
		state = fmt.Sprintf("has %d bytes", len(name))
	case name[0] == '-' || name[0] == '.':
		state = fmt.Sprintf("begins with %q", name[0])
	default:
		i := strings.IndexFunc(name, func(r rune) bool { return !strings.ContainsRune(nameCharacters, r) })
		if i < 0 {
			return nil
		}
		state = fmt.Sprintf("has a character that is not allowed at byte %d", i)
	}
	return &Error{
		Op: "check name", Object: fmt.Sprintf("%.120q", name), State: state, Err: ErrInvalid,
		Hint: fmt.Sprintf("a name has 1 to %d of the characters A-Z a-z 0-9 . _ - and begins with neither . nor -", MaxNameBytes),
	}
}

// SplitVolume takes POOL/VOLUME apart and checks both names. The error is an
// *Error with ErrInvalid.
func SplitVolume(s string) (pool, volume string, err error) {
	pool, volume, found := strings.Cut(s, "/")
	if !found {
		return "", "", &Error{
			Op: "check name", Object: fmt.Sprintf("%.120q", s), State: "is not of the form POOL/VOLUME", Err: ErrInvalid,
			Hint: "write the pool, a slash, and the volume",
		}
	}
	if err := ValidateName(pool); err != nil {
		return "", "", err
	}
	if err := ValidateName(volume); err != nil {
		return "", "", err
	}
	return pool, volume, nil
}
