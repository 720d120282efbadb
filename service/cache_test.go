package service

import (
	"testing"

	"decant/loopdev"
)

// Guests write to the page cache only where no write can find the space missing later.
func TestCacheNeedsSpaceReservedAtWrite(t *testing.T) {
	file := func(fsType string) link { return link{store: &fileStore{place: &loopdev.Place{FSType: fsType}}} }
	for name, c := range map[string]struct {
		links []link
		want  bool
	}{
		"ext4":                         {[]link{file("ext4")}, true},
		"xfs":                          {[]link{file("xfs")}, true},
		"btrfs":                        {[]link{file("btrfs")}, false},
		"a file system on a thin pool": {[]link{file("ext4"), {store: storeOf(newFakePool(8, 0))}}, false},
		"a file system in a file":      {[]link{file("ext4"), file("ext4")}, false},
		"a volume with a limit":        {[]link{{store: &limitStore{}}, file("ext4")}, false},
		"a thin volume":                {[]link{{store: storeOf(newFakePool(8, 0))}}, false},
		"nothing that can be seen":     {nil, false},
	} {
		if got := (&chain{links: c.links}).reservesAtWrite(); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
