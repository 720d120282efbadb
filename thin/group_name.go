package thin

import (
	"fmt"
	"strings"
)

// maxGroupNameBytes is the longest name of LVM. A group and a volume in it also
// share the room of one name of device-mapper; of that LVM itself takes care.
const maxGroupNameBytes = 127

// groupNameCharacters are those that LVM allows in names, one more than a pool of
// this program.
const groupNameCharacters = nameCharacters + "+"

// What LVM keeps for volumes of its own: beginnings, and parts at any place.
var (
	reservedPrefixes = []string{"snapshot", "pvmove"}
	reservedParts    = []string{
		"_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mimage", "_mlog", "_pmspare",
		"_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_imeta", "_iorig",
	}
)

// ValidateGroupName says what is wrong with the name of a volume group of LVM, or of
// a volume in it, or returns nil. A valid name is no option and one path element.
// The error is an *Error with ErrInvalid.
func ValidateGroupName(name string) error {
	var state string
	switch {
	case name == "":
		state = "is empty"
	case len(name) > maxGroupNameBytes:
		state = fmt.Sprintf("has %d bytes", len(name))
	case name[0] == '-':
		state = `begins with "-"`
	case name == "." || name == "..":
		state = "is a directory"
	default:
		i := strings.IndexFunc(name, func(r rune) bool { return !strings.ContainsRune(groupNameCharacters, r) })
		if i < 0 {
			return nil
		}
		state = fmt.Sprintf("has a character that is not allowed at byte %d", i)
	}
	return &Error{
		Op: "check name", Object: fmt.Sprintf("%.150q", name), State: state, Err: ErrInvalid,
		Hint: fmt.Sprintf("a name of LVM has 1 to %d of the characters A-Z a-z 0-9 + . _ - and does not begin with -", maxGroupNameBytes),
	}
}

// validateNewVolumeName is ValidateGroupName for a volume that is to be made, which
// can have none of the names that LVM keeps for itself.
func validateNewVolumeName(name string) error {
	if err := ValidateGroupName(name); err != nil {
		return err
	}
	reserved := ""
	for _, prefix := range reservedPrefixes {
		if strings.HasPrefix(name, prefix) {
			reserved = "begins with " + prefix
		}
	}
	for _, part := range reservedParts {
		if strings.Contains(name, part) {
			reserved = "contains " + part
		}
	}
	if reserved == "" {
		return nil
	}
	return &Error{Op: "check name", Object: name, State: reserved + ", which LVM keeps for itself", Err: ErrInvalid, Hint: "take another name"}
}

// SplitGroupVolume takes GROUP/VOLUME apart, by the rules of LVM, and checks both
// names. The error is an *Error with ErrInvalid.
func SplitGroupVolume(s string) (group, volume string, err error) {
	group, volume, found := strings.Cut(s, "/")
	if !found {
		return "", "", &Error{
			Op: "check name", Object: fmt.Sprintf("%.150q", s), State: "is not of the form GROUP/VOLUME", Err: ErrInvalid,
			Hint: "write the volume group, a slash, and the volume",
		}
	}
	if err := ValidateGroupName(group); err != nil {
		return "", "", err
	}
	if err := ValidateGroupName(volume); err != nil {
		return "", "", err
	}
	return group, volume, nil
}
