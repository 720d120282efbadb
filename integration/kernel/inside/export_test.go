//go:build testkernel

package inside

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"decant/nbd"
)

// Users who write into holes until a thin pool has little left are refused before it has
// no more data blocks. They can go on to read, to overwrite and to trim, and the
// migration ends well.
func TestKernelUsersNeverFillAPool(t *testing.T) {
	const imageBytes = 96 * mib
	s := newSite(t)
	f := s.newFilesystem("ext4", s.slice(48*mib))
	p := s.newPool(poolOptions{data: s.slice(48 * mib), features: "error_if_no_space"})
	to := p.newVolume(1, imageBytes)
	data := newImage(12*mib, 5, solid)
	s.write(data, f.path("image"))
	s.must(os.Truncate(f.path("image"), imageBytes))
	want := append(bytes.Clone(data.bytes), make([]byte, imageBytes-12*mib)...)

	dir, err := os.MkdirTemp("", "e") // short enough for a socket
	s.must(err)
	defer os.RemoveAll(dir)
	socket := dir + "/s"
	r := s.startMove(f.path("image"), to.path(), "--discard-src", "--region-size=256KiB", "--bwlimit=2MiB/s", "--export", socket)
	r.await("an export", func(e event) bool { return e.Event == "exported" })
	c, err := nbd.Dial(context.Background(), nbd.URI{Network: "unix", Address: socket}.String(), nbd.Options{Connections: 1})
	s.must(err)
	refused, last := 0, int64(0)
	for off := int64(16 * mib); off < imageBytes && refused < 8; off += mib / 2 {
		block := bytes.Repeat([]byte{byte(off>>19) | 1}, int(mib/2))
		switch _, err := c.WriteAt(block, off); {
		case err == nil:
			copy(want[off:], block)
			last = off
		case errors.Is(err, unix.ENOSPC):
			refused++
		default:
			t.Fatalf("write at %d: %v", off, err)
		}
	}
	if st := p.poolStatus(); refused == 0 || st.mode != "rw" || st.dataUsedBlocks >= st.dataBlocks {
		t.Fatalf("%d writes were refused, and the pool is %+v", refused, st)
	}
	block := bytes.Repeat([]byte{0xcc}, int(mib/2))
	_, err = c.WriteAt(block, last) // has its space
	s.must(errors.Join(err, c.Flush()))
	copy(want[last:], block)
	// As much as the image has: how much of it was copied before the users took the rest
	// is left to chance.
	s.must(c.Discard(16*mib, 12*mib))
	clear(want[16*mib : 28*mib])
	s.must(errors.Join(c.Flush(), c.Close()))
	s.want(0, r.wait())
	if got := s.read(to.path(), imageBytes); !bytes.Equal(got, want) {
		t.Errorf("the volume is not what its user saw: %s", difference(got, want))
	}
	p.check()
}
