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

// What a user of the command line sees of a dm-thin pool.
func TestThinctlMapperPool(t *testing.T) {
	t.Parallel()
	m := testkernel.Boot(t, testkernel.Config{Disks: mapperDisks(t), Script: scriptStart(programsDirectory(t)) + `
		state=$TMPDIR/state
		create() { thinctl pool create a --metadata /dev/ubda --data /dev/ubdb "$@"; }
		refused 4 create --block-size 64M
		says 'that is 1 blocks'
		refused 4 create --low-water 5000
		refused 4 thinctl pool create a --metadata /dev/ubda --data /dev/ubda
		says 'both data and metadata'
		create --block-size 128KiB --low-water 20 --json >"$TMPDIR/json"
		for key in name kind block_bytes data_blocks data_used_blocks metadata_blocks metadata_used_blocks reserved_blocks \
			transaction_id mode volumes; do
			grep -q "^  \"$key\": " "$TMPDIR/json" || { echo "no $key"; exit 1; }
		done
		[ "$(wc -l <"$TMPDIR/json")" = 13 ]
		[ "$(field block_bytes <"$TMPDIR/json")" = 131072 ]
		dmsetup table a | grep ' 256 20 .*error_if_no_space'
		grep '"metadata_key"' "$state/pools/a"

		echo abc >"$TMPDIR/blob"
		thinctl create a/v --size 10MiB --blob-file "$TMPDIR/blob"
		thinctl show a/v --json >"$TMPDIR/json"
		[ "$(field blob <"$TMPDIR/json")" = YWJjCg== ]
		[ "$(field path <"$TMPDIR/json")" = /dev/mapper/a-v ]
		mkfs.ext4 -q /dev/mapper/a-v
		mount /dev/mapper/a-v /mnt
		echo hello >/mnt/file
		refused 4 thinctl delete a/v
		says '/dev/mapper/a-v is mounted on /mnt'
		refused 4 thinctl deactivate a/v
		refused 4 thinctl pool close a
		umount /mnt
		thinctl deactivate a/v | grep 'deactivated volume a/v'
		[ ! -e /dev/mapper/a-v ]
		thinctl list a
		thinctl activate a/v
		refused 4 thinctl create a/v --size 1
		refused 4 thinctl show a/w

		thinctl pool close a
		[ "$(dmsetup ls)" = 'No devices found' ]
		refused 4 thinctl list a
		state=$TMPDIR/elsewhere
		thinctl pool open --metadata /dev/ubda --data /dev/ubdb | grep '^Name: *a$'
		refused 4 thinctl pool open --metadata /dev/ubdc --data /dev/ubdb
		thinctl activate a/v
		mount /dev/mapper/a-v /mnt
		[ "$(cat /mnt/file)" = hello ]
		umount /mnt
		thinctl pool grow a
		thinctl pool close a
		refused 4 create
		says 'thinctl pool open --data /dev/ubdb --metadata /dev/ubda'
		thinctl pool open --metadata /dev/ubda --data /dev/ubdb
		thinctl delete a/v
		thinctl pool destroy a
		refused 4 thinctl pool open --metadata /dev/ubda --data /dev/ubdb
		echo all is well
	`})
	mustSucceed(t, m)
}

// fault 36: where a pool has no room for the data, nothing is begun; where another
// volume takes the room meanwhile, the migration stops, and goes on when there is room.
func TestFault36MigrateIntoFullMapperPool(t *testing.T) {
	t.Parallel()
	disks := append(mapperDisks(t), testkernel.NewDisk(t, 128*mib))
	m := testkernel.Boot(t, testkernel.Config{Disks: disks, Script: scriptStart(programsDirectory(t)) + `
		mkfs.ext4 -q -m 0 /dev/ubde
		mount /dev/ubde /mnt
		dd if=/dev/urandom of=/mnt/image bs=1M count=40 status=none
		sum=$(md5sum </mnt/image)
		thinctl pool create a --metadata /dev/ubda --data /dev/ubdb
		thinctl create a/other --size 64MiB
		dd if=/dev/zero of=/dev/mapper/a-other bs=1M count=30 oflag=direct status=none
		refused 4 migrate /mnt/image a/vol --discard-src --progress none
		[ "$(md5sum </mnt/image)" = "$sum" ]
		refused 4 thinctl show a/vol

		blkdiscard /dev/mapper/a-other
		echo 1 >/sys/module/dm_thin_pool/parameters/no_space_timeout
		migrate /mnt/image a/vol --discard-src --bwlimit 10M --commit-bytes 4M --progress none 2>"$TMPDIR/stopped" &
		mover=$!
		until thinctl show a/vol --json 2>/dev/null | grep -q '"mapped_bytes": [1-9][0-9]\{6\}'; do sleep 0.2; done
		dd if=/dev/zero of=/dev/mapper/a-other bs=64K oflag=direct status=none 2>/dev/null && exit 1
		code=0; wait $mover || code=$?
		cat "$TMPDIR/stopped"
		[ "$code" = 3 ]
		blkdiscard /dev/mapper/a-other
		thinctl pool show a
		migrate /mnt/image a/vol --discard-src --progress none
		[ "$(head -c 41943040 /dev/mapper/a-vol | md5sum)" = "$sum" ]
		echo all is well
	`})
	mustSucceed(t, m)
}
