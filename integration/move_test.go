package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The main job: an image of 480 MiB goes into a new file, the source gives its
// space back on the way, and little exists twice at any time.
func TestMoveEmptiesTheSourceAsItGoes(t *testing.T) {
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 480*mib, 1, mixed)
	o := s.want(0, s.move(source, destination, "--discard-src"))
	wantWhole(t, destination, made)
	wantEmptied(t, source, made)
	if got := sizeOf(t, source); got != made.bytes {
		t.Errorf("the source has %d bytes, its size should have stayed", got)
	}
	if got := allocated(t, destination); got < made.dataBytes || got > made.dataBytes+made.dataBytes/50+mib {
		t.Errorf("the destination takes %d bytes for %d of data", got, made.dataBytes)
	}
	wantEvents(t, o, "done")
	e := o.last()
	if e.PeakExtraBytes > 160*mib || e.PeakExtraBytes <= 0 {
		t.Errorf("%d bytes existed twice", e.PeakExtraBytes)
	}
	if freed := *e.SourceFreedBytes; freed < made.dataBytes {
		t.Errorf("%d bytes were freed, there was data of %d", freed, made.dataBytes)
	}
	if e.BytesData < made.dataBytes || e.BytesData >= made.bytes || e.BytesTotal != made.bytes || e.BytesDiscarded != e.BytesData {
		t.Errorf("the counters at the end: %+v", e)
	}
}

func TestMoveWithoutDiscardKeepsTheSource(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 48*mib, 2, mixed)
	before := treeOf(t, source)
	o := s.want(0, s.move(source, destination))
	wantWhole(t, destination, made)
	wantEvents(t, o, "done")
	if diff := before.difference(treeOf(t, source)); diff != "" {
		t.Errorf("the source changed:\n%s", diff)
	}
	if e := o.last(); e.BytesDiscarded != 0 || *e.SourceFreedBytes != 0 {
		t.Errorf("%d bytes discarded, %d freed", e.BytesDiscarded, *e.SourceFreedBytes)
	}
	if got := allocated(t, destination); got > made.dataBytes+made.dataBytes/50+mib {
		t.Errorf("the destination takes %d bytes for %d of data", got, made.dataBytes)
	}
}

func TestMoveWithVerifyCountsWhatItReadBack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 48*mib, 3, mixed)
	o := s.want(0, s.move(source, destination, "--discard-src", "--verify"))
	wantWhole(t, destination, made)
	wantEvents(t, o, "done")
	if e := o.last(); e.BytesVerified != e.BytesData {
		t.Errorf("%d bytes verified of %d", e.BytesVerified, e.BytesData)
	}
}

func TestRemoveSource(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 24*mib, 4, mixed)
	o := s.want(0, s.move(source, destination, "--discard-src", "--remove-src"))
	wantWhole(t, destination, made)
	wantEvents(t, o, "done")
	if exists(source) {
		t.Error("the source is still there")
	}
}

func TestRemoveSourceWithoutDiscardIsWrongUsage(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source := s.path("image")
	makeImage(t, source, 1*mib, 5, mixed)
	before := treeOf(t, s.dir)
	s.want(2, s.move(source, s.path("moved"), "--remove-src"))
	if diff := before.difference(treeOf(t, s.dir)); diff != "" {
		t.Error(diff)
	}
}

// The same command after the end has nothing left to do.
func TestTheSameCommandAfterTheEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 8*mib, 6, mixed)
	first := s.want(0, s.move(source, destination, "--discard-src"))
	again := s.want(0, s.move(source, destination, "--discard-src"))
	wantWhole(t, destination, made)
	if again.last().Event != "done" || again.last().ID != first.last().ID {
		t.Errorf("%v", again)
	}
}

// fault 19: loops with sectors of 4 KiB. fault 18: a loop with an offset and a size
// limit, whose neighbours in the file must not change.
func TestSourcesOfEveryKind(t *testing.T) {
	sources := map[string]func(s *site) (source, backing string, made image){
		"file": func(s *site) (string, string, image) {
			made := makeImage(s, s.path("image"), 24*mib, 10, mixed)
			return s.path("image"), s.path("image"), made
		},
		"loop": func(s *site) (string, string, image) {
			made := makeImage(s, s.path("image"), 24*mib, 11, mixed)
			return attach(s, s.path("image")), s.path("image"), made
		},
		"loop with 4 KiB sectors": func(s *site) (string, string, image) {
			made := makeImage(s, s.path("image"), 24*mib, 12, mixed)
			return attach(s, s.path("image"), "--sector-size", "4096"), s.path("image"), made
		},
		"loop with direct I/O": func(s *site) (string, string, image) {
			made := makeImage(s, s.path("image"), 24*mib, 13, mixed)
			return attach(s, s.path("image"), "--direct-io=on"), s.path("image"), made
		},
		"loop over a loop": func(s *site) (string, string, image) {
			made := makeImage(s, s.path("image"), 24*mib, 14, mixed)
			return attach(s, attach(s, s.path("image"))), s.path("image"), made
		},
	}
	for name, prepare := range sources {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			source, backing, made := prepare(s)
			o := s.want(0, s.move(source, s.path("moved"), "--discard-src"))
			wantWhole(t, s.path("moved"), made)
			wantEmptied(t, backing, made)
			wantEvents(t, o, "done")
		})
	}
}

// fault 17, fault 18: what lies before and after the source in the same file is not
// touched.
func TestSourcesInsideAFileLeaveTheRestAlone(t *testing.T) {
	const before, size, after = 5*mib + 512*3, 21*mib + 512*7, 6 * mib
	sources := map[string]func(t *testing.T, path string) string{
		"loop with offset and size limit": func(t *testing.T, path string) string {
			return attach(t, path, "--offset", itoa(before), "--sizelimit", itoa(size))
		},
		"partition": func(t *testing.T, path string) string {
			_, partition := partitioned(t, path, before, size)
			return partition
		},
	}
	for name, prepare := range sources {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			path := s.path("image")
			whole := makeImage(t, path, before+size+after, 20, mixed)
			copyFile(t, path, s.path("as it was"))
			source := prepare(t, path)
			want := image{bytes: size, sum: sumOf(t, source, size)}
			s.want(0, s.move(source, s.path("moved"), "--discard-src"))
			wantWhole(t, s.path("moved"), want)
			was, is := readFile(t, s.path("as it was")), readFile(t, path)
			if int64(len(is)) != whole.bytes || was[:before] != is[:before] || was[before+size:] != is[before+size:] {
				t.Error("bytes outside the source have changed")
			}
			// Blocks on the border of two transactions lie wholly in neither.
			if left := size - int64(strings.Count(is[before:before+size], "\x00")); left > size/100 {
				t.Errorf("the source was not emptied: %d bytes of %d are left", left, size)
			}
		})
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestDestinationsOfEveryKind(t *testing.T) {
	destinations := map[string]func(s *site) (destination, path string, bytes int64){
		"loop": func(s *site) (string, string, int64) {
			loop := attach(s, sparse(s, s.path("disk"), 24*mib))
			return loop, loop, 24 * mib
		},
		// fault 29: a destination may be larger.
		"larger loop": func(s *site) (string, string, int64) {
			loop := attach(s, sparse(s, s.path("disk"), 31*mib))
			return loop, loop, 31 * mib
		},
		"loop with 4 KiB sectors": func(s *site) (string, string, int64) {
			loop := attach(s, sparse(s, s.path("disk"), 24*mib), "--sector-size", "4096")
			return loop, loop, 24 * mib
		},
		"loop over a loop": func(s *site) (string, string, int64) {
			loop := attach(s, attach(s, sparse(s, s.path("disk"), 24*mib)))
			return loop, loop, 24 * mib
		},
		"volume of a directory pool": func(s *site) (string, string, int64) {
			s.thinctl("pool", "create", "tank", "--dir", s.path("tank"), "--size", "1GiB")
			return "tank/vm", "", 24 * mib
		},
		"existing volume of a directory pool": func(s *site) (string, string, int64) {
			s.thinctl("pool", "create", "tank", "--dir", s.path("tank"), "--size", "1GiB")
			s.thinctl("create", "tank/vm", "--size", itoa(24*mib))
			return "tank/vm", "", 24 * mib
		},
		"empty file": func(s *site) (string, string, int64) {
			return sparse(s, s.path("moved"), 0), s.path("moved"), 24 * mib
		},
	}
	for name, prepare := range destinations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			destination, path, bytes := prepare(s)
			made := makeImage(t, s.path("image"), 24*mib, 30, mixed)
			o := s.want(0, s.move(s.path("image"), destination, "--discard-src"))
			wantEvents(t, o, "done")
			wantEmptied(t, s.path("image"), made)
			if path == "" {
				path = onlyFileOf(t, s.path("tank"), made.bytes)
			}
			if got := sizeOf(t, path); got != bytes {
				t.Errorf("the destination has %d bytes, want %d", got, bytes)
			}
			if sumOf(t, path, made.bytes) != made.sum {
				t.Error("the destination is not what the source was")
			}
		})
	}
}

// onlyFileOf is the one file of a pool that has the size of a volume.
func onlyFileOf(t testing.TB, dir string, bytes int64) string {
	t.Helper()
	var found []string
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Size() == bytes {
			found = append(found, path)
		}
		return err
	})
	if err != nil || len(found) != 1 {
		t.Fatalf("files of %d bytes: %v, %v", bytes, found, err)
	}
	return found[0]
}

func TestAVolumeAsSource(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.thinctl("pool", "create", "tank", "--dir", s.path("tank"), "--size", "1GiB")
	made := makeImage(t, s.path("image"), 24*mib, 31, mixed)
	s.want(0, s.move(s.path("image"), "tank/first", "--discard-src"))
	s.want(0, s.move("tank/first", "tank/second", "--discard-src"))
	s.want(0, s.move("tank/second", s.path("back"), "--discard-src"))
	wantWhole(t, s.path("back"), made)
}

// fault 22, fault 23: sizes that fill no region, no block and no sector.
func TestOddTails(t *testing.T) {
	for name, bytes := range map[string]int64{"one byte": 1, "less than a sector": 511, "a region and a byte": mib + 1, "odd": 10*mib + 12345, "sectors": 10*mib + 7*512} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			made := makeImage(t, s.path("image"), bytes, 40, solid)
			o := s.want(0, s.move(s.path("image"), s.path("moved"), "--discard-src"))
			wantWhole(t, s.path("moved"), made)
			wantEvents(t, o, "done")
			if at := firstData(t, s.path("image")); at >= 0 {
				t.Errorf("the source still has a block with data at %d", at)
			}
		})
	}
}

// firstData is where the first block of a file is, -1 if it is one hole. What a file
// takes besides is for its attributes.
func firstData(t testing.TB, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return -1
	}
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// fault 22: a loop device leaves off what fills no sector; its file does not.
func TestOddTailBehindALoop(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 4*mib+300, 41, solid)
	source := attach(t, s.path("image"))
	s.want(0, s.move(source, s.path("moved"), "--discard-src"))
	wantWhole(t, s.path("moved"), made)
}

// fault 10: what the source has holes for reads as zeros at a destination that held
// something else.
func TestHolesOverOldData(t *testing.T) {
	for name, prepare := range map[string]func(s *site) string{
		"file": func(s *site) string { return s.path("old") },
		"loop": func(s *site) string { return attach(s, s.path("old")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			makeImage(t, s.path("old"), 24*mib, 42, solid)
			made := makeImage(t, s.path("image"), 24*mib, 43, mixed)
			destination := prepare(s)
			s.wantMessage(s.wantMoveRefused(s.path("image"), destination, "--discard-src"), "--overwrite")
			s.want(0, s.move(s.path("image"), destination, "--discard-src", "--overwrite"))
			wantWhole(t, destination, made)
		})
	}
}
