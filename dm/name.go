package dm

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Bytes that the kernel has room for, the closing NUL not counted.
const (
	MaxNameBytes = unix.DM_NAME_LEN - 1
	MaxUUIDBytes = unix.DM_UUID_LEN - 1

	maxTypeBytes = unix.DM_MAX_TYPE_NAME - 1
)

// portable holds what udev takes over into the name of a link as it is. The kernel
// allows more; names with other characters look different in /dev/mapper.
const portable = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789#+.:=@_-"

// CheckName says whether a device can be given this name: 1 to 127 of the characters
// A-Z a-z 0-9 # + . : = @ _ - and neither "." nor "..", nor "control", which is the
// node that device-mapper itself is reached by. The error is an ErrInvalid.
func CheckName(name string) error {
	switch name {
	case ".", "..", unix.DM_CONTROL_NODE:
		return invalid("no device can be named %q", name)
	}
	return checkPortable("name", name, MaxNameBytes)
}

// CheckUUID says whether a device can be given this UUID: up to 128 of the characters
// that a name may have. Empty means none. The error is an ErrInvalid.
func CheckUUID(uuid string) error {
	if uuid == "" {
		return nil
	}
	return checkPortable("UUID", uuid, MaxUUIDBytes)
}

func checkPortable(what, s string, maxBytes int) error {
	if s == "" {
		return invalid("the %s is empty", what)
	}
	if len(s) > maxBytes {
		return invalid("the %s has %d bytes, %d are allowed", what, len(s), maxBytes)
	}
	if bad := strings.Trim(s, portable); bad != "" {
		return invalid("the %s %q has other characters than A-Z a-z 0-9 # + . : = @ _ -", what, s)
	}
	return nil
}

func checkType(targetType string) error {
	return checkPortable("target type", targetType, maxTypeBytes)
}

// checkText refuses what would end early as a C string.
func checkText(what, s string) error {
	if strings.IndexByte(s, 0) >= 0 {
		return invalid("the %s contains a NUL byte", what)
	}
	return nil
}
