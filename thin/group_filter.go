package thin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"decant/loopdev"
)

// LVM looks at every block device that its configuration lets it. A live device that a
// process of this program serves does not answer while there is no such process; and the
// next one may ask LVM for its ends before it can answer. So LVM passes such devices
// over.

// unserved are patterns for the paths of devices that may not answer: live devices over
// network block devices, and these.
func unserved(sysBlock string) ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(sysBlock, "dm-*"))
	if err != nil {
		return nil, err
	}
	var patterns []string
	for _, dir := range dirs {
		uuid, err := os.ReadFile(filepath.Join(dir, "dm", "uuid"))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !strings.HasPrefix(string(uuid), loopdev.StackedUUID) {
			continue
		}
		below, globErr := filepath.Glob(filepath.Join(dir, "slaves", "nbd*"))
		name, nameErr := os.ReadFile(filepath.Join(dir, "dm", "name"))
		number, numberErr := os.ReadFile(filepath.Join(dir, "dev"))
		if err := errors.Join(err, globErr, nameErr, numberErr); err != nil {
			return nil, err
		}
		if len(below) == 0 {
			continue
		}
		quote := func(b []byte) string { return regexp.QuoteMeta(strings.TrimSpace(string(b))) }
		// All names that udev may have given it: LVM takes a device by any of them.
		patterns = append(patterns, fmt.Sprintf("^/dev/(mapper/%s|%s|block/%s|disk/by-id/dm-name-%s|disk/by-id/dm-uuid-%s)$",
			quote(name), filepath.Base(dir), quote(number), quote(name), quote(uuid)))
		for _, b := range below {
			patterns = append(patterns, "^/dev/"+filepath.Base(b)+"$")
		}
	}
	return patterns, nil
}

// passOver is what LVM's commands are configured with besides: nothing, or a filter with
// these devices in front of what the administrator has configured.
func (l lvm2) passOver() (config string, err error) {
	patterns, err := unserved("/sys/block")
	if err != nil || len(patterns) == 0 {
		return "", err
	}
	// It fails where there is no such filter, and looks at no device.
	configured, err := l.execute("config", "devices/global_filter")
	var failed *commandError
	if err != nil && !errors.As(err, &failed) {
		return "", err
	}
	return filterConfig(patterns, string(configured)), nil
}

// withConfig adds a configuration to the arguments of a command, which may have one.
func withConfig(config string, args []string) []string {
	if config == "" {
		return args
	}
	i := slices.Index(args, "--config")
	if i < 0 {
		return append([]string{"--config", config}, args...)
	}
	args = slices.Clone(args)
	args[i+1] += " " + config
	return args
}

// filterConfig puts patterns to be rejected in front of a configured filter, which is
// empty, or an assignment of a string or of a list of strings.
func filterConfig(patterns []string, configured string) string {
	words := make([]string, 0, len(patterns)+1)
	for _, p := range patterns {
		// A character that no path of a device has separates; backslashes are doubled.
		words = append(words, `"r!`+strings.ReplaceAll(p, `\`, `\\`)+`!"`)
	}
	_, value, _ := strings.Cut(strings.TrimSpace(configured), "=")
	value = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(value), "["), "]")
	if value = strings.TrimSpace(value); value != "" {
		words = append(words, value)
	}
	return "devices/global_filter=[" + strings.Join(words, ",") + "]"
}
