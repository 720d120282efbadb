package logwrites_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"

	"decant/integration/logwrites"
)

// layOut writes a log as the kernel does, with sectors of 512 bytes.
func layOut(entries ...logwrites.Entry) []byte {
	const sectorBytes = 512
	b := binary.LittleEndian.AppendUint64(nil, 0x6a736677736872)
	b = binary.LittleEndian.AppendUint64(b, 1)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(entries)))
	b = binary.LittleEndian.AppendUint32(b, sectorBytes)
	b = append(b, make([]byte, sectorBytes-len(b))...)
	for _, e := range entries {
		begin, label := len(b), []byte(nil)
		if e.Has(logwrites.Mark) {
			label = e.Data
		}
		for _, word := range []uint64{uint64(e.Off) / sectorBytes, uint64(e.Bytes) / sectorBytes, uint64(e.Flags), uint64(len(label))} {
			b = binary.LittleEndian.AppendUint64(b, word)
		}
		b = append(b, label...)
		b = append(b, make([]byte, begin+sectorBytes-len(b))...)
		if !e.Has(logwrites.Mark) {
			b = append(b, e.Data...)
		}
	}
	return b
}

// written is an entry that writes one value.
func written(off, length int64, value byte, flags logwrites.Flags) logwrites.Entry {
	return logwrites.Entry{Off: off, Bytes: length, Flags: flags, Data: bytes.Repeat([]byte{value}, int(length))}
}

func mark(label string) logwrites.Entry {
	return logwrites.Entry{Flags: logwrites.Mark, Data: []byte(label)}
}

var allKinds = []logwrites.Entry{
	mark("begin"),
	written(4096, 1024, 7, logwrites.Metadata),
	{Off: 8192, Bytes: 1 << 30, Flags: logwrites.Discard},
	{Off: 4096, Flags: logwrites.Flush},
	written(0, 512, 9, logwrites.FUA|logwrites.Flush),
	mark("end"),
}

func TestReadReturnsWhatWasWritten(t *testing.T) {
	log := layOut(allKinds...)
	got, err := logwrites.Read(bytes.NewReader(log), int64(len(log)))
	if err != nil || !reflect.DeepEqual(got, allKinds) {
		t.Errorf("got %v, %v; want %v", got, err, allKinds)
	}
}

func TestReadRefuses(t *testing.T) {
	entry := func(words ...uint64) []byte { // over the first entry of a log of one
		log := layOut(written(0, 512, 1, 0))
		for i, word := range words {
			binary.LittleEndian.PutUint64(log[512+8*i:], word)
		}
		return log
	}
	superblock := func(off int, value byte) []byte {
		log := layOut(allKinds...)
		log[off] = value
		return log
	}
	for name, log := range map[string][]byte{
		"nothing":                  nil,
		"other magic":              superblock(0, 1),
		"other version":            superblock(8, 2),
		"more entries than space":  superblock(22, 1),
		"more entries than there":  superblock(16, 7),
		"no sector size":           superblock(25, 0),
		"crooked sector size":      superblock(24, 1),
		"huge sectors":             superblock(27, 1),
		"data beyond the end":      entry(0, 2),
		"more sectors than exist":  entry(0, 1<<63),
		"sectors beyond any disk":  entry(1<<54, 1),
		"range around the end":     entry(1<<53, 1<<54-1),
		"unknown flag":             entry(0, 1, 32),
		"label on a write":         entry(0, 1, 0, 5),
		"label beyond its sector":  entry(0, 0, 8, 481),
		"mark with sectors":        entry(0, 1, 8, 5),
		"cut in the middle of one": layOut(allKinds...)[:700],
	} {
		t.Run(name, func(t *testing.T) {
			got, err := logwrites.Read(bytes.NewReader(log), int64(len(log)))
			if !errors.Is(err, logwrites.ErrFormat) {
				t.Errorf("got %d entries and %v", len(got), err)
			}
		})
	}
}

// The size that the caller gives may be that of a device of which less can be read.
func TestReadNoticesTheEnd(t *testing.T) {
	log := layOut(allKinds...)
	if _, err := logwrites.Read(bytes.NewReader(log[:len(log)-400]), int64(len(log))); err != nil {
		t.Errorf("the last mark is whole: %v", err)
	}
	if got, err := logwrites.Read(bytes.NewReader(log[:len(log)-500]), int64(len(log))); !errors.Is(err, logwrites.ErrFormat) {
		t.Errorf("the last mark is cut: %d entries and %v", len(got), err)
	}
}

// Whatever the bytes are, Read takes no more from them than there is.
func FuzzRead(f *testing.F) {
	f.Add(layOut(allKinds...))
	f.Add(layOut())
	f.Add([]byte("hrswfsj"))
	f.Fuzz(func(t *testing.T, log []byte) {
		entries, err := logwrites.Read(bytes.NewReader(log), int64(len(log)))
		if err != nil {
			if entries != nil {
				t.Errorf("%d entries beside %v", len(entries), err)
			}
			return
		}
		var dataBytes int64
		for _, e := range entries {
			if dataBytes += int64(len(e.Data)); e.Off < 0 || e.Bytes < 0 || e.Off+e.Bytes < 0 {
				t.Errorf("an entry of %d bytes at %d", e.Bytes, e.Off)
			}
			if isWrite := !e.Has(logwrites.Mark | logwrites.Discard); isWrite && int64(len(e.Data)) != e.Bytes {
				t.Errorf("%d bytes of data for %d", len(e.Data), e.Bytes)
			}
		}
		if dataBytes > int64(len(log)) {
			t.Errorf("%d bytes of data in a log of %d", dataBytes, len(log))
		}
	})
}
