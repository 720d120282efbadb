package dm

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// layout renders a request the way <linux/dm-ioctl.h> lays it out: the ten numbers
// ahead of the device number, that number, name and UUID up to their NULs, the data.
func layout(buffer []byte) string {
	name, uuid := buffer[48:48+128], buffer[176:176+129]
	return strings.Join([]string{
		hex.EncodeToString(buffer[:40]), hex.EncodeToString(buffer[40:48]),
		strings.TrimRight(string(name), "\x00"), strings.TrimRight(string(uuid), "\x00"),
		hex.EncodeToString(buffer[312:]),
	}, "\n")
}

// goldenRequests are written down from <linux/dm-ioctl.h>, for a little-endian machine.
var goldenRequests = map[string]struct {
	request     request
	answerBytes int
	want        []string
}{
	"create": {
		request{command: unix.DM_DEV_CREATE, name: "vol", uuid: "DECANT-1"},
		0,
		[]string{
			"040000000000000000000000" + "38010000" + "38010000" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000",
			"0000000000000000", "vol", "DECANT-1", "",
		},
	},
	"suspend without flush": {
		request{command: unix.DM_DEV_SUSPEND, name: "vol", flags: unix.DM_SUSPEND_FLAG | unix.DM_NOFLUSH_FLAG | unix.DM_SKIP_LOCKFS_FLAG},
		0,
		[]string{
			"040000000000000000000000" + "38010000" + "38010000" + "00000000" + "00000000" + "020c0000" + "00000000" + "00000000",
			"0000000000000000", "vol", "", "",
		},
	},
	"resume with flags for udev": {
		request{command: unix.DM_DEV_SUSPEND, name: "vol", event: udevEvent([]UdevRules{NoDiskRules, NoOtherRules})},
		0,
		[]string{
			"040000000000000000000000" + "38010000" + "38010000" + "00000000" + "00000000" + "00000000" + "00004c00" + "00000000",
			"0000000000000000", "vol", "", "",
		},
	},
	"load": {
		request{command: unix.DM_TABLE_LOAD, name: "vol", targets: 2, data: encodeTable([]Target{
			{0, 8, "zero", ""}, {8, 0x1000, "linear", "7:0 16"},
		})},
		0,
		[]string{
			"040000000000000000000000" + "98010000" + "38010000" + "02000000" + "00000000" + "00000000" + "00000000" + "00000000",
			"0000000000000000", "vol", "",
			// start, length, status, distance to the next, type, parameters
			"0000000000000000" + "0800000000000000" + "00000000" + "30000000" + "7a65726f000000000000000000000000" + "0000000000000000" +
				"0800000000000000" + "0010000000000000" + "00000000" + "30000000" + "6c696e65617200000000000000000000" + "373a302031360000",
		},
	},
	"message": {
		request{command: unix.DM_TARGET_MSG, name: "pool", data: encodeMessage(258, "delete 1")},
		0,
		[]string{
			"040000000000000000000000" + "50010000" + "38010000" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000",
			"0000000000000000", "pool", "",
			"0201000000000000" + "64656c6574652031" + "00" + "00000000000000",
		},
	},
	"rename": {
		request{command: unix.DM_DEV_RENAME, name: "old", data: cString("new")},
		0,
		[]string{
			"040000000000000000000000" + "40010000" + "38010000" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000",
			"0000000000000000", "old", "", "6e65770000000000",
		},
	},
	"room for an answer": {
		request{command: unix.DM_LIST_DEVICES, flags: unix.DM_UUID_FLAG},
		16,
		[]string{
			"040000000000000000000000" + "48010000" + "38010000" + "00000000" + "00000000" + "00400000" + "00000000" + "00000000",
			"0000000000000000", "", "", "00000000000000000000000000000000",
		},
	},
}

func TestRequestBytes(t *testing.T) {
	for name, test := range goldenRequests {
		t.Run(name, func(t *testing.T) {
			got, want := layout(test.request.encode(test.answerBytes)), strings.Join(test.want, "\n")
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestRequestsAreAligned(t *testing.T) {
	for n := range 40 {
		r := request{data: make([]byte, n)}
		b := r.encode(0)
		if address := uintptr(unsafe.Pointer(unsafe.SliceData(b))); address%alignment != 0 || len(b)%alignment != 0 {
			t.Fatalf("%d bytes of data: %d bytes at %#x", n, len(b), address)
		}
	}
}

// The longest name and type leave room for the NUL that the kernel looks for.
func TestRequestsEndTheirTexts(t *testing.T) {
	name, uuid, targetType := strings.Repeat("n", MaxNameBytes), strings.Repeat("u", MaxUUIDBytes), strings.Repeat("t", maxTypeBytes)
	r := request{name: name, uuid: uuid, data: encodeTable([]Target{{Type: targetType}})}
	b := r.encode(0)
	for what, field := range map[string][]byte{name: b[48:176], uuid: b[176:305], targetType: b[312+24 : 312+40]} {
		if got, ok := terminated(field); !ok || got != what {
			t.Errorf("%q came out as %q, with an end: %v", what, got, ok)
		}
	}
}

func TestTablesThatTheKernelWouldRefuse(t *testing.T) {
	tests := map[string][]Target{
		"empty":           nil,
		"not from 0":      {{8, 8, "zero", ""}},
		"gap":             {{0, 8, "zero", ""}, {16, 8, "zero", ""}},
		"overlap":         {{0, 8, "zero", ""}, {4, 8, "zero", ""}},
		"no sectors":      {{0, 0, "zero", ""}},
		"too far":         {{0, 1 << 63, "zero", ""}, {1 << 63, 1 << 63, "zero", ""}},
		"no type":         {{0, 8, "", ""}},
		"long type":       {{0, 8, strings.Repeat("t", 16), ""}},
		"NUL in the text": {{0, 8, "linear", "7:0\x00 0"}},
	}
	for name, table := range tests {
		t.Run(name, func(t *testing.T) {
			if err := checkTable(table); err == nil {
				t.Errorf("%v was let through", table)
			}
		})
	}
	if err := checkTable([]Target{{0, 8, "zero", ""}, {8, 1, "linear", "/dev/x 0"}}); err != nil {
		t.Error(err)
	}
}

// fault 52: names that udev would mangle, that leave the directory, or that do not fit.
func TestFault52Names(t *testing.T) {
	for _, good := range []string{"a", "pool-vol", "A#+.:=@_-9", "...", strings.Repeat("n", 127)} {
		if err := CheckName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "..", "control", "a/b", "a\nb", "a b", "a\x00", "ü", "a\\x20", "~a", strings.Repeat("n", 128)} {
		if CheckName(bad) == nil {
			t.Errorf("the name %q was let through", bad)
		}
	}
	if err := CheckUUID(""); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"a/b", strings.Repeat("u", 129)} {
		if CheckUUID(bad) == nil {
			t.Errorf("the UUID %q was let through", bad)
		}
	}
}

func TestErrorsSayWhatAndWhere(t *testing.T) {
	err := fmt.Errorf("outer: %w", failure("remove", "vol", unix.EBUSY))
	if got, want := err.Error(), "outer: device-mapper: remove vol: device or resource busy"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if failure("remove", "vol", nil) != nil {
		t.Error("no error became one")
	}
}
