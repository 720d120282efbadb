//go:build testkernel

package thin

import (
	"fmt"
	"os"
	"testing"
)

// The two halves of a test that cuts the power in between: each runs in a boot of its
// own, on the same disks.

func TestPowerCutBefore(t *testing.T) {
	s := newMapperSite(t)
	p := s.newPool("p")
	mustCreateVolume(t, p, "kept", mib)
	v := mustOpenVolume(t, p, "kept")
	mustWrite(t, v, 0, randomBytes(1, mib))
	must(t, v.Flush())
	if os.Getenv("DECANT_TEST_CHANGE") == "delete" {
		mustCreateVolume(t, p, "v", mib)
	}
	p.crashPoint = func(step string) {
		if step == os.Getenv("DECANT_TEST_STEP") {
			fmt.Println("after the step")
			select {}
		}
	}
	var err error
	if os.Getenv("DECANT_TEST_CHANGE") == "delete" {
		err = p.DeleteVolume("v")
	} else {
		_, err = p.CreateVolume("v", mib, nil)
	}
	t.Fatalf("there is no such step; the change ended with %v", err)
}

func TestPowerCutAfter(t *testing.T) {
	s := newMapperSiteAsFound(t)
	p := s.keep(s.registry.OpenMapper(s.data, s.metadata))
	s.check(p)
	volumes, err := p.Volumes()
	must(t, err)
	if len(volumes) != 1 || volumes[0].Name != "kept" {
		t.Errorf("there are %+v", volumes)
	}
	wantBytes(t, mustOpenVolume(t, p, "kept"), 0, randomBytes(1, mib))
	if info := mustCreateVolume(t, p, "v", mib); info.ID != 3 {
		t.Errorf("the next volume has id %d", info.ID)
	}
}
