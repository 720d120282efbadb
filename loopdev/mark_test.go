package loopdev

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMarkStaysWithTheFile(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs", "tmpfs"} {
		path, _ := image(t, dirOn(t, fsType), 1<<20)
		d := openDevice(t, path, readWrite)
		if m, marked, err := d.ReadMark(); marked || err != nil {
			t.Errorf("%s: a new file has the mark %+v: %v", fsType, m, err)
		}
		want := Mark{ID: "m1", Role: "source", Tx: 7, Since: time.Now().UTC().Round(0)}
		must(t, d.WriteMark(want))
		want.Tx = 8
		must(t, d.WriteMark(want))
		must(t, d.Close())
		loop := openDevice(t, attach(t, path), readWrite) // the same file by another way
		got, marked, err := loop.ReadMark()
		if got != want || !marked || err != nil {
			t.Errorf("%s: %+v, %v, %v; want %+v", fsType, got, marked, err, want)
		}
		if err := loop.WriteMark(Mark{ID: "m2"}); !errors.Is(err, ErrMarked) {
			t.Errorf("%s: over the mark of another migration: %v", fsType, err)
		}
		must(t, loop.RemoveMark())
		must(t, loop.RemoveMark())
		if m, marked, err := loop.ReadMark(); marked || err != nil {
			t.Errorf("%s: a removed mark reads %+v: %v", fsType, m, err)
		}
	}
}

func TestTrustedMarkIsReadToo(t *testing.T) {
	path, _ := image(t, dirOn(t, "ext4"), 4096)
	must(t, unix.Setxattr(path, "trusted.decant.mark", []byte(`{"id":"m","tx":3}`), 0))
	d := openDevice(t, path, readWrite)
	if m, marked, err := d.ReadMark(); m.ID != "m" || m.Tx != 3 || !marked || err != nil {
		t.Errorf("%+v, %v, %v", m, marked, err)
	}
	must(t, d.RemoveMark())
	if _, marked, err := d.ReadMark(); marked || err != nil {
		t.Errorf("%v, %v", marked, err)
	}
}

// What looks like a mark and cannot be read must not be taken for none.
func TestBrokenMarkIsAnError(t *testing.T) {
	path, _ := image(t, dirOn(t, "ext4"), 4096)
	must(t, unix.Setxattr(path, "user.decant.mark", []byte(`{"id":`), 0))
	d := openDevice(t, path, readWrite)
	if m, marked, err := d.ReadMark(); marked || err == nil {
		t.Errorf("%+v, %v, %v", m, marked, err)
	}
	if err := d.Discard(0, 4096); err == nil {
		t.Error("discarded under a broken mark")
	}
	if err := d.WriteMark(Mark{ID: "m"}); err == nil {
		t.Error("wrote over a broken mark")
	}
}

func TestWhatCannotCarryAMark(t *testing.T) {
	_, block := blockDevice(t, t.TempDir(), 1<<20)
	ramfs, _ := image(t, dirOn(t, "ramfs"), 4096)
	for _, path := range []string{block, ramfs} {
		d := openDevice(t, path, readWrite)
		if err := d.WriteMark(Mark{ID: "m"}); !errors.Is(err, ErrNoMark) {
			t.Errorf("%s: write: %v", path, err)
		}
		if _, marked, err := d.ReadMark(); marked || err != nil {
			t.Errorf("%s: read: %v, %v", path, marked, err)
		}
		must(t, d.RemoveMark())
	}
}

func FuzzParseMark(f *testing.F) {
	f.Add([]byte(`{"id":"m","role":"source","tx":3,"since":"2024-01-02T03:04:05Z"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseMark(text)
		if err != nil {
			return
		}
		if m.ID == "" {
			t.Fatalf("%q is a mark of nobody", text)
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if n, err := parseMark(again); err != nil || n.ID != m.ID || n.Tx != m.Tx {
			t.Errorf("%q became %q: %v", text, again, err)
		}
	})
}
