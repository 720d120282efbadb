package testkernel

import (
	"bufio"
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultModules is what a machine has if its Config does not say. The device-mapper
// targets linear, striped and error are part of dm-mod. Modules that they need come
// along, what is part of the kernel itself may be named and is there anyway.
var DefaultModules = []string{
	"dm-mod", "dm-bufio", "dm-bio-prison", "dm-persistent-data", "dm-thin-pool", "dm-clone", "dm-snapshot",
	"dm-flakey", "dm-dust", "dm-delay", "dm-zero", "dm-log-writes", "dm-era", "loop", "nbd", "fuse",
}

// Files in the directory that host and machine share.
const (
	initFile    = "init"
	jobFile     = "job"
	startedFile = "started" // made when the command starts
	verdictFile = "verdict" // the exit code
	workDir     = "work"
	memoryDir   = "memory" // where a tmpfs is mounted inside
	lvmDir      = "lvm"
)

const maxDisks = 16

//go:embed init.sh
var initScript string

//go:embed lvm.conf
var lvmConfig string

// prepare writes what the machine needs into the exchange directory, and composes
// the kernel's command line.
func (m *Machine) prepare(c Config) error {
	if len(c.Disks) > maxDisks {
		return fmt.Errorf("%d disks, at most %d are possible", len(c.Disks), maxDisks)
	}
	if (len(c.Command) == 0) == (c.Script == "") {
		return errors.New("one of Command and Script must be set")
	}
	program, err := exec.LookPath(kernelProgram)
	if err != nil {
		return fmt.Errorf("%w: install the Debian package user-mode-linux", err)
	}
	modules, err := findModules(program, c.Modules)
	if err != nil {
		return err
	}
	for _, dir := range []string{workDir, memoryDir, lvmDir} {
		if err := os.Mkdir(filepath.Join(m.dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(m.dir, lvmDir, "lvm.conf"), []byte(lvmConfig), 0o600); err != nil {
		return err
	}
	if err := m.writeScripts(c, modules); err != nil {
		return err
	}
	return m.compose(program, c)
}

func (m *Machine) writeScripts(c Config, modules []string) error {
	job := c.Script
	if job == "" {
		job = "exec " + quote(c.Command...) + "\n"
	}
	if err := os.WriteFile(filepath.Join(m.dir, jobFile), []byte(job), 0o600); err != nil {
		return err
	}
	var nodes []string
	for i := range c.Disks {
		nodes = append(nodes, "/dev/ubd"+string(rune('a'+i)))
	}
	env := append([]string{
		"DECANT_TEST_KERNEL=1",
		"DECANT_TEST_DISKS=" + strings.Join(nodes, " "),
		"DM_DISABLE_UDEV=1",
		"LVM_SYSTEM_DIR=" + filepath.Join(m.dir, lvmDir),
		"TMPDIR=" + filepath.Join(m.dir, memoryDir),
		"HOME=" + filepath.Join(m.dir, memoryDir),
	}, c.Env...)
	init := strings.NewReplacer(
		"@DIR@", quote(m.dir),
		"@WORK@", quote(cmp.Or(c.Dir, filepath.Join(m.dir, workDir))),
		"@MODULES@", quote(modules...),
		"@ENV@", quote(env...),
	).Replace(initScript)
	return os.WriteFile(filepath.Join(m.dir, initFile), []byte(init), 0o700)
}

// compose is the kernel's command line. It is cut at blanks, and disks at commas and
// colons too, so that it names nothing but links in the exchange directory, which is
// the working directory.
func (m *Machine) compose(program string, c Config) error {
	memoryBytes := cmp.Or(c.MemoryBytes, 1<<30)
	args := []string{
		fmt.Sprintf("mem=%dM", memoryBytes>>20), "umid=machine", "uml_dir=" + m.dir,
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
		"init=" + filepath.Join(m.dir, initFile),
		"con=null", "con0=null,fd:1", "con1=null,fd:3",
	}
	for i, disk := range c.Disks {
		path, err := filepath.Abs(disk)
		if err != nil {
			return err
		}
		if info, err := os.Stat(path); err != nil {
			return err
		} else if !info.Mode().IsRegular() {
			return fmt.Errorf("disk %s is no regular file", path)
		}
		link := fmt.Sprintf("disk%d", i)
		if err := os.Symlink(path, filepath.Join(m.dir, link)); err != nil {
			return err
		}
		args = append(args, fmt.Sprintf("ubd%d=%s", i, link))
	}
	m.cmd = exec.Command(program, args...)
	m.cmd.Dir = m.dir
	m.cmd.Env = []string{"TMPDIR=" + m.memoryFileDir(memoryBytes), "HOME=" + m.dir}
	return nil
}

// memoryFiles is where files are in memory.
const memoryFiles = "/dev/shm"

// fitsIntoMemory says whether there is room for so much. Containers often have 64 MiB.
func fitsIntoMemory(bytes int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(memoryFiles, &st) == nil && int64(st.Bavail)*st.Bsize >= bytes
}

// memoryFileDir is where the kernel keeps its memory, in a file: on tmpfs if it fits.
func (m *Machine) memoryFileDir(bytes int64) string {
	if fitsIntoMemory(bytes) {
		return memoryFiles
	}
	return m.dir
}

// findModules is the paths of the modules in an order in which they can be inserted.
func findModules(program string, names []string) ([]string, error) {
	if names == nil {
		names = DefaultModules
	}
	release, err := exec.Command(program, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", program, err)
	}
	dir := filepath.Join("/usr/lib/uml/modules", strings.TrimSpace(string(release)))
	needs, err := readDependencies(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, name := range names {
		if strings.Contains(string(builtin), "/"+name+".ko\n") {
			continue
		}
		chain, known := needs[name]
		if !known {
			return nil, fmt.Errorf("%s has no module %s", dir, name)
		}
		for _, module := range chain {
			if path := filepath.Join(dir, module); !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
	}
	return paths, nil
}

// readDependencies reads modules.dep: lines "MODULE: NEEDED...", where what stands
// further right is needed first. The result has the module itself at the end.
func readDependencies(path string) (map[string][]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	needs := map[string][]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		module, needed, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			return nil, fmt.Errorf("%s: line without a colon: %q", path, lines.Text())
		}
		chain := append([]string{module}, strings.Fields(needed)...)
		slices.Reverse(chain)
		needs[strings.TrimSuffix(filepath.Base(module), ".ko")] = chain
	}
	return needs, lines.Err()
}

// quote makes words of a shell script.
func quote(words ...string) string {
	quoted := make([]string, 0, len(words))
	for _, w := range words {
		quoted = append(quoted, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
	}
	return strings.Join(quoted, " ")
}
