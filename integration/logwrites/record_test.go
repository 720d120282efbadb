package logwrites_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"decant/integration/logwrites"
	"decant/integration/testkernel"
)

// nightlyVariable asks for the long forms of the tests.
const nightlyVariable = "DECANT_NIGHTLY"

func nightly() bool { return os.Getenv(nightlyVariable) != "" }

const (
	kib = int64(1) << 10
	mib = int64(1) << 20

	regionBytes = 64 * kib // and of a block of the pool
	regions     = 16
	imageBytes  = regions * regionBytes

	// The directory of the journals on its file system, and the name of the image.
	stateName = "state"
	imageName = "image"
)

// What lies on the media.
const (
	sourceMedium   = "source"   // ext4 with the image
	metadataMedium = "metadata" // of the thin pool
	dataMedium     = "data"     // of the thin pool
	journalMedium  = "journal"  // ext4 with the state directory
)

// media are the slices of the one device that is recorded.
var media = []logwrites.Medium{
	{Name: sourceMedium, Off: 0, Bytes: 16 * mib, UntornBytes: logwrites.BlockBytes},
	{Name: metadataMedium, Off: 16 * mib, Bytes: 4 * mib},
	{Name: dataMedium, Off: 20 * mib, Bytes: 4 * mib},
	{Name: journalMedium, Off: 24 * mib, Bytes: 16 * mib, UntornBytes: logwrites.BlockBytes},
}

const (
	mediaBytes = 40 * mib
	logBytes   = 128 * mib // a sparse file

	// machineTimeout is for machines that hang, not for slow ones.
	machineTimeout = 10 * time.Minute
)

// migration is a run of the program that is recorded.
type migration struct {
	name  string
	flags string
	// killAfter is the transaction after which the program is killed, to be started
	// again; 0: it is not.
	killAfter int
	// goesOn are the flags of the second start.
	goesOn string
	// Of the program with this mistake in it.
	bug plantedBug
}

var migrations = []migration{
	{name: "forward", flags: "--discard-src"},
	{name: "verified", flags: "--discard-src --verify"},
	// fault 63, fault 67: the power is cut while a crash is being recovered from.
	{name: "killed", flags: "--discard-src --bwlimit 512KiB", killAfter: 2, goesOn: "--discard-src"},
}

// Regions of the image without random data.
var (
	holes       = []int{3, 12}
	zeroRegions = []int{5, 13}
)

// recorded is a migration with everything that it did to its media.
type recorded struct {
	name  string
	image []byte
	log   *logwrites.Recording
	begun int // so many entries belong to the preparation
}

// Labels of marks. That of a commit is followed by its number.
const (
	beginMark  = "begin"
	commitMark = "tx="
	endMark    = "end"
)

// makeImage fills the image. Every eight bytes tell where they belong; which are
// random tells a region from one of another image.
func makeImage(seed uint64) []byte {
	image, rng := make([]byte, imageBytes), rand.New(rand.NewPCG(seed, 0))
	for off := int64(0); off < imageBytes; off += 8 {
		binary.LittleEndian.PutUint64(image[off:], uint64(off)<<32|uint64(rng.Uint32()))
	}
	for _, nr := range append(append([]int{}, holes...), zeroRegions...) {
		clear(image[int64(nr)*regionBytes:][:regionBytes])
	}
	// One region is data in part.
	clear(image[8*regionBytes+20*kib : 9*regionBytes])
	return image
}

// recordings are those of all migrations, recorded once for all tests.
func recordings(t *testing.T) []*recorded {
	t.Helper()
	recording.Do(func() { recording.all = record(t, migrations) })
	if recording.all == nil {
		t.Fatal("the recording has failed in another test")
	}
	return recording.all
}

var recording struct {
	sync.Once
	all []*recorded
}

// record boots one machine, has it carry out the migrations, each on media of its own,
// and reads their logs.
func record(t *testing.T, list []migration) []*recorded {
	t.Helper()
	dir := t.TempDir()
	var all []*recorded
	var disks []string
	script := recordScript
	for i, m := range list {
		script += "program=" + buildMigrate(t, m.bug) + "\n"
		r := &recorded{name: m.name, image: makeImage(uint64(i + 1))}
		image := filepath.Join(dir, fmt.Sprintf("image%d", i))
		if err := os.WriteFile(image, r.image, 0o600); err != nil {
			t.Fatal(err)
		}
		disk, log := fmt.Sprintf("/dev/ubd%c", 'a'+2*i), fmt.Sprintf("/dev/ubd%c", 'a'+2*i+1)
		disks = append(disks, testkernel.NewDisk(t, mediaBytes), testkernel.NewDisk(t, logBytes))
		script += fmt.Sprintf("prepare /dev/ram%d %s %s\n", i, log, image)
		if m.killAfter > 0 {
			script += fmt.Sprintf("run %d %s; wanted 137\nrun 0 %s; wanted 0\n", m.killAfter, m.flags, m.goesOn)
		} else {
			script += fmt.Sprintf("run 0 %s; wanted 0\n", m.flags)
		}
		script += fmt.Sprintf("finish %s\n", disk)
		all = append(all, r)
	}
	machine := testkernel.Boot(t, testkernel.Config{
		Disks: disks, Script: script, Timeout: machineTimeout,
		Modules: []string{"dm-mod", "dm-log-writes", "dm-thin-pool"},
	})
	v := machine.Wait()
	if v.ExitCode != 0 {
		t.Fatalf("the recording ended with code %d; output:\n%s", v.ExitCode, v.Output)
	}
	t.Logf("recorded within %v, of which the boot took %v", v.Total, v.Boot)
	for i, r := range all {
		r.read(t, disks[2*i+1])
		r.wantReplayed(t, disks[2*i])
	}
	return all
}

// commonScript puts together what the media are for, on a device named log. The thin
// volume is named by the path of its device; a volume of a pool would be named in move.
const commonScript = `
set -eu
slice() { dmsetup create $1 --table "0 $3 linear /dev/mapper/log $2"; }
slices() {
	slice source 0 32768
	slice metadata 32768 8192
	slice data 40960 8192
	slice journal 49152 32768
}
pool() { dmsetup create pool --table "0 8192 thin-pool /dev/mapper/metadata /dev/mapper/data 128 0"; }
attach() {
	dmsetup create volume --table "0 2048 thin /dev/mapper/pool 0"
	mkdir -p /run/source /run/journal
	mount -o discard /dev/mapper/source /run/source
	mount /dev/mapper/journal /run/journal
}
detach() {
	umount /run/source /run/journal
	for name in volume pool source metadata data journal log; do
		dmsetup remove $name
	done
}
move() {
	exec $program --progress=json --state-dir /run/journal/state --region-size 64KiB --commit-bytes 256KiB "$@" \
		/run/source/image /dev/mapper/volume
}
`

// recordScript defines what the migrations are made of.
//
// The media are RAM disks, on which a request has ended as soon as it was made: a
// flush on its way has taken the writes before it for its own, and another flush that
// overtakes it stands in the log ahead of writes that it has made durable.
const recordScript = commonScript + `
insmod /usr/lib/uml/modules/$(uname -r)/kernel/drivers/block/brd.ko rd_nr=8 rd_size=40960
prepare() {
	ram=$1
	dmsetup create log --table "0 81920 log-writes $ram $2"
	slices
	dd if=/dev/zero of=/dev/mapper/metadata bs=4096 count=1 oflag=direct status=none
	pool
	dmsetup message pool 0 create_thin 0
	for name in source journal; do
		mkfs.ext4 -q -b 4096 -m 0 -N 64 -J size=4 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/$name
	done
	attach
	cp --sparse=always $3 /run/source/image
	for zero in 5 13; do
		dd if=/dev/zero of=/run/source/image conv=notrunc bs=65536 seek=$zero count=1 status=none
	done
	sync
	blockdev --flushbufs /dev/mapper/volume
	dmsetup message log 0 mark begin
}
# run KILL_AFTER FLAGS...: a mark for every transaction as soon as it is announced. The
# program is killed after that transaction, unless it is 0.
run() {
	kill_after=$1
	shift
	rm -f /run/events
	mkfifo /run/events
	move "$@" >/run/events &
	migrate=$!
	while read -r line; do
		case $line in
		*'"event":"committed"'*) ;;
		*) continue ;;
		esac
		tx=${line##*'"transaction":'}
		tx=${tx%%,*}
		dmsetup message log 0 mark tx=$tx
		if [ "$tx" = "$kill_after" ]; then kill -9 $migrate; fi
	done </run/events
	code=0
	wait $migrate || code=$?
}
wanted() {
	[ $code = $1 ] && return
	echo "migrate ended with code $code, not $1"
	exit 1
}
finish() {
	dmsetup message log 0 mark end
	detach
	dd if=$ram of=$1 bs=1M oflag=direct status=none
	blockdev --flushbufs $ram # a RAM disk forgets everything then
}
`

// read reads the log of a migration that has ended.
func (r *recorded) read(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // only read
	entries, err := logwrites.Read(f, logBytes)
	if err != nil {
		t.Fatal(err)
	}
	if r.log, err = logwrites.NewRecording(entries, media...); err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		if e.Has(logwrites.Mark) && string(e.Data) == beginMark {
			r.begun = i + 1
		}
	}
	if r.begun == 0 {
		t.Fatalf("%s: the log of %d entries has no mark %q", r.name, len(entries), beginMark)
	}
}

// wantReplayed fails the test unless the whole log makes what was on the disk at the
// end: log and replay miss nothing. The disk has ignored the discards.
func (r *recorded) wantReplayed(t *testing.T, disk string) {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // only read
	all := r.log.State(logwrites.Cut{After: r.log.Len(), Keep: 1, IgnoreDiscards: true})
	for _, m := range media {
		want := make([]byte, m.Bytes)
		if _, err := io.ReadFull(io.NewSectionReader(f, m.Off, m.Bytes), want); err != nil {
			t.Fatal(err)
		}
		got := make(memory, m.Bytes)
		if err := all.On(m.Name).WriteTo(got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the replay of %s is not what was on the disk", r.name, m.Name)
		}
	}
}

// memory is a disk in memory.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, fmt.Errorf("%d bytes at %d of a disk of %d", len(p), off, len(m))
	}
	return copy(m[off:], p), nil
}
