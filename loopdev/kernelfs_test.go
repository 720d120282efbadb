package loopdev

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestKernelFilesAreReadWhole(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int{0, 1, 4095, 4096, 4097, 100_000} {
		path := filepath.Join(dir, fmt.Sprint(size))
		want := bytes.Repeat([]byte("text "), size/5+1)[:size]
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readKernelFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d, %v", len(got), size, err)
		}
	}
	if text, err := readKernelFile("/proc/self/stat"); err != nil || len(text) == 0 {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := readKernelFile(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := readKernelFile(dir); err == nil {
		t.Error("a directory was read")
	}
}

func TestNamesInADirectory(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 1000 {
		name := fmt.Sprintf("a name that is rather long so that several calls are needed %d", i)
		want = append(want, name)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := namesIn(dir)
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d names of %d, %v", len(got), len(want), err)
	}
	if _, err := namesIn(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
	if _, err := namesIn(filepath.Join(dir, want[0])); err == nil {
		t.Error("a file has names in it")
	}
}
