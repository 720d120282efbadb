package loopdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is a line of /proc/self/mountinfo.
type mount struct {
	id      uint64
	dev     uint64
	point   string
	fsType  string
	source  string
	options []string // of the file system itself, the same for all its mounts
}

func mounts() ([]mount, error) {
	text, err := readKernelFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountinfo(string(text))
}

func parseMountinfo(text string) ([]mount, error) {
	var out []mount
	for line := range strings.Lines(text) {
		m, err := parseMount(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("mountinfo line %q: %w", line, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// parseMount reads: id parent major:minor root point options [fields] - type
// source options.
func parseMount(line string) (m mount, err error) {
	before, after, found := strings.Cut(line, " - ")
	left, right := strings.Split(before, " "), strings.Split(after, " ")
	if !found || len(left) < 6 || len(right) < 2 {
		return m, fmt.Errorf("fields are missing: %w", unix.EINVAL)
	}
	if m.id, err = strconv.ParseUint(left[0], 10, 64); err != nil {
		return m, err
	}
	majorText, minorText, _ := strings.Cut(left[2], ":")
	major, err := strconv.ParseUint(majorText, 10, 32)
	if err != nil {
		return m, err
	}
	minor, err := strconv.ParseUint(minorText, 10, 32)
	if err != nil {
		return m, err
	}
	m.dev = unix.Mkdev(uint32(major), uint32(minor))
	m.point, m.fsType, m.source = unescape(left[4]), right[0], unescape(right[1])
	if len(right) > 2 {
		m.options = strings.Split(right[2], ",")
	}
	return m, nil
}

// unescape undoes the \ooo that the kernel writes for blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// mountOf is the mount that an open file was reached through. It is empty if
// that mount is not one of this process, as with a file that was handed over.
func mountOf(f *os.File) (mount, error) {
	stx, err := statx(f, unix.STATX_MNT_ID)
	if err != nil {
		return mount{}, err
	}
	all, err := mounts()
	if err != nil {
		return mount{}, err
	}
	for _, m := range all {
		if stx.Mask&unix.STATX_MNT_ID != 0 && m.id == stx.Mnt_id {
			return m, nil
		}
	}
	return mount{}, nil
}

// blockDevice is the device number of the mount's source, if that is a block
// device. Some file systems, like btrfs, have a device number of their own.
func (m mount) blockDevice() (uint64, bool) {
	if _, err := nodeOf(m.dev); err == nil {
		return m.dev, true
	}
	var st unix.Stat_t
	if !strings.HasPrefix(m.source, "/") || unix.Stat(m.source, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, false
	}
	return st.Rdev, true
}

// swaps are the paths of /proc/swaps.
func swaps() ([]string, error) {
	text, err := readKernelFile("/proc/swaps")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, err
	}
	return parseSwaps(string(text)), nil
}

func parseSwaps(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 0 && strings.HasPrefix(fields[0], "/") {
			out = append(out, unescape(fields[0]))
		}
	}
	return out
}
