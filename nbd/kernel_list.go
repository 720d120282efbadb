package nbd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// KernelUse is a network block device of the kernel that is in use.
type KernelUse struct {
	Index int
	// PID is of the thread that has connected it, which may be long gone.
	PID int
	// Backend is what it was connected with; empty before Linux 5.14.
	Backend string
}

// KernelUses lists the network block devices that are connected, in order of their
// index. Without the module there are none.
func KernelUses() ([]KernelUse, error) { return kernelUsesIn(sysBlock) }

const sysBlock = "/sys/block"

func kernelSysfs(index int) string { return filepath.Join(sysBlock, fmt.Sprintf("nbd%d", index)) }

func kernelUsesIn(dir string) ([]KernelUse, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list network block devices: %w", err)
	}
	var uses []KernelUse
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "nbd")
		index, err := strconv.Atoi(digits)
		if !ok || err != nil {
			continue
		}
		// The attribute is there as long as the device is connected.
		pid, err := readAttribute(filepath.Join(dir, e.Name(), "pid"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		use := KernelUse{Index: index}
		if use.PID, err = strconv.Atoi(pid); err != nil {
			return nil, fmt.Errorf("%s: its pid is %q", e.Name(), pid)
		}
		if use.Backend, err = readAttribute(filepath.Join(dir, e.Name(), "backend")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		uses = append(uses, use)
	}
	slices.SortFunc(uses, func(a, b KernelUse) int { return a.Index - b.Index })
	return uses, nil
}

func readAttribute(path string) (string, error) {
	text, err := os.ReadFile(path)
	return strings.TrimSuffix(string(text), "\n"), err
}
