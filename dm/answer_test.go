package dm

import (
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// le is numbers and texts one after the other: uint32, uint64 and string.
func le(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case uint32:
			b = binary.NativeEndian.AppendUint32(b, p)
		case uint64:
			b = binary.NativeEndian.AppendUint64(b, p)
		case string:
			b = append(b, p...)
		}
	}
	return b
}

// reply is an answer of the kernel with that data.
func reply(targets uint32, data []byte) []byte {
	header := unix.DmIoctl{
		Version: [3]uint32{4, 47, 0}, Data_start: headerBytes, Data_size: uint32(headerBytes + len(data)), Target_count: targets,
	}
	b, err := binary.Append(nil, binary.NativeEndian, &header)
	if err != nil {
		panic(err)
	}
	return append(b, data...)
}

func mustDecode(t *testing.T, buffer []byte) *answer {
	t.Helper()
	a, err := decodeAnswer(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var (
	typeZero   = "zero" + strings.Repeat("\x00", 12)
	typeLinear = "linear" + strings.Repeat("\x00", 10)
)

// In an answer, next counts from the first target, in a request from its own.
var statusReply = reply(2, le(
	uint64(0), uint64(8), uint32(0), uint32(48), typeZero, "\x00\x00\x00\x00\x00\x00\x00\x00",
	uint64(8), uint64(4096), uint32(0), uint32(96), typeLinear, "7:0 16\x00\x00",
))

var listReply = reply(0, le(
	uint64(0xfd03), uint32(48), "vol\x00", // 16 bytes
	uint32(7), uint32(unix.DM_NAME_LIST_FLAG_HAS_UUID), "DECANT-1\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	uint64(0x12345fd00), uint32(0), "pool-data\x00\x00\x00", // 24 bytes
	uint32(0), uint32(unix.DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID),
))

var versionsReply = reply(0, le(
	uint32(24), uint32(1), uint32(4), uint32(0), "linear\x00\x00",
	uint32(0), uint32(1), uint32(22), uint32(3), "thin-pool\x00\x00\x00\x00\x00\x00\x00",
))

var depsReply = reply(0, le(uint32(2), uint32(0), uint64(0x6200), uint64(0xfd01)))

func TestDecodeTable(t *testing.T) {
	got, err := mustDecode(t, statusReply).decodeTable()
	want := []Target{{0, 8, "zero", ""}, {8, 4096, "linear", "7:0 16"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestDecodeList(t *testing.T) {
	got, known, err := mustDecode(t, listReply).decodeList(true)
	want := []Entry{{"vol", "DECANT-1", 0xfd03, 7}, {"pool-data", "", 0x12345fd00, 0}}
	if err != nil || !reflect.DeepEqual(got, want) || !known[0] || !known[1] {
		t.Errorf("got %v, %v, %v", got, known, err)
	}
	if _, known, err := mustDecode(t, listReply).decodeList(false); err != nil || known[0] || known[1] {
		t.Errorf("what an old kernel leaves behind the names was taken for UUIDs: %v, %v", known, err)
	}
}

func TestDecodeListWithoutDevices(t *testing.T) {
	for _, data := range [][]byte{nil, le(uint64(0)), le(uint64(0), uint64(0))} {
		if list, _, err := mustDecode(t, reply(0, data)).decodeList(true); err != nil || len(list) != 0 {
			t.Errorf("%d bytes: %v, %v", len(data), list, err)
		}
	}
}

func TestDecodeVersions(t *testing.T) {
	got, err := mustDecode(t, versionsReply).decodeVersions()
	want := []TargetVersion{{"linear", Version{1, 4, 0}}, {"thin-pool", Version{1, 22, 3}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestDecodeDeps(t *testing.T) {
	got, err := mustDecode(t, depsReply).decodeDeps()
	if err != nil || !reflect.DeepEqual(got, []DeviceNumber{0x6200, 0xfd01}) {
		t.Errorf("got %v, %v", got, err)
	}
	if got[0].String() != "98:0" || got[1].String() != "253:1" {
		t.Errorf("numbers %v", got)
	}
}

func TestDecodeInfo(t *testing.T) {
	r := request{
		name: "vol", uuid: "DECANT-1", event: 9, targets: 2,
		flags: unix.DM_SUSPEND_FLAG | unix.DM_READONLY_FLAG | unix.DM_INACTIVE_PRESENT_FLAG | unix.DM_DEFERRED_REMOVE,
	}
	buffer := r.encode(0)
	binary.NativeEndian.PutUint32(buffer[24:], 3)
	binary.NativeEndian.PutUint64(buffer[40:], 0xfd05)
	want := Info{
		Name: "vol", UUID: "DECANT-1", Device: 0xfd05, OpenCount: 3, EventNumber: 9, TargetCount: 2,
		Suspended: true, ReadOnly: true, InactiveTable: true, DeferredRemove: true,
	}
	if got := mustDecode(t, buffer).info(); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// A header alone declares a size that ends ahead of where its data would begin.
func TestDecodeAnswerWithoutData(t *testing.T) {
	buffer := reply(0, nil)
	binary.NativeEndian.PutUint32(buffer[12:], 305)
	if a := mustDecode(t, buffer); len(a.data) != 0 {
		t.Errorf("data %q", a.data)
	}
}

func TestMalformedAnswers(t *testing.T) {
	header := func(at int, value uint32) []byte {
		b := append([]byte(nil), statusReply...)
		binary.NativeEndian.PutUint32(b[at:], value)
		return b
	}
	table := func(a *answer) error { _, err := a.decodeTable(); return err }
	list := func(a *answer) error { _, _, err := a.decodeList(true); return err }
	versions := func(a *answer) error { _, err := a.decodeVersions(); return err }
	deps := func(a *answer) error { _, err := a.decodeDeps(); return err }
	tests := map[string]struct {
		buffer []byte
		decode func(*answer) error
	}{
		"no header":                   {statusReply[:311], table},
		"data beyond the buffer":      {header(12, 1<<31), table},
		"data within the header":      {header(16, 8), table},
		"more targets than data":      {header(20, 3), table},
		"2^32-1 targets":              {header(20, 1<<32-1), table},
		"next target is the same":     {header(312+20, 0), table},
		"next target far away":        {header(312+20, 1<<32-1), table},
		"status without end":          {reply(1, le(uint64(0), uint64(8), uint32(0), uint32(48), typeZero, "abcdefgh")), table},
		"name without end":            {reply(0, le(uint64(1), uint32(0), "abcd")), list},
		"entry without event number":  {reply(0, le(uint64(1), uint32(0), "abc\x00")), list},
		"UUID without end":            {reply(0, le(uint64(1), uint32(0), "abc\x00", uint32(0), uint32(1), "uuid")), list},
		"next entry beyond the data":  {reply(0, le(uint64(1), uint32(99), "abc\x00", uint32(0), uint32(2))), list},
		"next entry within its own":   {reply(0, le(uint64(1), uint32(4), "abc\x00", uint32(0), uint32(2))), list},
		"target type without end":     {reply(0, le(uint32(0), uint32(1), uint32(0), uint32(0), "abcd")), versions},
		"half a version":              {reply(0, le(uint32(0), uint32(1))), versions},
		"more dependencies than data": {reply(0, le(uint32(2), uint32(0), uint64(1))), deps},
		"half a count":                {reply(0, le(uint32(2))), deps},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a, err := decodeAnswer(test.buffer)
			if err == nil {
				err = test.decode(a)
			}
			if !errors.Is(err, ErrAnswer) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Whatever a kernel answers, decoding ends, without a panic and in memory that is
// bounded by the answer's.
func FuzzDecode(f *testing.F) {
	for _, seed := range [][]byte{statusReply, listReply, versionsReply, depsReply, reply(0, nil), nil} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, buffer []byte) {
		a, err := decodeAnswer(buffer)
		if err != nil {
			return
		}
		a.info()
		table, _ := a.decodeTable()
		list, _, _ := a.decodeList(true)
		versions, _ := a.decodeVersions()
		deps, _ := a.decodeDeps()
		if n := len(table) + len(list) + len(versions) + len(deps); n > len(buffer) {
			t.Errorf("%d elements from %d bytes", n, len(buffer))
		}
	})
}

// A table that is encoded and comes back as the kernel would send it is the same.
func FuzzTable(f *testing.F) {
	f.Add(uint64(0), uint64(8), "zero", "", "7:0 16")
	f.Fuzz(func(t *testing.T, start, length uint64, targetType, first, second string) {
		table := []Target{{start, length, targetType, first}, {start + length, length, targetType, second}}
		for _, target := range table {
			if checkType(target.Type) != nil || checkText("parameters", target.Params) != nil {
				return
			}
		}
		data := encodeTable(table)
		firstBytes := binary.NativeEndian.Uint32(data[20:])
		got, err := mustDecode(t, reply(2, data)).decodeTable() // the first next is the same both ways
		if err != nil || !reflect.DeepEqual(got, table) {
			t.Errorf("%v with the second at %d came back as %v, %v", table, firstBytes, got, err)
		}
	})
}

func TestVersionAtLeast(t *testing.T) {
	for _, test := range []struct {
		v, want Version
		ok      bool
	}{
		{Version{4, 47, 0}, Version{4, 37, 0}, true},
		{Version{4, 37, 0}, Version{4, 37, 0}, true},
		{Version{4, 36, 9}, Version{4, 37, 0}, false},
		{Version{4, 37, 1}, Version{4, 37, 2}, false},
		{Version{5, 0, 0}, Version{4, 37, 0}, false},
	} {
		if test.v.AtLeast(test.want) != test.ok {
			t.Errorf("%v at least %v: %v", test.v, test.want, !test.ok)
		}
	}
}
