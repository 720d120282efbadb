package thin

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func aHeader() mapperHeader {
	return mapperHeader{
		uuid: "00112233-4455-6677-8899-aabbccddeeff", name: "pool", blockBytes: 64 << 10, lowWaterBlocks: 64,
		nextID: 7, records: 4, state: Active, created: time.Unix(1700000000, 0).UTC(),
	}
}

func aRecord() mapperRecord {
	return mapperRecord{
		id: 6, thinID: 3, name: "volume", blob: []byte("blob"), sizeBytes: 1 << 30, origin: 2, state: Creating,
		transaction: 9, created: time.Unix(1700000001, 0).UTC(),
	}
}

// golden is a record without its zeros: 16 bytes a line, at an offset.
func golden(b []byte) string {
	var lines []string
	for off := 0; off < len(b); off += 16 {
		if !isZero(b[off : off+16]) {
			lines = append(lines, hex.EncodeToString([]byte{byte(off >> 8), byte(off)})+" "+hex.EncodeToString(b[off:off+16]))
		}
	}
	return strings.Join(lines, "\n")
}

// What is on disks of users does not change.
func TestRecordsOnDisk(t *testing.T) {
	header, err := aHeader().encode()
	if err != nil {
		t.Fatal(err)
	}
	record, err := aRecord().encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		got, want string
	}{
		{"pool", golden(header), strings.TrimSpace(`
0000 444543414e5454506016a45201000000
0010 00112233445566778899aabbccddeeff
0020 00000100000000004000000000000000
0030 07000000000000000400000000000000
0040 00f15365000000000204706f6f6c0000`)},
		{"volume", golden(record), strings.TrimSpace(`
0000 445456312a5960270600000000000000
0010 03000000010604000000004000000000
0020 02000000000000000900000000000000
0030 01f1536500000000766f6c756d650000
0100 626c6f62000000000000000000000000`)},
	} {
		if c.got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, c.got, c.want)
		}
	}
}

func TestRecordsReadWhatTheyWrite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9._-]{0,99}`).Draw(t, "name")
		states := []State{Creating, Active, Deleting}
		want := mapperRecord{
			id: rapid.Uint64Min(1).Draw(t, "id"), thinID: rapid.Uint32Range(1, maxThinID).Draw(t, "thin id"), name: name,
			blob:      rapid.SliceOfN(rapid.Byte(), 0, MaxBlobBytes).Draw(t, "blob"),
			sizeBytes: rapid.Int64Min(1).Draw(t, "size"), origin: rapid.Uint64().Draw(t, "origin"),
			state: rapid.SampledFrom(states).Draw(t, "state"), transaction: rapid.Uint64().Draw(t, "transaction"),
			created: time.Unix(rapid.Int64Range(0, 1<<40).Draw(t, "created"), 0).UTC(),
		}
		b, err := want.encode()
		if err != nil {
			t.Fatal(err)
		}
		// A blob that ends in zeros comes back as it was.
		got, free, err := decodeRecord(int64(want.thinID), b)
		if err != nil || free || mustText(got) != mustText(want) {
			t.Fatalf("got %+v, %v, %v", got, free, err)
		}
		header := mapperHeader{
			uuid: newUUID(), name: name, blockBytes: rapid.Int64Range(1, 16384).Draw(t, "block") * MinPoolBlockBytes,
			lowWaterBlocks: rapid.Int64Min(0).Draw(t, "low water"), nextID: rapid.Uint64Min(1).Draw(t, "next id"),
			records: rapid.Int64Range(1, maxThinID+1).Draw(t, "records"), state: want.state, created: want.created,
		}
		if b, err = header.encode(); err != nil {
			t.Fatal(err)
		}
		if got, err := decodeHeader(b); err != nil || got != header {
			t.Fatalf("got %+v, %v", got, err)
		}
	})
}

func mustText(r mapperRecord) string {
	return strings.Join([]string{r.name, hex.EncodeToString(r.blob), string(r.state), r.created.String(), hex.EncodeToString(numbers(r))}, "|")
}

func numbers(r mapperRecord) []byte {
	b, err := mapperRecord{id: r.id, thinID: r.thinID, name: "x", sizeBytes: r.sizeBytes, origin: r.origin, state: Active, transaction: r.transaction}.encode()
	if err != nil {
		panic(err)
	}
	return b
}

// Every single wrong bit is found.
func TestRecordsFindDamage(t *testing.T) {
	header, err := aHeader().encode()
	if err != nil {
		t.Fatal(err)
	}
	record, err := aRecord().encode()
	if err != nil {
		t.Fatal(err)
	}
	for bit := range recordBytes * 8 {
		for _, b := range [][]byte{header, record} {
			b[bit/8] ^= 1 << (bit % 8)
		}
		if _, err := decodeHeader(header); !errors.Is(err, errRecord) {
			t.Fatalf("header with a wrong bit %d: %v", bit, err)
		}
		if _, free, err := decodeRecord(3, record); free || !errors.Is(err, errRecord) {
			t.Fatalf("record with a wrong bit %d: %v", bit, err)
		}
		for _, b := range [][]byte{header, record} {
			b[bit/8] ^= 1 << (bit % 8)
		}
	}
	if _, _, err := decodeRecord(4, record); !errors.Is(err, errRecord) {
		t.Errorf("a record in a wrong place: %v", err)
	}
	if _, free, err := decodeRecord(3, make([]byte, recordBytes)); !free || err != nil {
		t.Errorf("a free record: %v, %v", free, err)
	}
	if _, err := decodeHeader(make([]byte, recordBytes)); !errors.Is(err, errRecord) {
		t.Errorf("zeros are no header: %v", err)
	}
}

func TestRecordsThatCannotBeWritten(t *testing.T) {
	long := strings.Repeat("x", MaxNameBytes+1)
	for name, change := range map[string]func(*mapperHeader, *mapperRecord){
		"name":    func(h *mapperHeader, r *mapperRecord) { h.name, r.name = long, long },
		"state":   func(h *mapperHeader, r *mapperRecord) { h.state, r.state = "", "" },
		"blob":    func(h *mapperHeader, r *mapperRecord) { h.uuid, r.blob = "no uuid", make([]byte, MaxBlobBytes+1) },
		"thin id": func(h *mapperHeader, r *mapperRecord) { h.uuid, r.thinID = "", maxThinID+1 },
	} {
		h, r := aHeader(), aRecord()
		change(&h, &r)
		if _, err := h.encode(); err == nil {
			t.Errorf("%s: the header was written", name)
		}
		if _, err := r.encode(); err == nil {
			t.Errorf("%s: the record was written", name)
		}
	}
}

// What comes from a disk does no harm, and what is accepted is written back as it was.
func FuzzDecodeRecord(f *testing.F) {
	header, _ := aHeader().encode()
	record, _ := aRecord().encode()
	f.Add(header)
	f.Add(record)
	f.Add(make([]byte, recordBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decodeHeader(b); err == nil {
			if again, err := h.encode(); err != nil || !bytes.Equal(again, b) {
				t.Errorf("%+v is written as something else: %v", h, err)
			}
		}
		if r, free, err := decodeRecord(3, b); err == nil && !free {
			if again, err := r.encode(); err != nil || !bytes.Equal(again, b) {
				t.Errorf("%+v is written as something else: %v", r, err)
			}
		}
	})
}
