package kernel

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"decant/integration/testkernel"
)

// lives are those of one machine whose power is cut: the disks stay, and what its script
// has said to be durable has to be there in each life that follows.
type lives struct {
	disks   []string
	script  string
	env     []string // of each life
	durable int      // the number of what became durable last
}

// boot begins a life.
func (l *lives) boot(t *testing.T, life int, more ...string) *testkernel.Machine {
	t.Helper()
	var old []string
	for n := 1; n <= l.durable; n++ {
		old = append(old, strconv.Itoa(n))
	}
	env := append([]string{
		"PROGRAMS=" + programsDirectory(t), "OLD=" + strings.Join(old, " "), fmt.Sprintf("NEXT=%d", l.durable+1),
	}, l.env...)
	if life == 0 {
		env = append(env, "FIRST=1")
	}
	return testkernel.Boot(t, testkernel.Config{Disks: l.disks, Env: append(env, more...), Script: l.script, MemoryBytes: 512 * mib})
}

var saidDurable = regexp.MustCompile(`(?m)^durable (\d+)$`)

// note takes in what a life has said.
func (l *lives) note(output string) {
	if m := saidDurable.FindAllStringSubmatch(output, -1); len(m) > 0 {
		l.durable, _ = strconv.Atoi(m[len(m)-1][1]) // it matches digits
	}
}
