package loopdev

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// fault 37: what is written to a block device is never left to its page cache, where a
// failure of the medium would be told once and then forgotten: whatever the range, it
// is on the device below before WriteAt returns.
func TestFault37BlockDevicesAreWrittenPastTheCache(t *testing.T) {
	file, content := image(t, t.TempDir(), 1<<20)
	below := attach(t, file)
	d := openDevice(t, attach(t, below), Options{Write: true, Exclusive: true})
	if !d.Info().DirectIO {
		t.Error("the device says that it uses the cache")
	}
	must(t, onFD(d.main, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if flags&unix.O_DIRECT == 0 {
			t.Errorf("opened with flags %#o", flags)
		}
		return err
	}))
	for name, r := range map[string]struct{ off, bytes int }{
		"whole blocks": {64 << 10, 128 << 10},
		"odd":          {300<<10 + 7, 5000},
		"part":         {400<<10 + 100, 10},
		"the end":      {1<<20 - 700, 700},
	} {
		t.Run(name, func(t *testing.T) {
			fill := bytes.Repeat([]byte{0xa5}, r.bytes)
			_, err := d.WriteAt(fill, int64(r.off))
			must(t, err)
			copy(content[r.off:], fill)
			got, err := os.ReadFile(below)
			must(t, err)
			sameBytes(t, "the device below", got, content)
		})
	}
	must(t, d.Zero(512<<10, 4096))
	clear(content[512<<10:][:4096])
	got, err := os.ReadFile(below)
	must(t, err)
	sameBytes(t, "the device below, after Zero", got, content)
}
