package integration

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// fault 5, fault 30: ends that somebody else uses.
func TestFault5SourcesInUse(t *testing.T) {
	uses := map[string]func(s *site) (source string){
		"open for writing": func(s *site) string {
			f, err := os.OpenFile(s.path("image"), os.O_RDWR, 0)
			if err != nil {
				s.Fatal(err)
			}
			s.Cleanup(func() { f.Close() })
			return s.path("image")
		},
		"mapped for writing": func(s *site) string {
			mapForWriting(s, s.path("image"))
			return s.path("image")
		},
		"attached to a loop device": func(s *site) string {
			attach(s, s.path("image"))
			return s.path("image")
		},
		"loop device on a file that has another": func(s *site) string {
			attach(s, s.path("image"))
			return attach(s, s.path("image"))
		},
		"mounted": func(s *site) string {
			return s.mounted()
		},
		"mounted file": func(s *site) string {
			s.mounted()
			return s.path("image")
		},
		"loop device with a mounted partition": func(s *site) string {
			disk, partition := partitioned(s, s.path("image"), 1*mib, 6*mib)
			s.mountExt4(partition)
			return disk
		},
		"fault 17: partition of a disk with another that is mounted": func(s *site) string {
			disk, partition := partitioned(s, s.path("image"), 1*mib, 3*mib)
			do(s, "addpart", disk, "2", itoa(4*mib/512), itoa(3*mib/512))
			s.Cleanup(func() { do(s, "delpart", disk, "2") })
			s.mountExt4(disk + "p2")
			return partition
		},
		"part of another device": func(s *site) string {
			loop := attach(s, s.path("image"))
			attach(s, loop)
			return loop
		},
	}
	for name, use := range uses {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			makeImage(t, s.path("image"), 8*mib, 100, mixed)
			source := use(s)
			s.wantMoveRefused(source, s.path("moved"), "--discard-src")
			if exists(s.path("moved")) {
				t.Error("there is a destination")
			}
		})
	}
}

// mapForWriting maps the start of a file for the time of the test, and closes it.
func mapForWriting(s *site, path string) {
	s.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	memory, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := syscall.Munmap(memory); err != nil {
			s.Error(err)
		}
	})
}

// mounted puts a file system into the image and mounts it from a loop device.
func (s *site) mounted() (loop string) {
	s.Helper()
	loop = attach(s, s.path("image"))
	s.mountExt4(loop)
	return loop
}

func (s *site) mountExt4(device string) {
	s.Helper()
	do(s, "mkfs.ext4", "-q", "-F", device)
	dir := s.TempDir()
	mountAt(s, dir, "-t", "ext4", "-o", "ro,noload", device)
}

// fault 13: an active swap file.
func TestFault13SwapFile(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 8*mib, 101, solid)
	do(t, "mkswap", s.path("image"))
	do(t, "swapon", s.path("image"))
	t.Cleanup(func() { do(t, "swapoff", s.path("image")) })
	before := treeOf(t, s.path("image"))
	s.wantMessage(s.want(4, s.move(s.path("image"), s.path("moved"), "--discard-src")), "swap")
	s.wantMessage(s.want(4, s.move(s.path("image"), s.path("moved"))), "swap")
	if diff := before.difference(treeOf(t, s.path("image"))); diff != "" {
		t.Error(diff)
	}
}

// fault 30, fault 31: destinations that somebody else uses, with --overwrite or
// without.
func TestFault30DestinationsInUse(t *testing.T) {
	uses := map[string]func(s *site) (destination string){
		"mounted": func(s *site) string {
			loop := attach(s, sparse(s, s.path("disk"), 64*mib))
			s.mountExt4(loop)
			return loop
		},
		"file that is mounted": func(s *site) string {
			loop := attach(s, sparse(s, s.path("disk"), 64*mib))
			s.mountExt4(loop)
			return s.path("disk")
		},
		"swap": func(s *site) string {
			makeImage(s, s.path("disk"), 64*mib, 102, solid)
			do(s, "mkswap", s.path("disk"))
			do(s, "swapon", s.path("disk"))
			s.Cleanup(func() { do(s, "swapoff", s.path("disk")) })
			return s.path("disk")
		},
		"open elsewhere": func(s *site) string {
			f, err := os.Open(sparse(s, s.path("disk"), 64*mib))
			if err != nil {
				s.Fatal(err)
			}
			s.Cleanup(func() { f.Close() })
			return s.path("disk")
		},
		"part of another device": func(s *site) string {
			loop := attach(s, sparse(s, s.path("disk"), 64*mib))
			attach(s, loop)
			return loop
		},
	}
	for name, use := range uses {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			makeImage(t, s.path("image"), 8*mib, 103, mixed)
			destination := use(s)
			before := treeOf(t, s.path("image"))
			for _, flags := range [][]string{{}, {"--discard-src"}, {"--discard-src", "--overwrite"}} {
				s.want(4, s.move(s.path("image"), destination, flags...))
			}
			if diff := before.difference(treeOf(t, s.path("image"))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// fault 28: too small a device.
func TestFault28DestinationTooSmall(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 8*mib, 104, mixed)
	loop := attach(t, sparse(t, s.path("disk"), 8*mib-4096))
	s.wantMoveRefused(s.path("image"), loop, "--discard-src")
	s.thinctl("pool", "create", "tank", "--dir", s.path("tank"), "--size", "1GiB")
	s.thinctl("create", "tank/vm", "--size", itoa(8*mib-4096))
	s.wantMoveRefused(s.path("image"), "tank/vm", "--discard-src")
}

// fault 32, fault 33: the two ends lie on one another.
func TestFault32EndsOnOneAnother(t *testing.T) {
	overlaps := map[string]func(s *site) (source, destination string){
		"the same file":   func(s *site) (string, string) { return s.path("image"), s.path("image") },
		"a symbolic link": func(s *site) (string, string) { return s.path("image"), s.symlink("image") },
		"a hard link": func(s *site) (string, string) {
			link(s, s.path("image"), s.path("link"))
			return s.path("image"), s.path("link")
		},
		"a loop device on the source": func(s *site) (string, string) {
			return s.path("image"), attach(s, s.path("image"))
		},
		"the file behind the source": func(s *site) (string, string) {
			return attach(s, s.path("image")), s.path("image")
		},
		"loop devices over the same bytes": func(s *site) (string, string) {
			return attach(s, s.path("image"), "--sizelimit", itoa(3*mib)), attach(s, s.path("image"), "--offset", itoa(2*mib))
		},
		"the disk under the source's file system": func(s *site) (string, string) {
			loop := attach(s, sparse(s, s.path("disk"), 64*mib))
			do(s, "mkfs.ext4", "-q", "-F", loop)
			dir := s.TempDir()
			mountAt(s, dir, "-t", "ext4", loop)
			do(s, "cp", s.path("image"), dir+"/image")
			return dir + "/image", loop
		},
		"a disk image under the source's file system": func(s *site) (string, string) {
			loop := attach(s, sparse(s, s.path("disk"), 64*mib))
			do(s, "mkfs.ext4", "-q", "-F", loop)
			dir := s.TempDir()
			mountAt(s, dir, "-t", "ext4", loop)
			do(s, "cp", s.path("image"), dir+"/image")
			return dir + "/image", s.path("disk")
		},
	}
	for name, prepare := range overlaps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			makeImage(t, s.path("image"), 8*mib, 105, mixed)
			source, destination := prepare(s)
			before := sumOf(t, s.path("image"), 8*mib)
			for _, flags := range [][]string{{}, {"--discard-src"}, {"--discard-src", "--overwrite"}} {
				s.want(4, s.move(source, destination, flags...))
			}
			if sumOf(t, s.path("image"), 8*mib) != before {
				t.Error("the image has changed")
			}
		})
	}
}

func (s *site) symlink(to string) string {
	s.Helper()
	if err := os.Symlink(s.path(to), s.path("symbolic")); err != nil {
		s.Fatal(err)
	}
	return s.path("symbolic")
}

// fault 6, fault 60: two runs on one source or one destination, whatever their state
// directories are. The first goes on as if nothing had happened.
func TestFault6TwoRunsAtOnce(t *testing.T) {
	for _, state := range []string{"the same state directory", "another state directory"} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			source, destination := s.path("image"), s.path("moved")
			made := makeImage(t, source, 48*mib, 106, mixed)
			makeImage(t, s.path("other image"), 8*mib, 107, mixed)
			r := s.startMove(source, destination, slowly...)
			r.awaitCommitted(1)
			r.signal(syscall.SIGSTOP) // so that it does not end meanwhile
			waitStopped(t, r)
			second := s
			if strings.HasPrefix(state, "another") {
				second = s.at(s.path("state 2"))
			}
			var others []*running
			for _, ends := range [][2]string{{source, destination}, {source, s.path("elsewhere")}, {s.path("other image"), destination}, {s.path("other image"), source}, {destination, s.path("elsewhere")}} {
				for _, flags := range [][]string{{}, {"--discard-src"}, {"--discard-src", "--overwrite"}} {
					others = append(others, second.startMove(ends[0], ends[1], flags...))
				}
			}
			for _, other := range others {
				if o := other.wait(); o.code != 4 {
					t.Errorf("%v: %v", other.cmd.Args, o)
				}
			}
			if exists(s.path("elsewhere")) {
				t.Error("a destination was made")
			}
			r.signal(syscall.SIGCONT)
			wantEvents(t, s.want(0, r.wait()), "done")
			wantWhole(t, destination, made)
			wantEmptied(t, source, made)
		})
	}
}

// Two that start at the same moment: one of them, and only one, gets the source.
func TestFault6Race(t *testing.T) {
	t.Parallel()
	for range 8 {
		s := newSite(t)
		made := makeImage(t, s.path("image"), 4*mib, 108, mixed)
		first := s.startMove(s.path("image"), s.path("first"), "--discard-src")
		second := s.at(s.path("state 2")).startMove(s.path("image"), s.path("second"), "--discard-src")
		a, b := first.wait(), second.wait()
		// If one has ended before the other looked, the source is emptied already.
		if a.code+b.code != 4 || a.code*b.code != 0 {
			t.Fatalf("one: %v\nother: %v", a, b)
		}
		whole := map[bool]string{true: "first", false: "second"}[a.code == 0]
		wantWhole(t, s.path(whole), made)
	}
}

// A pool that does not exist, and names that mean nothing.
func TestWrongNames(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 1*mib, 109, mixed)
	s.wantMoveRefused(s.path("image"), "nosuchpool/vm")
	for _, args := range [][]string{{}, {s.path("image")}, {s.path("image"), "relative"}, {s.path("image"), "./x", "./y"}, {"--no-such-flag"}, {"--region-size=3KiB", s.path("image"), s.path("moved")}, {"show"}, {"verify"}} {
		before := treeOf(t, s.dir)
		cmd := exec.Command(migratePath, append([]string{"--state-dir", s.state}, args...)...)
		cmd.Dir = s.dir
		s.want(2, s.launch(cmd).wait())
		if diff := before.difference(treeOf(t, s.dir)); diff != "" {
			t.Errorf("%v: %s", args, diff)
		}
	}
	for _, args := range [][]string{{"show", "nosuchid"}, {"verify", "nosuchid"}, {"resume", "nosuchid"}, {"reverse", "nosuchid"}, {"pause", "nosuchid"}, {"cancel", "nosuchid"}, {"explain", "nosuchid", "0"}} {
		s.wantRefused(args...)
	}
}
