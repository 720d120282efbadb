package service

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"decant/dm/clonetarget"
	"decant/dm/persistent"
	"decant/loopdev"
	"decant/region"
)

// The engine that needs the kernel is refused where it cannot be had, before anything is
// asked of the kernel, and nothing else is taken instead.
func TestKernelEngineIsRefused(t *testing.T) {
	for why, change := range map[string]func(*attempt){
		"--verify compares":                       func(a *attempt) { a.request.Options.Verify = true },
		"the kernel knows whole sectors":          func(a *attempt) { a.source.device = sized{a.source.device, 4097} },
		"the destination is a file":               func(*attempt) {},
		"the migration was begun without it":      func(a *attempt) { a.known = begunBy(EngineUser) },
		"no file or block device of this machine": func(a *attempt) { a.source.base = nil },
	} {
		s := newSite(t)
		s.image("image", mib)
		source, err := s.open(target{name: "image", path: s.path("image")}, true)
		s.must(err)
		a := &attempt{s: s.Service, source: source, target: target{name: "moved", path: s.path("moved")}}
		a.plan.RegionBytes = regionBytes
		base, device := source.base, source.device
		change(a)
		if got := a.whyNotKernel(); !strings.Contains(got, why) {
			t.Errorf("got %q, want %q", got, why)
		}
		if err := a.checkKernelEngine(); OutcomeOf(err) != Refused || HintOf(err) == "" {
			t.Errorf("%s: %v", why, err)
		}
		source.base, source.device = base, device
		s.must(source.Close())
	}
}

// sized is a device of another size.
type sized struct {
	device
	bytes int64
}

func (d sized) Bytes() int64 { return d.bytes }

// begunBy is a migration that an engine has begun.
func begunBy(engine string) *known {
	k := &known{id: "1"}
	k.record.Live, k.record.Engine = "vm", engine
	k.state.Hydrated = region.NewSet(region.Range{Count: 1})
	return k
}

// What the migration was begun with it is ended with.
func TestEngineIsKept(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		begun, asked, want string
	}{
		{EngineKernel, EngineAuto, EngineKernel},
		{EngineUser, EngineAuto, EngineUser},
		{EngineKernel, EngineKernel, EngineKernel},
		{EngineKernel, EngineUser, ""},
		{EngineUser, EngineKernel, ""},
		{EngineKernel, "", EngineKernel},
	} {
		a := &attempt{source: &end{name: "image"}, known: begunBy(c.begun)}
		a.request.Options.Engine = c.asked
		got, err := a.chooseEngine()
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("begun with %q, asked for %q: %q, %v", c.begun, c.asked, got, err)
		}
	}
}

// fault 53: the metadata of a dm-clone is never made anew where users have written.
func TestFault53CloneMetadataIsMadeOnce(t *testing.T) {
	s := newSite(t)
	s.must(s.makeStateDir())
	g, err := region.NewGeometry(8*mib, regionBytes)
	s.must(err)
	path := s.cloneMetadataPath("id")
	used := func() error {
		c, err := s.openCloneMetadata("id", g, false)
		if err == nil {
			s.must(c.close())
		}
		return err
	}
	wantStopped := func(err error, why string) {
		t.Helper()
		if OutcomeOf(err) != Stopped || !strings.Contains(err.Error(), why) || HintOf(err) == "" {
			t.Errorf("got %v, want %q", err, why)
		}
	}
	wantStopped(used(), "is gone")
	c, err := s.openCloneMetadata("id", g, true)
	s.must(err)
	s.must(c.close())
	content, err := os.ReadFile(path)
	s.must(err)
	if int64(len(content)) != clonetarget.MetadataBytes(int64(g.Regions())) || len(bytes.Trim(content, "\x00")) > 0 {
		t.Errorf("%d bytes, which are not all zero", len(content))
	}
	wantStopped(used(), "is not the metadata of a dm-clone") // the kernel would format it
	content[100] = 1
	s.must(os.WriteFile(path, content, 0o600))
	wantStopped(used(), "is not the metadata of a dm-clone")
	var damage *persistent.CorruptError
	if !errors.As(used(), &damage) {
		t.Errorf("it is not said what is wrong: %v", used())
	}
	s.must(s.removeCloneMetadata("id"))
	s.must(s.removeCloneMetadata("id")) // a crash may come between
	if left, _ := filepath.Glob(filepath.Join(s.stateDir, "*.clone")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// The file is written as a whole: a hole in it would have to be filled when there is no
// space any more.
func TestCloneMetadataHasItsSpace(t *testing.T) {
	s := newSite(t)
	path := s.path("metadata")
	s.must(makeCloneMetadata(path, mib))
	d, err := loopdev.Open(path, loopdev.Options{})
	s.must(err)
	defer func() { s.must(d.Close()) }()
	if n, err := d.AllocatedBytes(); err != nil || n < mib {
		t.Errorf("it takes %d bytes of %d, %v", n, mib, err)
	}
}
