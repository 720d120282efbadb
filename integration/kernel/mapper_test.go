package kernel

import (
	"strings"
	"testing"

	"decant/integration/testkernel"
)

// mapperDisks are metadata and data for two pools.
func mapperDisks(t *testing.T) []string {
	t.Helper()
	return []string{
		testkernel.NewDisk(t, 8*mib), testkernel.NewDisk(t, 64*mib),
		testkernel.NewDisk(t, 8*mib), testkernel.NewDisk(t, 96*mib),
	}
}

func TestMapperPools(t *testing.T) {
	t.Parallel()
	testkernel.RunTests(t, "../../thin", "^TestKernelMapper", mapperDisks(t)...)
}

// The power fails in the middle of a change. The next boot finds the pool by its
// devices alone, in a state directory of its own.
func TestMapperPowerCut(t *testing.T) {
	t.Parallel()
	program := testkernel.Build(t, "../../thin")
	for _, c := range []struct{ change, step string }{
		{"create", "created thin device"}, {"create", "set transaction id"}, {"delete", "deleted thin device"},
	} {
		t.Run(c.change+"/"+c.step, func(t *testing.T) {
			disks := mapperDisks(t)
			boot := func(test string) *testkernel.Machine {
				return testkernel.Boot(t, testkernel.Config{
					Disks: disks, Command: []string{program, "-test.v", "-test.run=^" + test + "$"},
					Env: []string{"DECANT_TEST_CHANGE=" + c.change, "DECANT_TEST_STEP=" + c.step},
				})
			}
			before := boot("TestPowerCutBefore")
			before.WaitOutput("after the step")
			before.PowerCut()
			if v := boot("TestPowerCutAfter").Wait(); v.ExitCode != 0 || !strings.Contains(v.Output, "--- PASS: TestPowerCutAfter") {
				t.Errorf("after the power cut: code %d\n%s", v.ExitCode, v.Output)
			}
		})
	}
}

// scriptStart has what all scripts need: the programs, an end at the first failure,
// and refused, for a command that must end with a certain code.
func scriptStart(dir string) string {
	return "PATH=" + dir + ":$PATH\n" + `
		set -eu
		state=/mnt/state
		thinctl() { command thinctl --state-dir "$state" "$@"; }
		migrate() { command migrate --state-dir "$state" "$@"; }
		refused() {
			want=$1; shift
			code=0; "$@" 2>"$TMPDIR/refused" || code=$?
			[ "$code" = "$want" ] || { echo "$*: ended with code $code, want $want"; cat "$TMPDIR/refused"; exit 1; }
		}
		says() { grep -q "$1" "$TMPDIR/refused" || { echo "no \"$1\" in:"; cat "$TMPDIR/refused"; exit 1; }; }
		field() { tr -d ' ",' | sed -n "s/^$1://p"; }
	`
}

func mustSucceed(t *testing.T, m *testkernel.Machine) {
	t.Helper()
	if v := m.Wait(); v.ExitCode != 0 || !strings.HasSuffix(strings.TrimSpace(v.Output), "all is well") {
		t.Errorf("ended with code %d:\n%s", v.ExitCode, v.Output)
	}
}

// The real programs: an image moves into a dm-thin pool, and on into another one.
func TestMigrateIntoMapperPools(t *testing.T) {
	t.Parallel()
	disks := append(mapperDisks(t), testkernel.NewDisk(t, 64*mib))
	m := testkernel.Boot(t, testkernel.Config{Disks: disks, Script: scriptStart(programsDirectory(t)) + `
		mkfs.ext4 -q -m 0 /dev/ubde
		mount /dev/ubde /mnt
		dd if=/dev/urandom of=/mnt/image bs=64K count=200 seek=10 status=none
		truncate -s 30000001 /mnt/image
		size=$(stat -c %s /mnt/image)
		sum=$(md5sum </mnt/image)

		thinctl pool create a --metadata /dev/ubda --data /dev/ubdb
		thinctl pool create b --metadata /dev/ubdc --data /dev/ubdd --block-size 128K --low-water 10
		thinctl pool list
		migrate /mnt/image a/vol --discard-src --verify --progress plain
		[ "$(stat -c %b /mnt/image)" -le 16 ] # its mark
		thinctl show a/vol --json
		[ "$(head -c $size /dev/mapper/a-vol | md5sum)" = "$sum" ]
		[ "$(thinctl show a/vol --json | field mapped_bytes)" -le $((201 * 65536)) ]
		used=$(thinctl pool show a --json | field data_used_blocks)
		[ "$used" -ge 200 ]

		migrate a/vol b/vol --discard-src --progress plain
		[ "$(head -c $size /dev/mapper/b-vol | md5sum)" = "$sum" ]
		[ "$(thinctl show a/vol --json | field mapped_bytes)" -le 65536 ]
		[ "$(thinctl pool show a --json | field data_used_blocks)" -lt 5 ]
		migrate list
		thinctl delete a/vol
		thinctl list
		refused 4 thinctl pool destroy b
		says 'it has 1 volumes'
		thinctl pool destroy a
		thinctl pool create a --metadata /dev/ubda --data /dev/ubdb
		echo all is well
	`})
	mustSucceed(t, m)
}
