package metadata

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// pool is what the metadata of a pool says, in a form that thin_restore and thin_dump
// know as XML.
type pool struct {
	Time             uint32
	TransactionID    uint64
	DataBlockSectors uint32
	DataBlocks       uint64
	Devices          []thin
}

type thin struct {
	Device
	Mappings []Mapping // maximal runs
}

// snapshot of a device that is at the end of the pool's: it has the same mappings.
func (p *pool) snapshot(origin int, id uint32) {
	p.Time++
	o := &p.Devices[origin]
	o.SnapshottedTime = p.Time
	copied := thin{Device: o.Device, Mappings: append([]Mapping(nil), o.Mappings...)}
	copied.ID, copied.CreationTime = id, p.Time
	p.Devices = append(p.Devices, copied)
}

func (p *pool) xml() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "<superblock uuid=\"\" time=\"%d\" transaction=\"%d\" version=\"2\" data_block_size=\"%d\" nr_data_blocks=\"%d\">\n",
		p.Time, p.TransactionID, p.DataBlockSectors, p.DataBlocks)
	for _, d := range p.Devices {
		fmt.Fprintf(&b, "<device dev_id=\"%d\" mapped_blocks=\"%d\" transaction=\"%d\" creation_time=\"%d\" snap_time=\"%d\">\n",
			d.ID, d.MappedBlocks, d.TransactionID, d.CreationTime, d.SnapshottedTime)
		for _, m := range d.Mappings {
			fmt.Fprintf(&b, "<range_mapping origin_begin=\"%d\" data_begin=\"%d\" length=\"%d\" time=\"%d\"/>\n",
				m.VirtualBlock, m.DataBlock, m.Blocks, m.Time)
		}
		fmt.Fprintln(&b, "</device>")
	}
	fmt.Fprintln(&b, "</superblock>")
	return b.Bytes()
}

// restore has thin_restore make the metadata, in a file of that size.
func restore(t testing.TB, p *pool, bytes int64) *os.File {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "pool.xml")
	must(t, os.WriteFile(source, p.xml(), 0o600))
	image, err := os.Create(filepath.Join(dir, "metadata"))
	must(t, err)
	t.Cleanup(func() { must(t, image.Close()) })
	must(t, image.Truncate(bytes))
	if out, err := exec.Command("thin_restore", "-q", "-i", source, "-o", image.Name()).CombinedOutput(); err != nil {
		t.Fatalf("thin_restore: %v\n%s", err, out)
	}
	return image
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// parseDump reads what thin_dump prints. What devices share, it defines once.
func parseDump(r io.Reader) (*pool, error) {
	p := &pool{}
	defined := map[string][]Mapping{}
	var into *[]Mapping
	var definition string
	d := xml.NewDecoder(r)
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return p, nil
		} else if err != nil {
			return nil, err
		}
		element, ok := token.(xml.StartElement)
		if end, ok := token.(xml.EndElement); ok && end.Name.Local == "def" {
			defined[definition] = *into
		}
		if !ok {
			continue
		}
		a := attributes(element)
		switch element.Name.Local {
		case "superblock":
			p.Time, p.TransactionID = uint32(a.number("time")), a.number("transaction")
			p.DataBlockSectors, p.DataBlocks = uint32(a.number("data_block_size")), a.number("nr_data_blocks")
		case "def":
			definition, into = a["name"], &[]Mapping{}
		case "device":
			p.Devices = append(p.Devices, thin{Device: Device{
				ID: uint32(a.number("dev_id")), MappedBlocks: a.number("mapped_blocks"), TransactionID: a.number("transaction"),
				CreationTime: uint32(a.number("creation_time")), SnapshottedTime: uint32(a.number("snap_time")),
			}})
			into = &p.Devices[len(p.Devices)-1].Mappings
		case "ref":
			for _, m := range defined[a["name"]] {
				*into = join(*into, m)
			}
		case "range_mapping":
			*into = join(*into, Mapping{a.number("origin_begin"), a.number("data_begin"), a.number("length"), uint32(a.number("time"))})
		case "single_mapping":
			*into = join(*into, Mapping{a.number("origin_block"), a.number("data_block"), 1, uint32(a.number("time"))})
		}
	}
}

type attributeMap map[string]string

func attributes(e xml.StartElement) attributeMap {
	a := attributeMap{}
	for _, attribute := range e.Attr {
		a[attribute.Name.Local] = attribute.Value
	}
	return a
}

func (a attributeMap) number(name string) uint64 {
	n, err := strconv.ParseUint(a[name], 10, 64)
	if err != nil {
		panic(fmt.Sprintf("attribute %s: %v", name, err))
	}
	return n
}

// join appends a run, or lengthens the last one.
func join(runs []Mapping, next Mapping) []Mapping {
	if len(runs) > 0 {
		last := &runs[len(runs)-1]
		if last.Time == next.Time && last.VirtualBlock+last.Blocks == next.VirtualBlock && last.DataBlock+last.Blocks == next.DataBlock {
			last.Blocks += next.Blocks
			return runs
		}
	}
	return append(runs, next)
}

// dump has thin_dump read the metadata.
func dump(t testing.TB, path string, options ...string) *pool {
	t.Helper()
	out, err := exec.Command("thin_dump", append(options, path)...).Output()
	if err != nil {
		t.Fatalf("thin_dump: %v", err)
	}
	p, err := parseDump(strings.NewReader(string(out)))
	must(t, err)
	return p
}

// read is all that a Reader says.
func read(m *Reader) (*pool, error) {
	s := m.Superblock()
	p := &pool{Time: s.Time, TransactionID: s.TransactionID, DataBlockSectors: s.DataBlockSectors, DataBlocks: m.DataBlocks()}
	for d, err := range m.Devices() {
		if err != nil {
			return nil, err
		}
		device := thin{Device: d}
		for run, err := range m.Mappings(d.ID, 0) {
			if err != nil {
				return nil, err
			}
			device.Mappings = append(device.Mappings, run)
		}
		p.Devices = append(p.Devices, device)
	}
	return p, nil
}

func readImage(t testing.TB, r io.ReaderAt) *pool {
	t.Helper()
	m, err := Open(r, Options{})
	must(t, err)
	p, err := read(m)
	must(t, err)
	return p
}
