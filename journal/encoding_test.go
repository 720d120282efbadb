package journal

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"decant/region"
)

func decodeAll(encoded []byte, regions uint64) (list []region.Range, err error) {
	for r, err := range decodeRanges(encoded, regions) {
		if err != nil {
			return list, err
		}
		list = append(list, r)
	}
	return list, nil
}

func TestRangesComeBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := &region.Set{}
		for range rapid.IntRange(0, 20).Draw(rt, "ranges") {
			first := rapid.Uint64Range(0, 1<<20).Draw(rt, "first")
			s.Add(region.Range{First: region.Nr(first), Count: rapid.Uint64Range(1, 1<<18).Draw(rt, "count")})
		}
		end := uint64(0)
		for r := range s.Ranges() {
			end = uint64(r.End())
		}
		got, err := decodeAll(encodeRanges(s), end)
		if err != nil || !slices.Equal(got, slices.Collect(s.Ranges())) {
			rt.Fatalf("%v, %v", got, err)
		}
		if _, err := decodeAll(encodeRanges(s), end-1); (err == nil) != (end == 0) {
			rt.Fatalf("one region short: %v", err)
		}
	})
}

func TestMalformedRanges(t *testing.T) {
	for name, encoded := range map[string][]byte{
		"half a pair":       {1},
		"torn varint":       {1, 0x80},
		"no regions":        {1, 0},
		"touching ranges":   {1, 1, 0, 1},
		"behind the end":    {99, 2},
		"gap overflows":     {1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1},
		"count overflows":   {1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
		"more than 64 bits": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 1},
	} {
		if got, err := decodeAll(encoded, 100); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzRanges(f *testing.F) {
	f.Add([]byte{0, 5, 1, 1}, uint64(100))
	f.Add([]byte{0x80, 0x80, 1, 1}, uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, encoded []byte, regions uint64) {
		list, err := decodeAll(encoded, min(regions, region.MaxRegions))
		end := region.Nr(0)
		for i, r := range list {
			if r.Empty() || r.End() < r.First || uint64(r.End()) > regions || r.First < end || i > 0 && r.First == end {
				t.Fatalf("range %v after %d", r, end)
			}
			end = r.End()
		}
		if err != nil {
			return
		}
		s := region.NewSet(list...)
		again, err := decodeAll(encodeRanges(s), regions)
		if err != nil || !slices.Equal(again, list) {
			t.Fatalf("%v became %v, %v", list, again, err)
		}
	})
}

func TestSumsComeBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := &sumChunk{}
		for i, sum := range rapid.MapOf(rapid.IntRange(0, sumChunkRegions-1), rapid.Uint64()).Draw(rt, "sums") {
			c[i] = sum
		}
		encoded := c.encode()
		if *c == (sumChunk{}) {
			if encoded != nil {
				rt.Fatalf("nothing became %x", encoded)
			}
			return
		}
		if got, err := decodeSums(encoded); err != nil || *got != *c {
			rt.Fatalf("%v became %v, %v", c, got, err)
		}
	})
}

func FuzzSums(f *testing.F) {
	f.Add((&sumChunk{5: 7, 255: math.MaxUint64}).encode())
	f.Add(make([]byte, sumMaskBytes))
	f.Fuzz(func(t *testing.T, encoded []byte) {
		c, err := decodeSums(encoded)
		if err == nil && !bytes.Equal(c.encode(), encoded) {
			t.Fatalf("%x became %x", encoded, c.encode())
		}
	})
}

func TestNetworkFileSystemsAreNamed(t *testing.T) { // fault 59
	for magic, name := range map[uint32]string{0x6969: "nfs", 0xff534d42: "cifs", 0xfe534d42: "smb2", 0x01021997: "9p", 0x794c7630: "overlay"} {
		err := checkMagic("/state", magic)
		var e *FileSystemError
		if !errors.As(err, &e) || e.FileSystem != name || !errors.Is(e.Reason, ErrNetworkFS) {
			t.Errorf("%#x: %v, want %s", magic, err, name)
		}
	}
	for _, magic := range []uint32{0xef53, 0x58465342, 0x9123683e} {
		if err := checkMagic("/state", magic); err != nil {
			t.Errorf("%#x: %v", magic, err)
		}
	}
}
