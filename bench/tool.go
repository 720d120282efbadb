package main

import (
	"os/exec"
	"strings"
)

// The words that stand for what each run has of its own in the arguments of a tool.
const (
	sourceWord      = "SOURCE"
	destinationWord = "DESTINATION"
	mapWord         = "MAPFILE"
	stateWord       = "STATE-DIR"
)

// tool is one of the programs that are compared.
type tool struct {
	name    string
	args    []string // program and arguments
	migrate bool     // it prints migrate's events
}

// tools are the programs, the one that the others are compared with first.
func tools(migrate string) []tool {
	ours := func(flags ...string) tool {
		args := append([]string{migrate, "--progress=json", "--state-dir", stateWord}, flags...)
		name := strings.TrimSpace("migrate " + strings.Join(flags, " "))
		return tool{name: name, args: append(args, sourceWord, destinationWord), migrate: true}
	}
	return []tool{
		ours("--discard-src"),
		ours("--discard-src", "--verify"),
		ours(),
		{name: "cp", args: []string{"cp", "--sparse=always", sourceWord, destinationWord}},
		{name: "qemu-img convert", args: []string{
			"qemu-img", "convert", "-f", "raw", "-O", "raw", "-W", "-m", "16", "-t", "none", "-T", "none", sourceWord, destinationWord,
		}},
		{name: "nbdcopy", args: []string{"nbdcopy", sourceWord, destinationWord}},
		{name: "ddrescue", args: []string{"ddrescue", "--quiet", "--sparse", sourceWord, destinationWord, mapWord}},
	}
}

// with puts the files of a run in place of the words.
func (t tool) with(files map[string]string) []string {
	args := make([]string, len(t.args))
	for i, arg := range t.args {
		args[i] = arg
		if file, ok := files[arg]; ok {
			args[i] = file
		}
	}
	return args
}

// version is the first line that the program says about itself; empty if it says
// nothing.
func (t tool) version() string {
	out, err := exec.Command(t.args[0], "--version").Output()
	if err != nil {
		return "" // not every program has that flag
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// commands lists the exact command lines and versions.
func commands(all []tool) string {
	var b strings.Builder
	b.WriteString("Commands\n")
	for _, t := range all {
		b.WriteString("  " + strings.Join(t.args, " ") + "\n")
		if v := t.version(); v != "" {
			b.WriteString("      " + v + "\n")
		}
	}
	return b.String()
}
